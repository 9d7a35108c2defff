"""Upstreams that speak raw bytes from threads, and every transport on every backend it supports."""

import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import pytest

from adapters.transports.aiohttp import AiohttpTransport
from adapters.transports.http1 import Http1Transport
from adapters.transports.httpx_pool import HttpxPoolTransport
from adapters.transports.sharing import SharedTransport

PATIENCE_SECONDS = 20.0

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"use_uvloop": False}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),  # a real clock: sockets cannot be hurried
}
TRANSPORTS: dict[str, Callable[..., httpx.AsyncBaseTransport]] = {
    "aiohttp": AiohttpTransport,
    "http1": Http1Transport,
    "httpx_pool": HttpxPoolTransport,
    "shared": SharedTransport,
}
SHIPPED = [
    ("aiohttp", "asyncio"),
    ("aiohttp", "uvloop"),
    ("http1", "asyncio"),
    ("http1", "uvloop"),
    ("httpx_pool", "asyncio"),
    ("httpx_pool", "uvloop"),
    ("httpx_pool", "trio"),
    ("shared", "uvloop"),
    ("shared", "trio"),
]


class Peer:
    """The upstream's end of one connection, driven by a script in a thread."""

    def __init__(self, connection: socket.socket, number: int) -> None:
        self.connection = connection
        self.number = number
        self.requests: list[bytes] = []
        self.sent = 0
        self.closed = threading.Event()
        self.done = threading.Event()
        self.stopped = threading.Event()
        self._received = b""

    def read_head(self) -> bytes:
        """Read up to the blank line; empty if the client left instead."""
        while b"\r\n\r\n" not in self._received:
            data = self.connection.recv(65_536)
            if not data:
                return b""
            self._received += data
        head, self._received = self._received.split(b"\r\n\r\n", 1)
        return head + b"\r\n\r\n"

    def read_request(self) -> bytes:
        """Read head and body, and keep both; empty if the client left instead."""
        head = self.read_head()
        if not head:
            return b""
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        body = bytearray(self._received)
        while len(body) < length:
            data = self.connection.recv(1 << 20)
            if not data:
                break
            body += data
        self._received = bytes(body[length:])
        self.requests.append(head + bytes(body[:length]))
        return self.requests[-1]

    def send(self, data: bytes) -> None:
        """Send all of the data, counting what the client's side takes."""
        view = memoryview(data)
        while view:
            taken = self.connection.send(view[: 1 << 16])
            self.sent += taken
            view = view[taken:]

    def answer(self, body: bytes = b"{}", *, head: bytes = b"HTTP/1.1 200 OK") -> None:
        """Send a whole answer with its length."""
        self.send(head + b"\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    def wait_until_closed(self) -> None:
        """Stay until the client closes or resets the connection."""
        with contextlib.suppress(ConnectionError):
            while self.connection.recv(1 << 20):
                pass
        self.closed.set()

    def hold(self) -> None:
        """Stay without reading anything until the test is over."""
        self.stopped.wait(PATIENCE_SECONDS)

    def reset(self) -> None:
        """Close with RST rather than FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


Script = Callable[[Peer], object]


@dataclass
class Upstream:
    """A listening socket whose every connection runs one script."""

    script: Script
    listener: socket.socket
    peers: list[Peer] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    stopping: bool = False

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        # A name, not an address: cookie jars ignore addresses.
        return f"http://localhost:{self.port}/v1/chat/completions"

    @property
    def requests(self) -> list[bytes]:
        """All whole requests, by connection."""
        return [request for peer in self.peers for request in peer.requests]

    def accept(self) -> None:
        while not self.stopping:
            try:
                connection, _ = self.listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            connection.settimeout(PATIENCE_SECONDS)
            peer = Peer(connection, len(self.peers))
            self.peers.append(peer)
            thread = threading.Thread(target=self.serve, args=(peer,))
            self.threads.append(thread)
            thread.start()

    def serve(self, peer: Peer) -> None:
        with contextlib.suppress(OSError):
            self.script(peer)
        peer.connection.close()
        peer.done.set()

    def stop(self) -> None:
        self.stopping = True
        for peer in self.peers:
            peer.stopped.set()
            with contextlib.suppress(OSError):
                peer.connection.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive()
        self.listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Script], Upstream]]:
    """Start upstreams, one for each script given."""
    running: list[Upstream] = []

    def start(script: Script) -> Upstream:
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        listener.settimeout(0.05)
        upstream = Upstream(script, listener)
        acceptor = threading.Thread(target=upstream.accept)
        acceptor.start()
        upstream.threads.append(acceptor)
        running.append(upstream)
        return upstream

    yield start
    for upstream in running:
        upstream.stop()


@pytest.fixture
def anyio_backend(shipped: tuple[str, str]) -> tuple[str, dict[str, Any]]:
    """Run the test on the backend of its row."""
    return BACKENDS[shipped[1]]


@pytest.fixture(params=SHIPPED, ids="-".join)
def shipped(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Name one transport that we ship and one backend that it supports."""
    row: tuple[str, str] = request.param
    return row


@pytest.fixture
async def transport(shipped: tuple[str, str]) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """Open the transport of the row, and close it."""
    opened = TRANSPORTS[shipped[0]]()
    yield opened
    await opened.aclose()


@pytest.fixture
async def small_transport(shipped: tuple[str, str]) -> AsyncIterator[httpx.AsyncBaseTransport]:
    """Open the transport of the row with 20 slots, and close it."""
    opened = TRANSPORTS[shipped[0]](limit=20)
    yield opened
    await opened.aclose()


Build = Callable[..., httpx.Request]


@pytest.fixture
def build() -> Build:
    """Build requests as the provider adapters do."""

    def request_for(
        url: str,
        *,
        method: str = "POST",
        content: bytes = b'{"model":"m"}',
        headers: list[tuple[bytes, bytes]] | None = None,
        **limits: float,
    ) -> httpx.Request:
        given = [(b"Authorization", b"Bearer sk-secret"), (b"Accept-Encoding", b"identity")]
        return httpx.Request(
            method,
            url,
            headers=given if headers is None else headers,
            content=content,
            extensions={"timeout": limits} if limits else {},
        )

    return request_for


@pytest.fixture
def read_all() -> Callable[[httpx.Response], Awaitable[bytes]]:
    """Read a body as it came off the wire."""

    async def read(response: httpx.Response) -> bytes:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        return b"".join([chunk async for chunk in response.stream])

    return read


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait for what another thread brings about; promptly is within a second."""

    async def wait(condition: Callable[[], bool], *, seconds: float = 1.0) -> None:
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110  # a thread cannot set an anyio.Event
                await anyio.sleep(0.005)

    return wait
