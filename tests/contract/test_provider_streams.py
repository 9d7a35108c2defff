"""Streams, good and bad, as every HTTP adapter reads them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio
import httpx
import pytest

from engine.errors import (
    BrokenError,
    CallerError,
    ContextLengthError,
    MisconfiguredError,
    OverloadedError,
    ProviderError,
    Replay,
    TransientError,
)
from engine.operations import Chunk, CompletionRequest

# What a table says does not depend on the event loop.
TABLE = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return json.dumps({"id": "c", "choices": [choice]}, ensure_ascii=False).encode()


def sse(*events: bytes) -> bytes:
    return b"".join(b"data: " + event + b"\n\n" for event in events)


ROLE = chunk({"role": "assistant", "content": ""})
WORDS = [chunk({"content": "Hé"}), chunk({"content": " 😀"})]
FINISH = chunk({}, "stop")
USAGE = b'{"id":"c","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
STREAM = sse(ROLE, *WORDS, FINISH, USAGE, b"[DONE]")


async def test_a_stream_comes_through_event_by_event(wire: Any) -> None:
    """Every event's bytes pass; the first with output commits; usage passes; DONE ends it."""
    adapter = wire.make(wire.body([STREAM]))
    chunks = await wire.read(adapter, wire.attempt(adapter))
    assert [c.data for c in chunks] == [ROLE, *WORDS, FINISH, USAGE]
    assert [c.commits for c in chunks][:2] == [False, True]
    assert "".join(c.text for c in chunks) == "Hé 😀"
    assert chunks[-1].usage is not None


@TABLE
@pytest.mark.parametrize(
    ("event", "commits"),
    [
        (ROLE, False),
        (chunk({"role": "assistant", "content": None, "tool_calls": []}), False),
        (chunk({"content": "x"}), True),
        (chunk({"reasoning": "x"}), True),
        (chunk({"reasoning_content": "x"}), True),
        (chunk({"tool_calls": [{"index": 0}]}), True),
        (chunk({"refusal": "x"}), True),
        (chunk({}, "length"), True),
        (USAGE, False),
        (b'{"choices":[{"index":0,"text":"x","finish_reason":null}]}', True),
        (b'{"choices":[{"index":0,"text":"","finish_reason":null}]}', False),
        (b'{"choices":[{"index":0,"text":"","finish_reason":"stop"}]}', True),
        (b'{"object":"unknown"}', False),
        (b'{"choices":null,"error":null}', False),
    ],
)
async def test_useful_output_commits(wire: Any, event: bytes, commits: bool) -> None:
    """A role, an empty text and usage commit nobody; everything else does."""
    adapter = wire.make(wire.body([sse(event)]))
    source = adapter.stream(wire.attempt(adapter))
    first = await anext(source)
    assert first.commits is commits
    await source.aclose()


@TABLE
@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
async def test_a_stream_cut_anywhere_never_ends_cleanly(wire: Any, ends: bytes) -> None:
    """Every prefix of a stream is an error, up to the finish of its choice."""
    whole = sse(ROLE, *WORDS, FINISH, b"[DONE]").replace(b"\n", ends)
    finished = whole.index(FINISH) + len(FINISH) + 2 * len(ends)
    told = []
    for at in range(len(whole) + 1):
        adapter = wire.make(wire.body([whole[:at]]))
        try:
            chunks = await wire.read(adapter, wire.attempt(adapter))
        except BrokenError:
            continue
        assert len(chunks) == 4
        told.append(at)
    # Complete are: all choices finished, and the end marker with or without its blank line.
    done = len(whole) - 2 * len(ends)
    assert [at for at in told if at < done] in ([finished], [finished - len(ends) + 1, finished])
    assert told[-1] == len(whole)


@TABLE
async def test_a_connection_lost_anywhere_in_a_stream_is_an_error(wire: Any) -> None:
    """A reset before the end marker is never taken for the end."""
    for lost in (httpx.ReadError("reset"), httpx.RemoteProtocolError("incomplete")):
        for at in range(len(STREAM) - len(b"[DONE]\n\n")):
            error = await wire.failure(wire.make(wire.body([STREAM[:at], lost])), streamed=True)
            assert type(error) is BrokenError


@TABLE
async def test_a_byte_changed_in_a_stream_is_no_crash(wire: Any) -> None:
    """Whatever byte is spoiled, the stream ends or raises one of our errors."""
    for at in range(len(STREAM)):
        adapter = wire.make(wire.body([STREAM[:at] + b"\xff" + STREAM[at + 1 :]]))
        chunks: list[Chunk] = []
        with contextlib.suppress(ProviderError):
            chunks = await wire.read(adapter, wire.attempt(adapter))
        assert all(json.loads(c.data) for c in chunks)


NO_STREAMS: list[list[bytes | Exception]] = [
    [],
    [sse(b"[DONE]")],
    [sse(ROLE, b"[DONE]")],
    [sse(b"not json")],
    [sse(b"[]")],
    [sse(b'{"choices":[{"delta":{"content":"\xff"}}]}')],
    [sse(ROLE, *WORDS, b"garbage", FINISH, b"[DONE]")],
    [sse(ROLE, *WORDS, b'{"cut', FINISH, b"[DONE]")],
    [sse(ROLE, *WORDS, b'{"choices":[{"delta":{"content":"\xff"}}]}', b"[DONE]")],
    [sse(ROLE), b"data: " + b"x" * 2_000_000 + b"\n\n"],
    [sse(ROLE, *WORDS), b"data: ", *[b"x" * 65_536] * 40],
]


@TABLE
@pytest.mark.parametrize("parts", NO_STREAMS)
async def test_a_stream_that_is_none_is_broken(wire: Any, parts: list[bytes | Exception]) -> None:
    """No output, garbage before or after the first output, an event that is too large."""
    error = await wire.failure(wire.make(wire.body(parts)), streamed=True)
    assert type(error) is BrokenError


@TABLE
@pytest.mark.parametrize("kind", ["text/html", "", "text/plain", "application/json"])
async def test_a_stream_needs_its_content_type(wire: Any, kind: str) -> None:
    """A page, a text, or a whole answer in JSON is no stream."""
    raw = b'{"choices":[{}]}' if kind == "application/json" else STREAM
    error = await wire.failure(wire.make(wire.body([raw], kind=kind)), streamed=True)
    assert type(error) is BrokenError


async def test_a_failed_stream_stays_failed(wire: Any) -> None:
    """Reading on after an error never looks like a clean end."""
    adapter = wire.make(wire.body([sse(ROLE, *WORDS)]))
    source = adapter.stream(wire.attempt(adapter))
    for _ in range(3):
        await anext(source)
    for _ in range(3):
        with pytest.raises(BrokenError):
            await anext(source)
    await source.aclose()


async def test_a_closed_stream_does_not_look_complete(wire: Any) -> None:
    """Reading after `aclose` raises."""
    adapter = wire.make(wire.body([STREAM]))
    source = adapter.stream(wire.attempt(adapter))
    await anext(source)
    await source.aclose()
    await source.aclose()
    with pytest.raises(BrokenError):
        await anext(source)


async def test_the_end_without_a_marker_is_clean_after_every_finish(wire: Any) -> None:
    """Servers that send no `[DONE]` are understood, but all choices must have finished."""
    one, two = chunk({"content": "a"}), chunk({"content": "b"}, index=1)
    both = [sse(one, two, chunk({}, "stop"), chunk({}, "stop", index=1))]
    adapter = wire.make(wire.body(both))
    assert len(await wire.read(adapter, wire.attempt(adapter, wire.chat(n=2)))) == 4
    adapter = wire.make(wire.body([sse(one, two, chunk({}, "stop"))]))
    with pytest.raises(BrokenError):
        await wire.read(adapter, wire.attempt(adapter, wire.chat(n=2)))


async def test_prompts_of_one_completion_are_counted(wire: Any) -> None:
    """A list of prompts has as many choices as prompts, a list of tokens one."""

    def text(index: int) -> bytes:
        choice = {"index": index, "text": "a", "finish_reason": "stop"}
        return json.dumps({"choices": [choice]}).encode()

    for prompt, events, complete in (
        (["a", "b"], [text(0)], False),
        (["a", "b"], [text(0), text(1)], True),
        ([1, 2, 3], [text(0)], True),
        ([[1], [2]], [text(0)], False),
    ):
        adapter = wire.make(wire.body([sse(*events)]))
        attempt = wire.attempt(adapter, CompletionRequest("public", prompt=prompt))
        if complete:
            assert len(await wire.read(adapter, attempt)) == len(events)
        else:
            with pytest.raises(BrokenError):
                await wire.read(adapter, attempt)


async def test_nothing_is_read_after_the_end_marker(wire: Any) -> None:
    """A second marker, more events and garbage are ignored."""
    adapter = wire.make(wire.body([STREAM + sse(b"garbage", FINISH, b"[DONE]")]))
    assert len(await wire.read(adapter, wire.attempt(adapter))) == 5


async def test_empty_and_commented_events_are_passed_over(wire: Any) -> None:
    """Keep-alives of every kind leave no chunk."""
    noise = b": ping\n\ndata:\n\nid: 1\n\nevent: ping\n\n"
    adapter = wire.make(
        wire.body([noise + sse(ROLE) + noise + sse(*WORDS) + noise + sse(FINISH, b"[DONE]")])
    )
    assert len(await wire.read(adapter, wire.attempt(adapter))) == 4


async def test_the_body_is_finished_after_the_marker(wire: Any) -> None:
    """The rest of the body is read, so that the connection can be used again."""
    taken: list[bytes] = []

    def parts() -> Iterable[bytes]:
        for part in (STREAM, b"\n", b"end"):
            taken.append(part)
            yield part

    adapter = wire.make(wire.body(parts()))
    await wire.read(adapter, wire.attempt(adapter))
    assert taken[-1] == b"end"


async def test_a_body_that_never_ends_after_the_marker_is_cut(wire: Any) -> None:
    """The answer is complete at once; the connection is given up soon."""

    class Open(httpx.AsyncByteStream):
        closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield STREAM
            await anyio.sleep_forever()

        async def aclose(self) -> None:
            self.closed = True

    body = Open()
    headers = {"content-type": "text/event-stream"}
    adapter = wire.make(lambda _: httpx.Response(200, headers=headers, stream=body))
    with anyio.fail_after(5):
        assert len(await wire.read(adapter, wire.attempt(adapter))) == 5
    assert body.closed


async def test_closing_early_cuts_the_connection(wire: Any) -> None:
    """A caller that leaves does not wait for the rest."""
    body = wire.Parts([sse(ROLE, *WORDS)] * 1_000)
    headers = {"content-type": "text/event-stream"}
    adapter = wire.make(lambda _: httpx.Response(200, headers=headers, stream=body))
    source = adapter.stream(wire.attempt(adapter))
    await anext(source)
    await source.aclose()
    assert body.closed


async def test_nothing_is_sent_before_the_first_read(wire: Any) -> None:
    """A stream that is made and closed costs the upstream nothing."""
    adapter = wire.make(wire.raising(AssertionError()))
    source = adapter.stream(wire.attempt(adapter))
    await source.aclose()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("where", ["headers", "body"])
async def test_cancelling_cuts_the_connection(wire: Any, where: str, streamed: bool) -> None:
    """Cancelled before the headers or in the body, the call is over and the body closed."""
    closed: list[str] = []

    class Hanging(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"data: "
            await anyio.sleep_forever()

        async def aclose(self) -> None:
            closed.append("body")

    class Transport(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if where == "headers":
                try:
                    await anyio.sleep_forever()
                finally:
                    closed.append("headers")
            kind = "text/event-stream" if streamed else "application/json"
            return httpx.Response(200, headers={"content-type": kind}, stream=Hanging())

    adapter = wire.make(Transport())
    with anyio.move_on_after(0.05) as scope:
        if streamed:
            await wire.read(adapter, wire.attempt(adapter))
        else:
            await adapter.send(wire.attempt(adapter))
    assert scope.cancelled_caught
    assert closed == [where]


async def test_streams_ask_for_the_close_while_it_may_be_llamacpp(wire: Any) -> None:
    """Only a server that may be llama.cpp's is asked, and no longer once it shows its name."""
    asked: list[str | None] = []
    names = ["llama.cpp", "llama.cpp", "uvicorn", "uvicorn"]

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers.get("connection"))
        headers = {"content-type": "text/event-stream", "server": names[len(asked) - 1]}
        return httpx.Response(200, headers=headers, stream=wire.Parts([STREAM]))

    adapter = wire.make(handle)
    for _ in names:
        await wire.read(adapter, wire.attempt(adapter))
    closing = adapter.config.type == "openai_compatible"
    assert asked == (["close"] * 3 + [None] if closing else [None] * 4)


INSIDE = [
    ({"message": "m", "type": "server_error"}, TransientError, Replay.MAYBE_ACCEPTED),
    ({"message": "m", "code": 503}, OverloadedError, Replay.NOT_ACCEPTED),
    ({"message": "m", "code": "429"}, OverloadedError, Replay.NOT_ACCEPTED),
    ({"message": "m", "code": "rate_limit_exceeded"}, OverloadedError, Replay.NOT_ACCEPTED),
    ({"message": "m", "type": "authentication_error"}, MisconfiguredError, Replay.NOT_ACCEPTED),
    ({"message": "m", "type": "BadRequestError", "code": 400}, CallerError, Replay.NOT_ACCEPTED),
    ({"message": "m", "code": "context_length_exceeded", "status": 400}, ContextLengthError,
     Replay.NOT_ACCEPTED),
    ({"message": "m"}, TransientError, Replay.MAYBE_ACCEPTED),
    ("broke", TransientError, Replay.MAYBE_ACCEPTED),
]  # fmt: skip


@TABLE
@pytest.mark.parametrize(("inside", "wanted", "replay"), INSIDE)
async def test_an_error_inside_200_is_classified(
    wire: Any, inside: object, wanted: type[ProviderError], replay: Replay
) -> None:
    """An error object counts as the error it tells, wherever it stands."""
    raw = json.dumps({"error": inside}).encode()
    for streamed, handle in (
        (False, wire.body([raw], kind="application/json")),
        (True, wire.body([raw], kind="application/json")),
        (True, wire.body([sse(ROLE, raw)])),
        (True, wire.body([b"event: error\n" + sse(json.dumps(inside).encode())])),
        (True, wire.body([sse(ROLE, *WORDS, raw)])),
    ):
        error = await wire.failure(wire.make(handle), streamed=streamed)
        assert type(error) is wanted
        assert error.replay is replay
