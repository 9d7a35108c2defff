"""The adapter that starts its own llama.cpp server, with the tiny model of `tests/data`."""

from __future__ import annotations

import os
import pathlib
import signal
import sys
from typing import Any

import anyio
import pytest

from adapters.providers import llamacpp_server
from adapters.providers.llamacpp import LlamaCppAdapter
from engine.attempt import Attempt
from engine.config import ProviderConfig
from engine.errors import CallerError, ConfigurationError, ConnectError, ContextLengthError
from engine.operations import ChatRequest, Operation

TINY_MODEL = pathlib.Path(__file__).parents[1] / "data" / "tiny-chat.gguf"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """The adapter adds threads and processes to what the others do, and no loop's specials."""
    return request.param


def tiny(**options: Any) -> LlamaCppAdapter:
    options = {"model": str(TINY_MODEL), "threads": 1, "context_tokens": 256, **options}
    return LlamaCppAdapter(
        ProviderConfig(name="local", type="llamacpp", timeout=60, options=options)
    )


def question(text: str = "Weather in harbour?", **fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": text}]
    return ChatRequest("any", messages, temperature=0, max_tokens=12, **fields)


async def test_a_real_model_answers_and_streams() -> None:
    """Models, a whole answer, a stream with usage, and errors of the caller's, in one start."""
    async with tiny(alias="tiny") as provider:
        assert await provider.list_models() == ["tiny"]
        answer = await provider.chat_completion(question(), "req-1")
        assert answer.text
        assert answer["usage"]["completion_tokens"] > 0

        request = question(stream=True, stream_options={"include_usage": True})
        source = provider.stream(
            Attempt(request, "any", "req-2", timeouts=provider.config.timeouts)
        )
        chunks = [chunk async for chunk in source]
        await source.aclose()
        assert "".join(chunk.text for chunk in chunks) == answer.text
        assert chunks[-1].usage is not None

        with pytest.raises(ContextLengthError):
            await provider.chat_completion(question("word " * 2_000), "req-3")
        with pytest.raises(CallerError) as caught:
            await provider.chat_completion(question(n="many"), "req-4")
        assert caught.value.status == 400


async def test_a_call_right_after_a_stream_is_not_lost() -> None:
    """llama.cpp closes a stream's connection unannounced, so nobody may use it again."""
    async with tiny() as provider:
        for _ in range(5):
            source = provider.stream(
                Attempt(question(), "any", "r", timeouts=provider.config.timeouts)
            )
            assert [chunk async for chunk in source]
            await source.aclose()
            assert (await provider.chat_completion(question(), "r")).text


async def test_embeddings_come_when_asked_for() -> None:
    """Only then is the operation offered."""
    assert Operation.EMBEDDINGS not in tiny().operations
    async with tiny(embeddings=True, pooling="mean") as provider:
        assert provider.operations == {*Operation}
        body = {"model": "any", "input": ["the red boat", "a lamp"]}
        answer = await provider.call(Operation.EMBEDDINGS, body, "req-1")
        assert [len(entry["embedding"]) for entry in answer["data"]] == [128, 128]


async def test_equal_providers_share_a_server_that_the_last_one_stops() -> None:
    """Closing one leaves the other working."""
    first, second = tiny(), tiny()
    async with second:
        async with first:
            assert first.base_url == second.base_url
        assert (await second.chat_completion(question(), "req-1")).text
        with pytest.raises(ConnectError, match="closed"):
            await first.chat_completion(question(), "req-2")


async def test_it_starts_at_the_first_call_and_again_after_a_crash() -> None:
    """Nobody must call `start`, and a dead server is replaced at the next call."""
    provider = tiny()
    try:
        assert (await provider.chat_completion(question(), "req-1")).text
        lease = provider._server
        assert lease is not None
        assert lease.server.pid is not None
        os.kill(lease.server.pid, signal.SIGKILL)
        with anyio.fail_after(10):
            while lease.is_running:  # noqa: ASYNC110 - a process gives no event
                await anyio.sleep(0.01)
        assert (await provider.chat_completion(question(), "req-2")).text
    finally:
        await provider.aclose()


async def test_many_first_calls_start_one_server() -> None:
    """Calls that come while it loads wait for the same server."""
    provider = tiny(parallel=4)
    answers: list[str] = []

    async def ask() -> None:
        answers.append((await provider.chat_completion(question(), "r")).text)

    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(ask)
    finally:
        await provider.aclose()
    assert len(set(answers)) == 1
    assert len(answers) == 4


async def test_a_cancelled_start_leaves_nothing() -> None:
    """The next start begins anew and works."""
    provider = tiny()
    with anyio.move_on_after(0.05):
        await provider.start()
    await provider.aclose()
    async with provider:
        assert (await provider.chat_completion(question(), "r")).text


@pytest.mark.parametrize("content", [None, b"GIF89a", b"GGUF but no model"])
async def test_a_file_that_is_no_model_is_refused(
    content: bytes | None, tmp_path: pathlib.Path
) -> None:
    """Starting says what is wrong; a call says that the provider cannot be reached."""
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    provider = tiny(model=str(path))
    with pytest.raises(ConfigurationError, match=r"model\.gguf"):
        await provider.start()
    with pytest.raises(ConnectError) as caught:
        await provider.chat_completion(question(), "r")
    assert str(tmp_path) not in str(caught.value)
    await provider.aclose()


async def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `xllamacpp` the start says how to install it."""
    monkeypatch.setattr(llamacpp_server, "_PACKAGE", "no_such_package_of_ours")
    with pytest.raises(ConfigurationError, match="pip install"):
        await tiny().start()


def test_making_one_looks_at_nothing() -> None:
    """The file need not exist, and the native package is not imported."""
    tiny(model="/no/such/file.gguf")
    assert "xllamacpp" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_url": "http://127.0.0.1:1/v1"}, "leave base_url out"),
        ({"options": {"modell": "x"}}, "options.modell"),
        ({"options": {"parallel": 0}}, "options.parallel"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    """A URL of its own and unknown options are mistakes."""
    config = ProviderConfig(**{"name": "local", "type": "llamacpp", **changes})
    with pytest.raises(ConfigurationError, match=words):
        LlamaCppAdapter(config)
