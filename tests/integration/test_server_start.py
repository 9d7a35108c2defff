"""The server's settings, its start, the app's lifespan, and its log."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from served_routes import Routes
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.frontdoor.drain import Draining
from adapters.frontdoor.lifespan import StartupError
from adapters.frontdoor.listening_socket import open_listening_socket
from adapters.frontdoor.server import ServerSettings, serve

pytestmark = pytest.mark.anyio


ServeWith = Callable[..., Awaitable[Any]]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Hypercorn's asyncio server runs on asyncio and uvloop only."""
    return "asyncio", {"use_uvloop": request.param}


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


@pytest.mark.parametrize("name", ["keep_alive_seconds", "head_seconds", "startup_seconds"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_settings_refuse_times_without_sense(name: str, value: float) -> None:
    """A time that is zero, negative or endless is named in the error."""
    with pytest.raises(ValueError, match=name):
        ServerSettings(**{name: value})  # type: ignore[arg-type]


def test_settings_allow_a_drain_without_patience() -> None:
    """Zero seconds for the drain is a choice."""
    assert ServerSettings(drain_seconds=0).drain_seconds == 0
