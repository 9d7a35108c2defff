"""Mock providers: which one, what they answer, and that each fault becomes the right error."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any, get_args

import anyio
import pytest

from adapters.providers.mock import MockAdapter, MockOpenAIAdapter, MockVLLMAdapter
from adapters.providers.mock_options import FaultName
from engine.attempt import Attempt
from engine.config import ProviderConfig
from engine.errors import (
    BrokenError,
    CallerError,
    ConfigurationError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    ExhaustedError,
    MisconfiguredError,
    OverloadedError,
    ProviderError,
    SilentError,
    TransientError,
)
from engine.operations import ChatRequest, Chunk, CompletionRequest, Operation, Request


def mock(name: str = "m", **options: Any) -> MockAdapter:
    return MockAdapter(ProviderConfig(name=name, type="mock", options=options))


def chat(**fields: Any) -> ChatRequest:
    return ChatRequest("some-model", [{"role": "user", "content": "hi"}], **fields)


async def read(provider: MockAdapter, request: Request | None = None) -> list[Chunk]:
    config = provider.config
    source = provider.stream(Attempt(request or chat(), "m", "r", timeouts=config.timeouts))
    try:
        return [chunk async for chunk in source]
    finally:
        await source.aclose()


# What each fault is, whole and streamed; None means that the answer is good.
WANTED: dict[str, tuple[type[ProviderError] | None, type[ProviderError] | None]] = {
    **dict.fromkeys(
        ("refused", "dns", "tls", "connect_timeout", "pool_timeout"), (ConnectError, ConnectError)
    ),
    **dict.fromkeys(
        ("reset_before", "closed_early", "write_error"), (TransientError, TransientError)
    ),
    "read_timeout": (SilentError, SilentError),
    **dict.fromkeys(
        ("http_401", "http_402", "http_403", "http_405", "model_not_found"),
        (MisconfiguredError, MisconfiguredError),
    ),
    **dict.fromkeys(
        ("http_400", "http_404", "http_409", "http_413", "http_415", "http_422"),
        (CallerError, CallerError),
    ),
    **dict.fromkeys(
        ("http_408", "http_425", "http_500", "http_501", "http_502", "http_504"),
        (TransientError, TransientError),
    ),
    **dict.fromkeys(
        ("http_429", "http_503", "http_529"), (OverloadedError, OverloadedError)
    ),
    "quota_429": (ExhaustedError, ExhaustedError),
    "context_length": (ContextLengthError, ContextLengthError),
    "content_filter": (ContentFilterError, ContentFilterError),
    **dict.fromkeys(
        ("redirect", "html", "not_json", "empty", "cut_json", "empty_choices",
         "wrong_content_type", "reset_after", "cut_stream", "early_end", "garbled_first",
         "garbled_event", "oversized_event"),
        (BrokenError, BrokenError),
    ),
    **dict.fromkeys(
        ("error_200", "error_event_first", "error_event_mid"), (TransientError, TransientError)
    ),
    **dict.fromkeys(("no_done", "double_done"), (None, None)),
}  # fmt: skip
ENDLESS = ("hang", "stall_first", "stall_stream", "endless_stream", "slow_trickle")


def test_every_fault_has_a_test() -> None:
    """The table and the endless ones are all the faults there are."""
    assert {*WANTED, *ENDLESS} == set(get_args(FaultName))


@pytest.mark.parametrize("name", ["m", "m-vllm"])
@pytest.mark.parametrize("fault", list(WANTED))
def test_a_fault_becomes_its_error(fault: str, name: str, virtual_time: Any) -> None:
    """Each fault, in both dialects, whole and streamed, is the error class it stands for."""

    async def main() -> None:
        whole, streamed = WANTED[fault]
        provider = mock(name, fault=fault)
        for wanted, call in ((whole, lambda: provider.chat_completion(chat(), "r")),
                             (streamed, lambda: read(provider))):  # fmt: skip
            if wanted is None:
                assert await call()
                continue
            with pytest.raises(ProviderError) as caught:
                await call()
            assert type(caught.value) is wanted

    virtual_time(main)


@pytest.mark.parametrize("fault", ENDLESS)
def test_endless_faults_last_until_the_time_limit(fault: str, virtual_time: Any) -> None:
    """They end by the caller's limit and in no other way."""

    async def main() -> None:
        provider = mock(fault=fault, reply_tokens=300)
        request = Attempt(chat(), "m", "r", timeouts=provider.config.timeouts)
        with anyio.move_on_after(10) as scope:
            await provider.send(request)
        assert scope.cancelled_caught
        with anyio.move_on_after(30) as scope:
            await read(provider)
        assert scope.cancelled_caught

    virtual_time(main)


@pytest.mark.parametrize("fault", ["error_event_mid", "cut_stream", "early_end", "garbled_event"])
async def test_late_faults_come_after_the_first_output(fault: str) -> None:
    """A stream that breaks in the middle has said something before."""
    provider = mock(fault=fault)
    source = provider.stream(Attempt(chat(), "m", "r", timeouts=provider.config.timeouts))
    chunks = [await anext(source), await anext(source)]
    with pytest.raises(ProviderError):
        [chunk async for chunk in source]
    await source.aclose()
    assert any(chunk.commits for chunk in chunks)


async def test_retry_after_is_sent() -> None:
    """The hint of an overloaded mock is read like a real one's."""
    with pytest.raises(OverloadedError) as caught:
        await mock(fault="http_429", retry_after=1.5).chat_completion(chat(), "r")
    assert caught.value.retry_after == 1.5


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, MockOpenAIAdapter),
        ({"options": {"imitates": "vllm"}}, MockVLLMAdapter),
        ({"options": {"imitates": "openai"}, "name": "vllm"}, MockOpenAIAdapter),
        ({"base_url": "http://VLLM.local:8000/v1"}, MockVLLMAdapter),
        ({"base_url": "http://localhost:8000/v1"}, MockOpenAIAdapter),
        ({"name": "my-vLLM-1"}, MockVLLMAdapter),
        ({"api_key_env": "UNSET_VARIABLE", "base_url": "no url"}, MockOpenAIAdapter),
    ],
)
def test_the_configuration_chooses_the_mock(
    changes: dict[str, Any], wanted: type[MockAdapter]
) -> None:
    """vLLM's if anything points there, else OpenAI's; neither needs a key or a URL."""
    provider = MockAdapter(ProviderConfig(**{"name": "m", "type": "mock", **changes}))
    assert type(provider) is wanted


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"latenci": 1}, "options.latenci"),
        ({"fault": "explode"}, "options.fault"),
        ({"error_rate": 2}, "options.error_rate"),
        ({"latency": [2, 1]}, "options"),
        ({"script": ["ok", "nope"]}, "options.script"),
        ({"retry_after": "a\r\nb"}, "options"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], place: str) -> None:
    """The message says which provider and which option."""
    with pytest.raises(ConfigurationError, match=f"provider 'm': {place}"):
        mock(**options)


@pytest.mark.parametrize("name", ["m", "m-vllm"])
async def test_an_answer_looks_real(name: str) -> None:
    """Ids, choices, usage; the model is the one that was asked for."""
    provider = mock(name, text="one two three")
    answer = (await provider.chat_completion(chat(), "r")).body
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "some-model"
    assert answer["choices"][0]["message"]["content"] == "one two three"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 3
    assert ("system_fingerprint" in answer) is (name == "m")


@pytest.mark.parametrize("name", ["m", "m-vllm"])
async def test_a_stream_says_what_the_whole_answer_says(name: str) -> None:
    """Role first, then words, the finish, usage if asked for."""
    provider = mock(name, text="one two three")
    chunks = await read(provider, chat(stream_options={"include_usage": True}))
    assert "".join(chunk.text for chunk in chunks) == "one two three"
    assert chunks[0].body["choices"][0]["delta"]["role"] == "assistant"
    assert not chunks[0].commits
    assert chunks[-2].body["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1].body["choices"] == []
    assert chunks[-1].usage is not None
    assert ("usage" in chunks[0].body) is (name == "m")


async def test_continuous_usage_stands_on_every_chunk() -> None:
    """As vLLM's load tools ask for it."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await read(mock("m-vllm"), chat(stream_options=options))
    assert all(chunk.usage is not None for chunk in chunks)


async def test_completions_have_texts() -> None:
    """The older operation, whole and streamed."""
    provider = mock(text="a b")
    request = CompletionRequest("x", prompt="p")
    assert (await provider.call(Operation.COMPLETIONS, request, "r")).text == "a b"
    assert "".join(chunk.text for chunk in await read(provider, request)) == "a b"


async def test_the_length_limit_cuts() -> None:
    """`max_tokens` counts words here, and the finish reason says so."""
    answer = await mock(reply_tokens=50).chat_completion(chat(max_tokens=5), "r")
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_as_many_choices_as_asked_for() -> None:
    """`n` choices, whole and streamed."""
    provider = mock()
    assert len((await provider.chat_completion(chat(n=3), "r"))["choices"]) == 3
    found = {chunk.body["choices"][0]["index"] for chunk in await read(provider, chat(n=3))}
    assert found == {0, 1, 2}


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city", "days"],
        },
    },
}


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
async def test_a_demanded_tool_is_called(choice: object) -> None:
    """The call has the arguments that the schema requires, streamed in pieces."""
    provider = mock()
    request = chat(tools=[TOOL], tool_choice=choice)
    answer = await provider.chat_completion(request, "r")
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "mock", "days": 1}
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    deltas = [chunk.body["choices"][0]["delta"] for chunk in await read(provider, request)]
    pieces = [delta["tool_calls"][0]["function"] for delta in deltas if "tool_calls" in delta]
    assert "".join(piece["arguments"] for piece in pieces) == call["function"]["arguments"]


async def test_a_tool_is_not_called_unasked() -> None:
    """`auto`, and a name that is no tool, get a text."""
    other = {"type": "function", "function": {"name": "other"}}
    for choice in ("auto", None, other):
        answer = await mock().chat_completion(chat(tools=[TOOL], tool_choice=choice), "r")
        assert answer.text


@pytest.mark.parametrize(
    ("given", "count"), [("a", 1), (["a", "b"], 2), ([1, 2, 3], 1), ([[1], [2]], 2)]
)
async def test_embeddings_are_one_for_each_input(given: object, count: int) -> None:
    """Equal inputs have equal vectors, of the length that was asked for."""
    body = {"model": "e", "input": given, "dimensions": 5}
    answer = await mock().call(Operation.EMBEDDINGS, body, "r")
    assert [len(entry["embedding"]) for entry in answer["data"]] == [5] * count
    encoded = await mock().call(Operation.EMBEDDINGS, {**body, "encoding_format": "base64"}, "r")
    vector = struct.unpack("<5f", base64.b64decode(encoded["data"][0]["embedding"]))
    assert vector == pytest.approx(answer["data"][0]["embedding"], abs=1e-6)


async def test_models_are_listed() -> None:
    """The list is the one in the options."""
    assert await mock(models=["a", "b"]).list_models() == ["a", "b"]


async def test_a_dead_mock_lists_nothing() -> None:
    """A fault below HTTP is there for every call."""
    with pytest.raises(ConnectError):
        await mock(fault="refused").list_models()


async def outcomes(provider: MockAdapter, calls: int) -> str:
    told = ""
    for _ in range(calls):
        try:
            await provider.chat_completion(chat(), "r")
        except ProviderError:
            told += "x"
        else:
            told += "."
    return told


async def test_a_script_is_followed() -> None:
    """Call by call, then from the start, or all is well."""
    script = ["ok", "http_500", "refused"]
    assert await outcomes(mock(script=script), 7) == ".xx.xx."
    assert await outcomes(mock(script=script, repeat_script=False), 6) == ".xx..."


async def test_equal_seeds_fail_alike() -> None:
    """The share of failures is as set, and the same for the same seed and name."""
    first = await outcomes(mock(error_rate=0.3, seed=1), 300)
    assert first == await outcomes(mock(error_rate=0.3, seed=1), 300)
    assert first != await outcomes(mock(error_rate=0.3, seed=2), 300)
    assert 55 <= first.count("x") <= 125


async def test_equal_seeds_give_equal_bytes() -> None:
    """Ids and all."""
    one, two = [await mock(seed=4).chat_completion(chat(), "r") for _ in range(2)]
    assert one.raw == two.raw


async def test_calls_are_counted() -> None:
    """Listing models is no call."""
    provider = mock()
    await provider.list_models()
    await outcomes(provider, 3)
    assert provider.calls == 3


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({}, 0, 0),
        ({"latency": 2}, 2, 2),
        ({"latency": [1, 3]}, 1, 3),
        ({"latency": {"mean": 5, "sigma": 0.1}}, 3, 7),
        ({"latency": 1, "time_to_first_token": 2}, 3, 3),
        ({"reply_tokens": 10, "tokens_per_second": 2}, 5, 6),
        ({"latency": 1, "time_to_first_token": 1, "reply_tokens": 10, "tokens_per_second": 10},
         2.9, 3.2),
    ],
)  # fmt: skip
def test_time_passes_as_set(
    options: dict[str, Any], low: float, high: float, virtual_time: Any
) -> None:
    """Whole and streamed answers take the latency, the first token's wait, and their length."""

    async def main() -> None:
        begin = anyio.current_time()
        await mock(**options).chat_completion(chat(), "r")
        middle = anyio.current_time()
        await read(mock(**options))
        assert low <= middle - begin <= high + 1e-6
        assert low <= anyio.current_time() - middle <= high + 1e-6

    virtual_time(main)
