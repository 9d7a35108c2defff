"""The load generator and the upstream speak with each other, and errors are noticed."""

from __future__ import annotations

# The two are protocols of asyncio, run on uvloop.
import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.load import LoadPlan, LoadResult, carry_out
from benchmarks.load_answer import AnswerError, check_answer, read_answer
from benchmarks.upstream import Upstream
from benchmarks.wire import ANSWER, CHUNKS, DONE, event, http_chunk

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n" + ANSWER
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"".join(
    http_chunk(piece) for piece in (*map(event, CHUNKS), event(DONE), b"")
)


@pytest.fixture
def anyio_backend() -> Any:
    """They run on uvloop and nowhere else."""
    return ("asyncio", {"use_uvloop": True})


async def load(server: Callable[[], asyncio.Protocol], **plan: Any) -> LoadResult:
    """Carry out a plan against a server in this very event loop."""
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        port = listening.sockets[0].getsockname()[1]
        fields = {"requests": 12, "connections": 3, "limit": 20.0, **plan}
        return await carry_out(LoadPlan(port=port, **fields))
    finally:
        listening.close()
        await listening.wait_closed()


class Fixed(asyncio.Protocol):
    """Answers everything with the same bytes, and then hangs up if told to."""

    def __init__(self, answer: bytes, *, hang_up: bool = False) -> None:
        self._answer = answer
        self._hang_up = hang_up

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer)
        if self._hang_up:
            self._transport.close()


@pytest.mark.parametrize("kind", [{}, {"streamed": True}, {"streamed": True, "paced": True}])
async def test_load_gets_every_answer(kind: dict[str, bool]) -> None:
    """All requests of a plan are answered, and no answer is wrong."""
    result = await load(Upstream, **kind)
    assert (result.requests, result.errors, result.reasons) == (12, 0, [])
    assert 0 < result.p50 <= result.p99


async def test_load_reads_the_time_of_watched_processes() -> None:
    """The processor time of a process is told under its name."""
    result = await load(Upstream, watched={"me": os.getpid()})
    assert result.cpu["me"] >= 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "the status was not 200"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", "has 1 bytes"),
        (PLAIN + b"more", "longer than it said"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "does not say how long"),
    ],
)
async def test_wrong_answer_is_an_error(answer: bytes, reason: str) -> None:
    """Each wrong answer counts, and the reason is told once."""
    result = await load(lambda: Fixed(answer), warm_up=0, requests=3)
    assert result.errors == 3
    assert reason in result.reasons[0]


async def test_lost_connection_is_an_error() -> None:
    """A connection that is closed in the middle of an answer is noticed."""
    result = await load(lambda: Fixed(PLAIN[:50], hang_up=True), warm_up=0, requests=3)
    assert result.errors == 3
    assert "closed before" in result.reasons[0]


async def test_requests_without_a_connection_are_errors() -> None:
    """Requests that nobody is left to ask are not forgotten."""
    result = await load(lambda: Fixed(b"", hang_up=True), warm_up=0, requests=10)
    assert result.errors == 10
    assert result.requests == 3


async def test_silence_ends_with_the_limit() -> None:
    """A server that never answers does not hold the load generator for ever."""
    result = await load(lambda: Fixed(b""), warm_up=0, limit=0.1)
    assert result.errors == 12
    assert result.requests == 0


async def test_upstream_refuses_what_it_cannot_read() -> None:
    """A body of unknown length is refused, and the connection closed."""
    listening = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    writer.write(b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 411 ")
    writer.close()
    await writer.wait_closed()
    listening.close()
    await listening.wait_closed()


@pytest.mark.parametrize("message", [PLAIN, STREAM])
def test_answer_is_read_from_any_pieces(message: bytes) -> None:
    """An answer is complete at its last byte and not before."""
    assert all(read_answer(message[:size]) is None for size in range(len(message)))
    body = read_answer(message)
    assert body is not None
    check_answer(body, streamed=message is STREAM)


def test_answer_in_garbled_chunks_is_an_error() -> None:
    """A chunk whose size is no number is no answer."""
    with pytest.raises(AnswerError, match="garbled"):
        read_answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("events", "reason"),
    [(CHUNKS, "no end marker"), ((*CHUNKS[1:], DONE), "21 events")],
)
def test_cut_stream_is_an_error(events: tuple[bytes, ...], reason: str) -> None:
    """A stream that lacks an event or its end marker is a wrong answer."""
    with pytest.raises(AnswerError, match=reason):
        check_answer(b"".join(map(event, events)), streamed=True)
