"""The server as a whole: leaving clients, unread bodies, start, drain and signals."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.abc
import pytest
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.border import exchange_of
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.lifespan import StartupError
from adapters.frontdoor.listening_socket import open_listening_socket
from adapters.frontdoor.receiver import Exchange
from adapters.frontdoor.server import ServerSettings, serve

pytestmark = pytest.mark.anyio

ServeWith = Callable[..., Awaitable[Any]]
GET = b"GET /%s HTTP/1.1\r\nHost: gateway\r\n\r\n"
UPLOAD = b"POST /%s HTTP/1.1\r\nHost: gateway\r\nContent-Length: 5242880\r\n\r\n"
FIVE_MIB = b"x" * (5 * 1024 * 1024)


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Hypercorn's asyncio server runs on asyncio and uvloop only."""
    return "asyncio", {"use_uvloop": request.param}


class Routes:
    """A small app; it notes how the work of each path ended."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.working = anyio.Event()
        self.release = anyio.Event()
        self.draining: Draining | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request by the route that its path names."""
        if scope["type"] != "http":
            return
        exchange = exchange_of(scope)
        route = getattr(self, scope["path"].strip("/") or "hello")
        try:
            await route(exchange)
            self.notes.append("completed")
        except BaseException as error:
            self.notes.append(type(error).__name__)
            raise

    async def hello(self, exchange: Exchange) -> None:
        """Answer at once, without reading anything."""
        await start(exchange, 5)
        await exchange.send({"type": "http.response.body", "body": b"hello"})

    async def wait(self, exchange: Exchange) -> None:
        """Work until released, then answer."""
        await exchange.body()
        self.working.set()
        await exchange.run(self.release.wait)
        await self.hello(exchange)

    async def stream(self, exchange: Exchange) -> None:
        """Send small events until the client leaves or the drain ends it."""

        async def send_events() -> None:
            await start(exchange)
            assert self.draining is not None
            with anyio.CancelScope() as scope, self.draining.ends(scope):
                while True:
                    await event(exchange, b"tick\n")
                    self.working.set()
                    await anyio.sleep(0.01)
            await event(exchange, b"server_draining\n")
            await exchange.send({"type": "http.response.body", "body": b""})

        await exchange.run(send_events)

    async def flood(self, exchange: Exchange) -> None:
        """Send large chunks without a pause."""

        async def send_chunks() -> None:
            await start(exchange)
            while True:
                await event(exchange, b"x" * 1_000_000)

        await exchange.run(send_chunks)

    async def crash(self, exchange: Exchange) -> None:
        """Start an answer without reading the body, and break."""
        await start(exchange, 100)
        # Long enough for the server to fill its queue and wait for room in it.
        await anyio.sleep(0.2)
        raise ZeroDivisionError


async def start(exchange: Exchange, length: int | None = None) -> None:
    """Send the head of an answer."""
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})


async def event(exchange: Exchange, data: bytes) -> None:
    """Send a part of a streamed answer."""
    await exchange.send({"type": "http.response.body", "body": data, "more_body": True})


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    """Wait until something has become true."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is asked is no event
            await anyio.sleep(0.01)


async def send_for_ever(stream: anyio.abc.SocketStream) -> None:
    """Upload until the server no longer takes it."""
    while True:
        await stream.send(b"x" * 65536)


def task_count() -> int:
    """Tasks alive on this loop."""
    return len(asyncio.all_tasks())


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


async def serve_once(app: ASGIApp, *, startup_seconds: float = 5.0) -> None:
    """Serve and stop at once."""
    shutdown = anyio.Event()
    shutdown.set()
    await serve(
        app,
        listener=open_listening_socket("127.0.0.1", 0),
        settings=ServerSettings(startup_seconds=startup_seconds),
        draining=Draining(),
        shutdown=shutdown,
    )


async def test_failed_startup_raises_its_cause() -> None:
    """An app that raises in its startup is not served, whatever framework it uses."""

    class Lifespan:
        def __init__(self, _app: object) -> None:
            pass

        async def __aenter__(self) -> None:
            raise LookupError("no configuration")

        async def __aexit__(self, *_: object) -> None:
            pass

    async def bare(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise LookupError("no configuration")

    for app in (Starlette(lifespan=Lifespan), bare):
        with pytest.raises(StartupError, match="no configuration") as caught:
            await serve_once(app)
        assert isinstance(caught.value.__cause__, LookupError)


async def test_hanging_startup_raises() -> None:
    """An app that does not start in its time is not served."""

    async def hang(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await anyio.sleep(1)

    with pytest.raises(StartupError, match=r"within 0\.1 seconds"):
        await serve_once(hang, startup_seconds=0.1)


async def test_shutdown_of_the_app_is_waited_for() -> None:
    """What an app does after it has said that it is shut down is done too."""
    steps = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        await anyio.sleep(0.1)
        steps.append("closed")

    await serve_once(app)
    assert steps == ["closed"]


async def test_dying_connections_cost_one_line_of_log(
    serve_with: ServeWith, caplog: pytest.LogCaptureFixture
) -> None:
    """A network error in the loop's handler is a line without traceback; write noise is dropped."""
    caplog.set_level(logging.INFO)

    async def scenario(_server: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.call_exception_handler({"message": "m", "exception": OSError(113, "No route")})
        logging.getLogger("asyncio").warning("socket.send() raised exception.")

    await serve_with(Routes(), scenario)
    lines = [record for record in caplog.records if record.levelno < logging.ERROR]
    assert any("a connection ended with OSError" in record.getMessage() for record in lines)
    assert not any(record.exc_info for record in caplog.records)
    assert "socket.send()" not in caplog.text


PROGRAM = textwrap.dedent(
    """
    import sys
    import anyio
    from adapters.frontdoor.border import exchange_of
    from adapters.frontdoor.listening_socket import open_listening_socket
    from adapters.frontdoor.server import ServerSettings, run_server

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        async def work():
            await anyio.sleep(float(scope["query_string"]))
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})
        await exchange_of(scope).run(work)

    listener = open_listening_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    sys.exit(run_server(app, listener=listener, settings=ServerSettings(drain_seconds=20),
                        on_started=lambda: print(port, flush=True)))
    """
)


def start_program() -> tuple[subprocess.Popen[str], int]:
    """Start the program above and wait for its port."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_sigterm_drains_and_exits_with_0() -> None:
    """A request in flight is answered after SIGTERM and the process ends cleanly."""
    process, port = start_program()
    with process, socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /?1.0 HTTP/1.1\r\nHost: gateway\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as probe:
            probe.sendall(b"GET /?0 HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert probe.recv(1000).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        answer = b""
        while part := client.recv(1000):
            answer += part
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"done" in answer
        assert process.wait(10) == 0


def test_second_signal_ends_at_once() -> None:
    """The second signal cuts a request that would have taken a minute."""
    process, port = start_program()
    with process, socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET /?60 HTTP/1.1\r\nHost: gateway\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as probe:
            probe.sendall(b"GET /?0 HTTP/1.1\r\nHost: gateway\r\n\r\n")
            assert probe.recv(1000).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(6) in {128 + signal.SIGTERM, 128 + signal.SIGINT}


class _silence:  # noqa: N801 - reads as a verb where it is used
    """Keep an expected traceback out of the test's output."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._logger.disabled = True

    def __exit__(self, *_: object) -> None:
        self._logger.disabled = False


@pytest.mark.parametrize("name", ["keep_alive_seconds", "head_seconds", "startup_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_settings_refuse_times_without_sense(name: str, value: float) -> None:
    """A time that is zero, negative or endless is named in the error."""
    with pytest.raises(ValueError, match=name):
        ServerSettings(**{name: value})  # type: ignore[arg-type]


def test_settings_allow_a_drain_without_patience() -> None:
    """Zero seconds for the drain is a choice."""
    assert ServerSettings(drain_seconds=0).drain_seconds == 0
