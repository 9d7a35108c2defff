"""An upstream that plays a script in raw bytes on each of its connections."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream

ANSWER: dict[str, Any] = {
    "id": "answer-1",
    "object": "chat.completion",
    "model": "well",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "well"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
WHOLE = json.dumps(ANSWER).encode()
"""A whole answer with the text `well`."""


def event(text: str | None, *, finish: str | None = None) -> bytes:
    """One SSE event with a piece of text, or with the reason of the end."""
    delta = {} if text is None else {"content": text}
    body = {
        "id": "answer-1",
        "object": "chat.completion.chunk",
        "model": "well",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: %b\n\n" % json.dumps(body).encode()


DONE = b"data: [DONE]\n\n"
EVENTS = event("we") + event("ll") + event(None, finish="stop") + DONE
"""A whole stream with the text `well`."""

JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """The data in chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class Peer:
    """The upstream's end of one connection."""

    stream: anyio.abc.ByteStream
    number: int
    requests: list[bytes] = field(default_factory=list)
    _received: bytes = b""

    async def read_head(self) -> bytes:
        """Read up to the blank line; empty if the gateway left instead."""
        while b"\r\n\r\n" not in self._received:
            if not await self._more():
                return b""
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    async def read_request(self) -> bytes:
        """Read one request, head and body; empty if the gateway left instead."""
        head = await self.read_head()
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        while len(self._received) < length:
            if not await self._more():
                return b""
        body, self._received = self._received[:length], self._received[length:]
        if head:
            self.requests.append(head + body)
        return head + body

    async def _more(self) -> bool:
        try:
            self._received += await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return False
        return True

    @property
    def streamed(self) -> bool:
        """Whether the last request asked for a stream."""
        if not self.requests:
            # The gateway has left before its request was whole: nothing will be sent anyway.
            return False
        return b'"stream":true' in self.requests[-1].replace(b" ", b"")

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self.stream.send(data)

    async def answer(
        self,
        body: bytes,
        *,
        status: bytes = b"200 OK",
        head: bytes = b"",
        kind: bytes = b"application/json",
    ) -> None:
        """Send a whole answer with its length."""
        await self.send(
            b"HTTP/1.1 %b\r\ncontent-type: %b\r\n%bcontent-length: %d\r\n\r\n%b"
            % (status, kind, head, len(body), body)
        )

    async def answer_well(self, head: bytes = b"") -> None:
        """Answer as a provider that is well: whole or streamed, as it was asked."""
        if self.streamed:
            start = SSE_HEAD.removesuffix(b"\r\n") + head + b"\r\n"
            await self.send(start + chunk(EVENTS) + LAST_CHUNK)
        else:
            await self.answer(WHOLE, head=head)

    async def hold(self) -> None:
        """Keep the connection, and silence, until the gateway leaves."""
        while await self._more():
            self._received = b""

    async def reset(self) -> None:
        """End the connection with RST."""
        raw = self.stream.extra(anyio.abc.SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()


Script = Callable[[Peer], Awaitable[None]]


async def be_well(peer: Peer) -> None:
    """Answer every request of a connection."""
    while await peer.read_request():
        await peer.answer_well()


_ENDED = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    ConnectionError,
    ssl.SSLError,
)


class Upstream:
    """A server that plays a script on each connection; the connections are kept to look at.

    Args:
        script: What it plays.
        tls: Makes the context with which it speaks TLS; None for plain TCP.
    """

    def __init__(self, script: Script, *, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        self.script = script
        self.peers: list[Peer] = []
        self.open = 0
        self.port = 0
        self._tls = None if tls is None else tls()

    @property
    def requests(self) -> int:
        """Whole requests that it has read."""
        return sum(len(peer.requests) for peer in self.peers)

    async def serve(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Listen until cancelled."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener:
            task_status.started()
            await listener.serve(self._handle)

    async def _handle(self, stream: anyio.abc.SocketStream) -> None:
        self.open += 1
        try:
            async with stream:
                await self._play(stream)
        except _ENDED:
            pass  # the gateway, or the script itself, has ended it
        finally:
            self.open -= 1

    async def _play(self, stream: anyio.abc.ByteStream) -> None:
        if self._tls is not None:
            stream = await TLSStream.wrap(
                stream, server_side=True, ssl_context=self._tls, standard_compatible=False
            )
        peer = Peer(stream, len(self.peers))
        self.peers.append(peer)
        await self.script(peer)


Door = Callable[[], contextlib.AbstractContextManager[int]]
"""Opens a port of which nobody takes connections as the scripted upstream would."""


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A port that is taken, so that nobody else gets it, and refuses all connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.contextmanager
def swallowing() -> Iterator[int]:
    """A port whose backlog is full: the system answers no further connection at all."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
