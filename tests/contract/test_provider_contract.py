"""What every HTTP adapter sends, and which answers it takes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from adapters.providers.mock import MockOpenAIAdapter, MockVLLMAdapter
from adapters.providers.openai import OpenAIAdapter
from adapters.providers.vllm import VLLMAdapter
from engine.attempt import Attempt
from engine.errors import (
    BrokenError,
    Replay,
    SilentError,
    TransientError,
)
from engine.operations import ChatRequest, CompletionRequest, EmbeddingRequest, Request

KEY = "sk-canary-0123456789abcdef"
HOST = "canary-host.internal"

# What a table says does not depend on the event loop.
TABLE = pytest.mark.parametrize("anyio_backend", ["asyncio"])

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "upstream-model",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hé😀"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    "field_of_tomorrow": {"big": 12345678901234567890},
}


SHORT_STREAM = b"""\
data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}

data: [DONE]

"""


def test_every_http_adapter_is_here() -> None:
    """The mocks are the real adapters, so they need no cases of their own."""
    assert issubclass(MockOpenAIAdapter, OpenAIAdapter)
    assert issubclass(MockVLLMAdapter, VLLMAdapter)


async def test_an_answer_comes_back_whole(wire: Any) -> None:
    """Fields that we do not know pass, and so do the very bytes."""
    raw = json.dumps(CHAT, indent=2).encode()
    response = await wire.make(wire.body([raw[:7], raw[7:]], kind="application/json")).send(
        wire.attempt(wire.make(wire.raising(Exception())))
    )
    assert response.body == CHAT
    assert response.raw == raw
    assert response.text == "Hé😀"


async def test_only_what_is_allowed_is_sent(wire: Any) -> None:
    """The upstream gets the body changed in `model`, and our headers only."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=CHAT)

    raw = b'{ "x_new": 1.50,"model":"public", "messages":[] , "stream" :false}'
    request = ChatRequest.from_body(json.loads(raw), raw)
    adapter = wire.make(handle)
    traces = {
        "traceparent": "00-1-2-01",
        "Authorization": "Bearer stolen",
        "x-bad": "a\r\nb",
        "bad name": "x",
    }
    await adapter.send(wire.attempt(adapter, request, trace_headers=traces))
    [sent] = seen
    assert sent.content == raw.replace(b'"public"', b'"upstream-model"')
    assert str(sent.url) == f"https://{HOST}/v1/chat/completions"
    agent = sent.headers.pop("user-agent")
    assert agent.startswith("sre-inference-gateway/")
    assert dict(sent.headers) == {
        "host": HOST,
        "authorization": f"Bearer {KEY}",
        "content-type": "application/json",
        "content-length": str(len(sent.content)),
        "accept": "application/json",
        "accept-encoding": "identity",
        "x-request-id": "req-1",
        "traceparent": "00-1-2-01",
    }
    assert sent.extensions["timeout"]["connect"] == adapter.config.timeouts.connect


async def test_a_request_id_cannot_break_out_of_its_header(wire: Any) -> None:
    """Line breaks and letters that no header can carry are replaced."""
    seen: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["x-request-id"])
        return httpx.Response(200, json=CHAT)

    adapter = wire.make(handle)
    for bad in ("a\r\nx-evil: 1", "é", "x" * 1_000):
        await adapter.chat_completion(wire.chat(), bad)
    assert seen == ["a-x-evil:-1", "-", "x" * 128]


@TABLE
@pytest.mark.parametrize(
    ("request_", "path"),
    [
        (CompletionRequest("public", prompt="a"), "/v1/completions"),
        (EmbeddingRequest("public", input="a"), "/v1/embeddings"),
    ],
)
async def test_each_operation_has_its_path(wire: Any, request_: Request, path: str) -> None:
    """Completions and embeddings go where the API has them."""

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.path == path
        assert json.loads(request.content)["model"] == "upstream-model"
        return httpx.Response(200, json={"choices": [{}], "data": [{}]})

    adapter = wire.make(handle)
    assert (await adapter.send(wire.attempt(adapter, request_))).body["data"] == [{}]


async def test_stream_is_set_as_the_call_needs_it(wire: Any) -> None:
    """A body that says otherwise is corrected, one that says it already is not touched."""
    seen: list[Any] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content).get("stream"))
        return httpx.Response(500)

    adapter = wire.make(handle)
    for request in (wire.chat(), wire.chat(stream=True)):
        for call in (adapter.send, lambda attempt: wire.read(adapter, attempt)):
            with pytest.raises(TransientError):
                await call(wire.attempt(adapter, request))
    assert seen == [None, True, False, True]


async def test_headers_received_is_told(wire: Any) -> None:
    """The engine hears of the headers before the body is read."""

    class Told(Attempt):
        __slots__ = ("told",)

        def headers_received(self) -> None:
            self.told = True

    for streamed, handle in ((False, wire.body([], status=500)), (True, wire.body([SHORT_STREAM]))):
        adapter = wire.make(handle)
        attempt = Told(wire.chat(), "m", "r", timeouts=adapter.config.timeouts)
        if streamed:
            await wire.read(adapter, attempt)
        else:
            with pytest.raises(TransientError):
                await adapter.send(attempt)
        assert attempt.told


async def test_models_are_listed(wire: Any) -> None:
    """`GET /models` without a body; entries that are none are passed over."""

    def handle(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.url.path) == ("GET", "/v1/models")
        assert "content-type" not in request.headers
        return httpx.Response(200, json={"data": [{"id": "a"}, {"x": 1}, 3, {"id": "b"}]})

    assert await wire.make(handle).list_models() == ["a", "b"]


async def test_a_list_of_models_that_is_none_is_broken(wire: Any) -> None:
    """An answer without a list is an error like any other."""
    with pytest.raises(BrokenError):
        await wire.make(lambda _: httpx.Response(200, json={"data": 1})).list_models()


RAW = json.dumps(CHAT).encode()
NO_ANSWERS: list[tuple[str, list[bytes | Exception]]] = [
    ("text/html", [b"<html>"]),
    ("application/json", [b"<html>"]),
    ("application/json", [b""]),
    ("application/json", []),
    ("application/json", [b"[]"]),
    ("application/json", [b"null"]),
    ("application/json", [b"{}"]),
    ("application/json", [b'{"choices":[]}']),
    ("application/json", [b'{"choices":[1]}']),
    ("application/json", [b'{"choices":[{"x":NaN}]}']),
    ("application/json", [b'\xff{"choices":[{}]}']),
    ("application/json", [b"[" * 100_000]),
    ("text/plain", [RAW]),
    ("", [RAW]),
    ("text/event-stream", [b"data: " + RAW + b"\n\n"]),
    ("application/json", [RAW[:50], httpx.RemoteProtocolError("incomplete")]),
    ("application/json", [RAW[:50], httpx.ReadError("reset")]),
]


@TABLE
@pytest.mark.parametrize(("kind", "parts"), NO_ANSWERS)
async def test_200_that_is_no_answer_is_broken(
    wire: Any, kind: str, parts: list[bytes | Exception]
) -> None:
    """Not JSON, no object, no choices, cut, or the wrong content type."""
    error = await wire.failure(wire.make(wire.body(parts, kind=kind)))
    assert type(error) is BrokenError
    assert error.replay is Replay.MAYBE_ACCEPTED


@TABLE
async def test_an_answer_cut_anywhere_is_broken(wire: Any) -> None:
    """No prefix of an answer passes for the answer."""
    for at in range(len(RAW)):
        error = await wire.failure(wire.make(wire.body([RAW[:at]], kind="application/json")))
        assert type(error) is BrokenError


async def test_a_compressed_answer_is_broken(wire: Any) -> None:
    """Compression was not asked for, and a bomb is not unpacked."""
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    adapter = wire.make(lambda _: httpx.Response(200, headers=headers, stream=wire.Parts([b"x"])))
    assert type(await wire.failure(adapter)) is BrokenError


async def test_a_huge_answer_is_given_up(wire: Any) -> None:
    """Beyond fifty megabytes nothing is read, and the connection is cut."""
    body = wire.Parts(b" " * 1_048_576 for _ in range(10_000))
    headers = {"content-type": "application/json"}
    error = await wire.failure(
        wire.make(lambda _: httpx.Response(200, headers=headers, stream=body))
    )
    assert type(error) is BrokenError
    assert body.closed


async def test_silence_in_a_body_is_silence(wire: Any) -> None:
    """A read time-out after the headers is no cut."""
    parts: list[bytes | Exception] = [RAW[:50], httpx.ReadTimeout("x")]
    error = await wire.failure(wire.make(wire.body(parts, kind="application/json")))
    assert type(error) is SilentError


async def test_the_key_is_in_no_repr(wire: Any) -> None:
    """Neither the adapter nor what it holds shows the key."""
    adapter = wire.make(lambda _: httpx.Response(200, json=CHAT))
    await adapter.chat_completion(wire.chat(), "r")
    shown = f"{adapter!r} {adapter} {vars(adapter)}"
    assert wire.KEY not in shown
