"""An upstream in the benchmark's own process, whose answers can be as bad as is wanted.

It shares the clock and the event loop with the callers, so that "when did the upstream see
that the caller has gone" is one subtraction. It understands only what the gateway sends it:
HTTP/1.1 with a Content-Length.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc

from benchmarks.wire import ANSWER, CHUNKS, DONE, event, http_chunk

LARGEST_REQUEST = 1_048_576
"""Bytes kept of a request that is not complete; a connection that sends more is closed."""

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = http_chunk(b"")
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
ERROR = json.dumps({"error": {"message": "the engine is gone", "type": "server_error"}}).encode()

_LEFT = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    ConnectionError,
)


class LeftError(Exception):
    """The gateway closed the connection."""


class Exchange:
    """One request, and the means to answer it well or badly.

    Args:
        stream: The connection.
        body: What was asked.
    """

    def __init__(self, stream: anyio.abc.SocketStream, body: bytes) -> None:
        self._stream = stream
        self.streamed = b'"stream":true' in body.replace(b" ", b"")

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self._stream.send(data)

    async def answer(
        self, body: bytes, *, status: str = "200 OK", kind: str = "application/json"
    ) -> None:
        """Send an answer of one piece."""
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        await self.send(head.encode("ascii") + body)

    async def hold(self) -> None:
        """Say nothing more until the gateway leaves.

        Raises:
            LeftError: When it does.
        """
        while True:
            try:
                await self._stream.receive()
            except _LEFT:
                raise LeftError from None

    async def reset(self) -> None:
        """End the connection with RST.

        Raises:
            LeftError: Always, since there is nobody left to answer.
        """
        raw = self._stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - not Django's
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise LeftError


Behaviour = Callable[[Exchange], Awaitable[None]]
"""Answers one request; raises `LeftError` to end the connection."""


class ScriptedUpstream:
    """Answers requests as its behaviour says, which may be changed at any time.

    Args:
        behaviour: How.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.port = 0
        self.asked = 0
        self.closed_at = 0.0
        self._open: set[anyio.abc.SocketStream] = set()

    @property
    def url(self) -> str:
        """The base URL for a provider of type `openai_compatible`."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def open(self) -> int:
        """Connections that are open."""
        return len(self._open)

    async def close_connections(self) -> None:
        """Close every connection, as a server does that has had enough of idle ones."""
        for stream in tuple(self._open):
            await stream.aclose()

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Listen until cancelled."""
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            self.port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610
            task_status.started()
            await listener.serve(self._serve_connection)

    async def _serve_connection(self, stream: anyio.abc.SocketStream) -> None:
        self._open.add(stream)
        try:
            async with stream:
                async for body in _requests(stream):
                    self.asked += 1
                    await self.behaviour(Exchange(stream, body))
        except (*_LEFT, LeftError):
            # What ended it is counted by who asked; here only the instant matters.
            self.closed_at = time.perf_counter()
        finally:
            self._open.discard(stream)


async def _requests(stream: anyio.abc.SocketStream) -> AsyncIterator[bytes]:
    """Bodies of the requests of a connection, until it is closed."""
    received = b""
    while len(received) <= LARGEST_REQUEST:
        head, found, rest = received.partition(b"\r\n\r\n")
        length = _content_length(head) if found else 0
        if found and len(rest) >= length:
            received = rest[length:]
            yield rest[:length]
            continue
        try:
            received += await stream.receive()
        except _LEFT:
            return


def _content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


@asynccontextmanager
async def serving(*upstreams: ScriptedUpstream) -> AsyncIterator[None]:
    """Let upstreams listen while the context lasts."""
    async with anyio.create_task_group() as group:
        for upstream in upstreams:
            await group.start(upstream.serve)
        try:
            yield
        finally:
            group.cancel_scope.cancel()


# ── behaviours ───────────────────────────────────────────────────────────────────


def well(*, latency: float = 0.0, gap: float = 0.0) -> Behaviour:
    """Answer as it should be.

    Args:
        latency: Seconds before the answer.
        gap: Seconds between two events of a stream.
    """

    async def behave(exchange: Exchange) -> None:
        if latency:
            await anyio.sleep(latency)
        if not exchange.streamed:
            await exchange.answer(ANSWER)
            return
        pieces = [http_chunk(event(chunk)) for chunk in (*CHUNKS, DONE)]
        if not gap:
            await exchange.send(STREAM_HEAD + b"".join(pieces) + LAST_CHUNK)
            return
        await exchange.send(STREAM_HEAD)
        for piece in pieces:
            await exchange.send(piece)
            await anyio.sleep(gap)
        await exchange.send(LAST_CHUNK)

    return behave


def status(words: str) -> Behaviour:
    """Answer with a status such as `500 Internal Server Error`."""

    async def behave(exchange: Exchange) -> None:
        await exchange.answer(ERROR, status=words)

    return behave


async def html(exchange: Exchange) -> None:
    """Answer 200 with a page for people, as a proxy in between does."""
    await exchange.answer(HTML, kind="text/html")


async def reset(exchange: Exchange) -> None:
    """Take the whole request, and end the connection with RST."""
    await exchange.reset()


async def error_first(exchange: Exchange) -> None:
    """Answer 200, and then an error: as the first event, or as the answer of one piece."""
    if exchange.streamed:
        await exchange.send(STREAM_HEAD + http_chunk(event(ERROR)) + LAST_CHUNK)
    else:
        await exchange.answer(ERROR)


async def silent(exchange: Exchange) -> None:
    """Take the whole request, and say nothing."""
    await exchange.hold()


async def silent_after_events(exchange: Exchange) -> None:
    """Begin a stream, and then say nothing."""
    first = b"".join(http_chunk(event(chunk)) for chunk in CHUNKS[:3])
    await exchange.send(STREAM_HEAD + first)
    await exchange.hold()


async def cut(exchange: Exchange) -> None:
    """Begin an answer, and reset the connection in the middle of it."""
    if exchange.streamed:
        first = b"".join(http_chunk(event(chunk)) for chunk in CHUNKS[:3])
        await exchange.send(STREAM_HEAD + first)
    else:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        await exchange.send(head % len(ANSWER) + ANSWER[:100])
    # A reset at once would drop what the system has not sent yet.
    await anyio.sleep(0.005)
    await exchange.reset()
