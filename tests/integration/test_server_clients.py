"""Clients that upload, leave or stop reading, and what they leave behind in the server."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import pytest
from served_routes import GET, Routes, task_count, until

from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.server import ServerSettings

pytestmark = pytest.mark.anyio


ServeWith = Callable[..., Awaitable[Any]]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Hypercorn's asyncio server runs on asyncio and uvloop only."""
    return "asyncio", {"use_uvloop": request.param}


UPLOAD = b"POST /%s HTTP/1.1\r\nHost: gateway\r\nContent-Length: 5242880\r\n\r\n"


FIVE_MIB = b"x" * (5 * 1024 * 1024)


async def send_for_ever(stream: anyio.abc.SocketStream) -> None:
    """Upload until the server no longer takes it."""
    while True:
        await stream.send(b"x" * 65536)


async def test_early_answers_to_large_uploads_leave_nothing_behind(serve_with: ServeWith) -> None:
    """Five clients that are answered before their 5 MiB are read leave no task and get an end."""

    async def scenario(server: Any) -> None:
        before = task_count()
        for _ in range(5):
            answer, closed = await server.ask(UPLOAD % b"" + FIVE_MIB)
            assert answer.endswith(b"\r\n\r\nhello")
            assert b"connection: close" in answer
            assert closed
        await until(lambda: task_count() <= before)
        assert not server.draining.in_flight

    await serve_with(Routes(), scenario)


async def test_refused_uploads_leave_nothing_behind(serve_with: ServeWith) -> None:
    """Five uploads above the limit get 413 to read, and leave no task."""

    async def scenario(server: Any) -> None:
        before = task_count()
        for _ in range(5):
            answer, closed = await server.ask(UPLOAD % b"wait" + FIVE_MIB)
            assert answer.startswith(b"HTTP/1.1 413")
            assert closed
        await until(lambda: task_count() <= before)

    settings = ServerSettings(limits=ExchangeLimits(body_bytes=1000))
    await serve_with(Routes(), scenario, settings)


async def test_broken_answer_to_an_upload_leaves_nothing_behind(serve_with: ServeWith) -> None:
    """A route that breaks with a full queue of unread body parts does not hold its connection."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        before = task_count()
        for _ in range(3):
            async with await server.connect() as stream:
                await stream.send(UPLOAD % b"crash")
                with pytest.raises(anyio.BrokenResourceError):
                    await send_for_ever(stream)
            await until(lambda: task_count() <= before)

    with _silence("hypercorn.error"):
        await serve_with(routes, scenario)
    assert routes.notes == ["ZeroDivisionError"] * 3


@pytest.mark.parametrize("path", ["wait", "stream"])
async def test_leaving_client_ends_the_work(serve_with: ServeWith, path: str) -> None:
    """Work and streams of a client that closed its connection end within a second."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        routes.draining = server.draining
        async with await server.connect() as stream:
            await stream.send(GET % path.encode())
            await routes.working.wait()
            assert server.draining.in_flight == 1
        await until(lambda: not server.draining.in_flight, seconds=1)

    await serve_with(routes, scenario)
    assert routes.notes == ["ClientDisconnectedError"]


async def test_half_closed_connection_counts_as_gone(serve_with: ServeWith) -> None:
    """A client that shuts down its sending half gives its request up, as documented."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        async with await server.connect() as stream:
            await stream.send(GET % b"wait")
            await routes.working.wait()
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()

    await serve_with(routes, scenario)
    assert routes.notes == ["ClientDisconnectedError"]


async def test_client_that_never_reads_is_freed(serve_with: ServeWith) -> None:
    """A full socket buffer ends the request and its connection after the write deadline."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        before = task_count()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
            await asyncio.get_running_loop().sock_sendall(client, GET % b"flood")
            await until(lambda: server.draining.in_flight == 1)
            await until(lambda: not server.draining.in_flight and task_count() <= before)

    settings = ServerSettings(limits=ExchangeLimits(write_seconds=0.3))
    await serve_with(routes, scenario, settings)
    assert routes.notes == ["ClientDisconnectedError"]


async def test_closed_idle_connections_are_forgotten_at_once(serve_with: ServeWith) -> None:
    """Clients that come, ask and go leave no task until the keep-alive time."""

    async def scenario(server: Any) -> None:
        before = task_count()
        for _ in range(20):
            async with await server.connect() as stream:
                await stream.send(GET % b"")
                await stream.receive()
        await until(lambda: task_count() <= before)

    await serve_with(Routes(), scenario)


class _silence:  # noqa: N801 - reads as a verb where it is used
    """Keep an expected traceback out of the test's output."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._logger.disabled = True

    def __exit__(self, *_: object) -> None:
        self._logger.disabled = False
