"""A very cheap upstream: fixed answers in bytes, so that what is measured is the gateway.

Run as a process of its own: `python -m benchmarks.upstream`. It prints the port it listens on
and ends when its standard input is closed. It understands only what the gateway sends it:
HTTP/1.1 with a Content-Length.
"""

from __future__ import annotations

# uvloop is an asyncio event loop, and its protocols are the cheapest way to move bytes.
import asyncio
import os
import re
import sys
from typing import cast

import uvloop

from benchmarks.wire import (
    ANSWER,
    CHUNKS,
    DONE,
    EVENT_GAP,
    PACED_MODEL,
    event,
    http_chunk,
)

LARGEST_REQUEST = 1_048_576
"""Bytes kept of a request that is not complete; a connection that sends more is closed."""

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_STREAMED = re.compile(rb'"stream"\s*:\s*true')
_PACED = PACED_MODEL.encode()

_MODELS = b'{"object":"list","data":[{"id":"benchmark-model","object":"model"}]}'


def _with_length(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


_PLAIN = _with_length(ANSWER)
_LIST = _with_length(_MODELS)
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_PIECES = (
    *(http_chunk(event(chunk)) for chunk in CHUNKS),
    http_chunk(event(DONE)) + http_chunk(b""),
)
_STREAM = _STREAM_HEAD + b"".join(_PIECES)
_REFUSAL = b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # uvloop's transports have the methods, but not the base class.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Stop a stream that nobody reads."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._received += data
        while self._transport is not None and (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[: end + 2]
            found = _CONTENT_LENGTH.search(head)
            if found is None and not head.startswith(b"GET "):
                self._transport.write(_REFUSAL)
                self._transport.close()
                return
            complete = end + 4 + (int(found[1]) if found else 0)
            if len(self._received) < complete:
                break
            body = self._received[end + 4 : complete]
            self._received = self._received[complete:]
            self._answer(body)
        if len(self._received) > LARGEST_REQUEST and self._transport is not None:
            self._transport.close()

    def _answer(self, body: bytes) -> None:
        assert self._transport is not None
        if not body:
            self._transport.write(_LIST)
        elif not _STREAMED.search(body):
            self._transport.write(_PLAIN)
        elif _PACED in body:
            self._transport.write(_STREAM_HEAD)
            self._pace(0, asyncio.get_running_loop().time())
        else:
            self._transport.write(_STREAM)

    def _pace(self, index: int, due: float) -> None:
        if self._transport is None:
            return
        self._transport.write(_PIECES[index])
        if index + 1 < len(_PIECES):
            # By the plan and not by the clock: a late event does not delay all that follow.
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(due + EVENT_GAP, self._pace, index + 1, due + EVENT_GAP)


async def serve() -> None:
    """Serve until standard input is closed."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()

    def read_input() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            closed.set()

    server = await loop.create_server(Upstream, "127.0.0.1", 0, backlog=1024)
    try:
        loop.add_reader(sys.stdin.fileno(), read_input)
        print(server.sockets[0].getsockname()[1], flush=True)
        await closed.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
        server.close()


if __name__ == "__main__":
    uvloop.run(serve())
