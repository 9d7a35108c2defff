"""A real server on loopback, and clients that send bytes."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import anyio.abc
import pytest
from starlette.types import ASGIApp

from adapters.frontdoor.drain import Draining
from adapters.frontdoor.listening_socket import open_listening_socket
from adapters.frontdoor.server import ServerSettings, serve


@dataclass
class RunningServer:
    """A server under test."""

    port: int
    draining: Draining = field(default_factory=Draining)
    shutdown: anyio.Event = field(default_factory=anyio.Event)
    hurry: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    cut: int = -1

    async def connect(self) -> anyio.abc.SocketStream:
        """Open a connection."""
        return await anyio.connect_tcp("127.0.0.1", self.port)

    async def ask(self, data: bytes, *, quiet: float = 5.0) -> tuple[bytes, bool]:
        """Send bytes and read until the server closes, or is quiet for some seconds.

        Returns what came, and whether the server closed.
        """
        async with await self.connect() as stream:
            await stream.send(data)
            return await read_all(stream, quiet=quiet)


async def read_all(stream: anyio.abc.SocketStream, *, quiet: float = 5.0) -> tuple[bytes, bool]:
    """Read to the end of a connection."""
    received = bytearray()
    while True:
        with anyio.move_on_after(quiet) as scope:
            try:
                received += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return bytes(received), True
        if scope.cancelled_caught:
            return bytes(received), False


Scenario = Callable[[RunningServer], Awaitable[None]]
ServeWith = Callable[..., Awaitable[RunningServer]]


@pytest.fixture
def serve_with() -> ServeWith:
    """Run a scenario against a server; the server is gone when the call returns."""

    async def run(
        app: ASGIApp, scenario: Scenario, settings: ServerSettings | None = None
    ) -> RunningServer:
        listener = open_listening_socket("127.0.0.1", 0)
        server = RunningServer(listener.getsockname()[1])
        started = anyio.Event()

        async def serve_app() -> None:
            server.cut = await serve(
                app,
                listener=listener,
                settings=settings or ServerSettings(),
                draining=server.draining,
                shutdown=server.shutdown,
                hurry=server.hurry,
                on_started=started.set,
            )
            server.ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(serve_app)
            with anyio.fail_after(5):
                await started.wait()
            with anyio.fail_after(30):
                await scenario(server)
            server.shutdown.set()
            server.hurry.set()
            with anyio.fail_after(10):
                await server.ended.wait()
        return server

    return run


@pytest.fixture(autouse=True)
def _quiet_log() -> None:
    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)
