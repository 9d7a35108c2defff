"""The end of the server while clients are connected."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from served_routes import GET, Routes, until

from adapters.frontdoor.server import ServerSettings

pytestmark = pytest.mark.anyio


ServeWith = Callable[..., Awaitable[Any]]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Hypercorn's asyncio server runs on asyncio and uvloop only."""
    return "asyncio", {"use_uvloop": request.param}


async def test_drain_lets_requests_finish_and_closes_the_rest(serve_with: ServeWith) -> None:
    """Work in flight is answered, idle connections and the listener are closed."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        idle, busy = await server.connect(), await server.connect()
        async with idle, busy:
            await idle.send(GET % b"")
            await idle.receive()
            await busy.send(GET % b"wait")
            await routes.working.wait()
            server.shutdown.set()
            with pytest.raises(anyio.EndOfStream):
                await idle.receive()
            assert server.draining.state == "refusing"
            with pytest.raises(OSError, match="connect"):
                await server.connect()
            routes.release.set()
            answer = await busy.receive()
            assert answer.endswith(b"hello")
            assert b"connection: close" in answer
        await server.ended.wait()

    server = await serve_with(routes, scenario)
    assert server.cut == 0
    assert routes.notes == ["completed"] * 2


async def test_late_request_on_a_kept_alive_connection_is_told(serve_with: ServeWith) -> None:
    """A request that comes after the drain began gets 503, Retry-After and close."""

    async def scenario(server: Any) -> None:
        async with await server.connect() as stream:
            await stream.send(GET % b"")
            await stream.receive()
            server.shutdown.set()
            await until(lambda: server.draining.state == "refusing")
            await stream.send(GET % b"")
            answer = await stream.receive()
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer
            assert b"connection: close" in answer

    await serve_with(Routes(), scenario)


async def test_pre_stop_serves_and_closes(serve_with: ServeWith) -> None:
    """Between red readiness and the end of service, answers are real and close."""

    async def scenario(server: Any) -> None:
        server.shutdown.set()
        await until(server.draining.is_set)
        answer, closed = await server.ask(GET % b"")
        assert answer.endswith(b"hello")
        assert b"connection: close" in answer
        assert closed

    await serve_with(Routes(), scenario, ServerSettings(pre_stop_seconds=5))


async def test_drain_ends_streams_with_their_own_event(serve_with: ServeWith) -> None:
    """When the time is over, a stream says so itself and ends whole."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        routes.draining = server.draining
        async with await server.connect() as stream:
            await stream.send(GET % b"stream")
            await routes.working.wait()
            server.shutdown.set()
            received = b"".join([part async for part in stream])
            assert received.endswith(b"server_draining\n\r\n0\r\n\r\n")
        await server.ended.wait()

    server = await serve_with(routes, scenario, ServerSettings(drain_seconds=0.1))
    assert server.cut == 0
    assert routes.notes == ["completed"]


async def test_who_asks_on_after_a_stream_is_told(serve_with: ServeWith) -> None:
    """Its head could not say that the connection would close, so the next request is answered."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        routes.draining = server.draining
        async with await server.connect() as stream:
            await stream.send(GET % b"stream")
            await routes.working.wait()
            server.shutdown.set()
            received = b""
            while not received.endswith(b"\r\n0\r\n\r\n"):
                received += await stream.receive()
            await stream.send(GET % b"")
            answer = await stream.receive()
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"connection: close" in answer

    await serve_with(routes, scenario, ServerSettings(drain_seconds=0.1))


async def test_drain_cuts_what_does_not_end(serve_with: ServeWith) -> None:
    """Work that ignores the drain is cancelled, told why, and counted."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        async with await server.connect() as stream:
            await stream.send(GET % b"wait")
            await routes.working.wait()
            server.shutdown.set()
            answer = await stream.receive()
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"server_draining" in answer
        await server.ended.wait()

    server = await serve_with(routes, scenario, ServerSettings(drain_seconds=0.1))
    assert server.cut == 1


async def test_hurry_cuts_at_once(serve_with: ServeWith) -> None:
    """The second order does not wait for anybody."""
    routes = Routes()

    async def scenario(server: Any) -> None:
        async with await server.connect() as stream:
            await stream.send(GET % b"wait")
            await routes.working.wait()
            server.shutdown.set()
            server.hurry.set()
            with anyio.fail_after(4):
                await server.ended.wait()

    server = await serve_with(routes, scenario, ServerSettings(drain_seconds=60))
    assert server.cut == 1


async def test_nothing_is_lost_under_keep_alive_when_draining(serve_with: ServeWith) -> None:
    """Clients that go on asking get an answer to every request that was sent before a close."""
    answers: list[bytes] = []
    lost: list[int] = []

    async def hammer(server: Any, number: int) -> None:
        async with await server.connect() as stream:
            while True:
                await stream.send(GET % b"")
                try:
                    answer = await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    lost.append(number)
                    return
                answers.append(answer)
                if b"connection: close" in answer:
                    return

    async def scenario(server: Any) -> None:
        async with anyio.create_task_group() as group:
            for number in range(20):
                group.start_soon(hammer, server, number)
            await until(lambda: len(answers) > 200, seconds=10)
            server.shutdown.set()
        await server.ended.wait()

    await serve_with(Routes(), scenario)
    assert lost == []
    assert all(answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")) for answer in answers)
