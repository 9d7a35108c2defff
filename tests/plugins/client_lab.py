"""Clients that misbehave, between a real gateway and an upstream that waits for its end."""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import anyio
import anyio.abc
from raw_upstream import SSE_HEAD, Peer, Script, Upstream, chunk, event
from running_gateway import HELLO, RunningGateway, run_gateway

GENEROUS = 2.0
"""Seconds within which anything prompt has happened, also on a busy machine."""

STREAMED: dict[str, Any] = {**HELLO, "stream": True}
MOCK: dict[str, Any] = {"providers": [{"name": "mock", "type": "mock"}]}

Use = Callable[[RunningGateway, Upstream], Awaitable[None]]


async def keep_silent(peer: Peer) -> None:
    """Take the request, and never say a word."""
    await peer.read_request()
    await peer.hold()


async def begin_a_stream(peer: Peer) -> None:
    """Send the first event, with the tokens so far, and never go on."""
    await peer.read_request()
    first = event("we").rstrip(b"\n").removesuffix(b"}")
    usage = b', "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}}\n\n'
    await peer.send(SSE_HEAD + chunk(first + usage))
    await peer.hold()


class Flood:
    """A stream without end, as fast as it is taken.

    Attributes:
        sent: Bytes that were taken so far.
    """

    def __init__(self) -> None:
        self.sent = 0

    async def __call__(self, peer: Peer) -> None:
        """Play it on one connection."""
        await peer.read_request()
        await peer.send(SSE_HEAD)
        part = chunk(event("x" * 32_000))
        while True:
            await peer.send(part)
            self.sent += len(part)

    async def has_stopped(self) -> None:
        """Wait until nothing more is taken."""
        before = -1
        with anyio.fail_after(20):
            while self.sent != before or not before:
                before = self.sent
                await anyio.sleep(0.3)


async def with_client(
    script: Script,
    use: Use,
    *,
    provider: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    user_timeout: float = 30.0,
    **config: Any,
) -> None:
    """Run `use` with a gateway and, behind it, an upstream that plays the script.

    Args:
        script: What the upstream does on each connection.
        use: What the client does.
        provider: Further settings of the provider.
        changes: Settings of the gateway's server.
        user_timeout: Of the gateway's sockets, seconds.
        config: Further parts of the configuration.
    """
    upstream = Upstream(script)

    async def serve(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        await upstream.serve(task_status=task_status)

    async with anyio.create_task_group() as group:
        await group.start(serve)
        one = {
            "name": "one",
            "type": "openai_compatible",
            "base_url": f"http://127.0.0.1:{upstream.port}/v1",
            **(provider or {}),
        }
        await run_gateway(
            {"providers": [one], **config},
            lambda gateway: use(gateway, upstream),
            changes=changes,
            user_timeout=user_timeout,
        )
        group.cancel_scope.cancel()


class Stopwatch:
    """How long something takes; printed, because no test should fail for a slow machine."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def show(self, what: str) -> None:
        """Print the milliseconds so far."""
        print(f"{what}: {(time.perf_counter() - self._began) * 1000:.1f} ms")


async def upstream_is_closed(upstream: Upstream, what: str) -> None:
    """Wait until the gateway has closed its connections, which must be soon, and print when."""
    watch = Stopwatch()
    with anyio.fail_after(GENEROUS):
        while upstream.open:  # noqa: ASYNC110 - looks from outside
            await anyio.sleep(0.001)
    watch.show(f"{what}: upstream closed after the client's FIN")


async def cancelled(gateway: RunningGateway, count: int = 1) -> None:
    """Wait until requests have ended as cancelled and nothing of them is left."""
    try:
        await gateway.until(
            lambda: not gateway.in_flight and gateway.outcomes() == {"cancelled": count}, GENEROUS
        )
    except TimeoutError as error:
        error.add_note(f"{gateway.in_flight} in flight, {gateway.outcomes()}")
        raise


class SmallClient:
    """A client with a small receive buffer, that takes nothing before it is told to."""

    def __init__(self, port: int, *, buffer: int = 4096) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self._socket.connect(("127.0.0.1", port))
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send a few bytes."""
        self._socket.sendall(data)

    async def receive(self) -> bytes:
        """Take some of what has come."""
        await anyio.wait_readable(self._socket)
        return self._socket.recv(65_536)


def vanish(client: anyio.abc.SocketStream) -> None:
    """Let the client's machine be gone: nothing that is sent to it is ever acknowledged.

    A socket filter that drops every packet (`socket(7)`, ``SO_ATTACH_FILTER``); the FIN that
    closing would send goes the other way, so the client must stay open.
    """
    raw = client.extra(anyio.abc.SocketAttribute.raw_socket)
    drop_all = bytearray(struct.pack("=HBBI", 0x06, 0, 0, 0))
    steps = (ctypes.c_char * len(drop_all)).from_buffer(drop_all)
    raw.setsockopt(socket.SOL_SOCKET, 26, struct.pack("@HP", 1, ctypes.addressof(steps)))


def status_of(answer: bytes) -> int:
    """The status of the first answer."""
    return int(answer.split(b" ", 2)[1])


def answers_in(received: bytes) -> int:
    """How many answers came."""
    return received.count(b"HTTP/1.1 ")
