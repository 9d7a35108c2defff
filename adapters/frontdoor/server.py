"""Runs the ASGI app: one Hypercorn in one process, on our socket, with an end of our own.

`serve` runs it inside an event loop and ends it in an orderly way when told to; `run_server` adds
what belongs to a process: the loop, the signals, the exit code, and a watchdog for the case that
everything else fails.

The end, in the order in which it happens (reliability: readiness before the listener, the listener
before the streams):

1. readiness turns red and every answer closes its connection; for ``pre_stop_seconds`` everything
   is still served, so that load balancers can look away first;
2. new requests get 503 with Retry-After and no connection begins any more; for a moment longer, so
   that the owners of open connections get an answer and not a reset;
3. the listening socket and the idle connections are closed; requests in flight go on;
4. after ``drain_seconds``, streams are told to end themselves with an error event;
5. two seconds later whatever is left is cancelled, and connections still open are aborted.

Hypercorn's own ``graceful_timeout`` plays no part: from Python 3.12 on it is not honoured.
"""

import logging
import math
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, cast

import anyio
import anyio.abc
import hypercorn.asyncio
from hypercorn.typing import ASGIFramework
from hypercorn.utils import LifespanTimeoutError
from starlette.types import ASGIApp

from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.border import ExchangeBorder
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.garbage import tuned_for_serving
from adapters.frontdoor.gate import MAX_HEADER_BYTES, MAX_TARGET_BYTES, FramingGate, OnRefusal
from adapters.frontdoor.http1_config import Http1Config
from adapters.frontdoor.http1_protocol import use_http1_only
from adapters.frontdoor.lifespan import LifespanBorder, StartupError
from adapters.frontdoor.listening_socket import DEFAULT_BACKLOG, turn_away
from adapters.frontdoor.quiet_loop import QuietLoop
from adapters.frontdoor.watchdog import Watchdog

logger = logging.getLogger(__name__)

EXIT_CLEAN: Final = 0
"""Every request in flight was answered."""
EXIT_CUT: Final = 1
"""The time for draining was over and requests were cancelled; or the app died."""

_FAREWELL_SECONDS: Final = 0.5
_ENDING_SECONDS: Final = 2.0
_ABORT_AFTER: Final = 1.0
_WATCHDOG_MARGIN: Final = 10.0
_HURRY_WATCHDOG: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How the server behaves. Times in seconds, all finite.

    Attributes:
        keep_alive_seconds: how long an idle connection stays open. Longer than the usual client's
            own limit (5 to 60), so that the client closes first and no request meets a closing
            connection.
        head_seconds: the longest time for a request head, from its first byte.
        pre_stop_seconds: time between red readiness and the end of service.
        drain_seconds: time for requests in flight.
        startup_seconds: time for the app to start.
        shutdown_seconds: time for the app to clean up, once nothing is in flight. With the steps of
            the end it must stay below the ten seconds that the watchdog gives beyond the drain.
        backlog: connections that may wait to be accepted.
        limits: what one request may take.
        encoded_slash_below: see `adapters.frontdoor.gate.FramingGate`.
        on_refusal: likewise.
    """

    keep_alive_seconds: float = 75.0
    head_seconds: float = 10.0
    pre_stop_seconds: float = 0.0
    drain_seconds: float = 30.0
    startup_seconds: float = 60.0
    shutdown_seconds: float = 5.0
    backlog: int = DEFAULT_BACKLOG
    limits: ExchangeLimits = field(default_factory=ExchangeLimits)
    encoded_slash_below: tuple[bytes, ...] = ()
    on_refusal: OnRefusal | None = None

    def __post_init__(self) -> None:
        """Refuse times that make no sense.

        Raises:
            ValueError: a time is negative or infinite, or one that must be above 0 is 0.
        """
        may_be_zero = {"pre_stop_seconds", "drain_seconds"}
        for name in self.__slots__:
            value = getattr(self, name)
            if not name.endswith("_seconds"):
                continue
            if not 0 <= value < math.inf or (value == 0 and name not in may_be_zero):
                message = f"{name} must be above 0 and finite, not {value}"
                raise ValueError(message)


def guarded(app: ASGIApp, *, settings: ServerSettings, draining: Draining) -> ASGIApp:
    """Put border and framing gate around an app, in the order in which they must stand.

    Args:
        app: the routes.
        settings: limits and gate settings are taken from here.
        draining: the state that the server will move.
    """
    gate = FramingGate(
        app, encoded_slash_below=settings.encoded_slash_below, on_refusal=settings.on_refusal
    )
    return ExchangeBorder(gate, limits=settings.limits, draining=draining)


async def serve(
    app: ASGIApp,
    *,
    listener: socket.socket,
    settings: ServerSettings,
    draining: Draining,
    shutdown: anyio.Event,
    hurry: anyio.Event | None = None,
    on_started: Callable[[], None] | None = None,
) -> int:
    """Serve an app until told to stop, then drain and return. asyncio only.

    Args:
        app: the routes; border and gate are put around it here.
        listener: from `open_listening_socket`; closed by the end.
        settings: times and limits.
        draining: shared with the app, which reads it.
        shutdown: set it to begin the drain.
        hurry: set it to cut the drain short.
        on_started: called once, when the app has started and connections are accepted.

    Returns:
        How many requests were cancelled because the time was over; at least 1 if the app died.

    Raises:
        StartupError: the app did not start; its own exception is the cause. Nothing was served.
    """
    use_http1_only()
    config = _hypercorn_config(listener, settings)
    stop = anyio.Event()
    ending = _Ending(settings, draining, config, stop=stop)
    hurry = hurry or anyio.Event()
    lifespan = LifespanBorder(guarded(app, settings=settings, draining=draining), shutdown, hurry)

    async def stop_trigger() -> None:
        if on_started is not None:
            on_started()
        await stop.wait()

    failure: Exception | None = None

    async def run_hypercorn(scope: anyio.CancelScope) -> None:
        nonlocal failure
        try:
            await hypercorn.asyncio.serve(
                cast("ASGIFramework", lifespan),
                config,
                shutdown_trigger=stop_trigger,
                mode="asgi",
            )
        except Exception as error:  # noqa: BLE001 - raised by the caller, outside the group
            failure = error
        scope.cancel()

    with listener, QuietLoop():
        async with anyio.create_task_group() as group:
            # In a task of its own: on Python 3.11 asyncio.TaskGroup, which Hypercorn ends by an
            # exception, leaves its task marked as cancelled, and anyio's scopes in that task would
            # then take their own cancellation for somebody else's.
            group.start_soon(run_hypercorn, group.cancel_scope)
            await ending.run(shutdown, hurry)
    lifespan.raise_startup_failure(failure)
    if isinstance(failure, LifespanTimeoutError) and not lifespan.started:
        message = f"the app did not start within {settings.startup_seconds} seconds"
        raise StartupError(message) from failure
    if isinstance(failure, OSError) and stop.is_set():
        # A connection that failed while it was being closed; all that mattered is done.
        logger.info("a connection failed while the server closed it: %s", failure)
    elif failure is not None:
        raise failure
    return ending.cut or int(lifespan.crashed)


def run_server(
    app: ASGIApp,
    *,
    listener: socket.socket,
    settings: ServerSettings | None = None,
    draining: Draining | None = None,
    on_started: Callable[[], None] | None = None,
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ends_process: bool = False,
) -> int:
    """Run the server as the work of this process, until SIGTERM or SIGINT.

    The first signal begins the drain, the second ends it at once. Whatever happens, the process is
    gone ten seconds after the drain should have been over.

    Args:
        app: the routes.
        listener: from `open_listening_socket`; closed by the end.
        settings: times and limits.
        draining: shared with the app, if it wants to read it.
        on_started: called once connections are accepted.
        beside: run from then on until the server has ended, drain included; then cancelled.
        ends_process: the caller ends the process after this; the watchdog sees to that, too.

    Returns:
        The exit code: 0 after a clean drain, 1 when requests were cancelled at its end or the app
        died, 128 plus the signal's number when a second signal cut it short.

    Raises:
        StartupError: the app did not start.
    """
    process = _Process(settings or ServerSettings(), draining or Draining())
    try:
        return anyio.run(
            process.run,
            app,
            listener,
            on_started,
            beside,
            backend="asyncio",
            backend_options={"use_uvloop": _has_uvloop()},
        )
    finally:
        if not ends_process:
            process.watchdog.cancel()


class _Ending:
    """The steps of the module's text, from the order to stop to the last connection."""

    def __init__(
        self,
        settings: ServerSettings,
        draining: Draining,
        config: Http1Config,
        *,
        stop: anyio.Event,
    ) -> None:
        self.cut = 0
        self._settings = settings
        self._draining = draining
        self._config = config
        self._stop = stop

    async def run(self, shutdown: anyio.Event, hurry: anyio.Event) -> None:
        """Wait for the order, drain with patience, then without."""
        await shutdown.wait()
        async with anyio.create_task_group() as group:
            if not hurry.is_set():
                group.start_soon(self._be_patient, group.cancel_scope)
            await hurry.wait()
            group.cancel_scope.cancel()
        self.cut = self._draining.cut()
        self._stop.set()
        await anyio.sleep(_ABORT_AFTER)
        self._config.abort_connections()
        await anyio.sleep_forever()

    async def _be_patient(self, scope: anyio.CancelScope) -> None:
        """Let everybody finish who can; cancels the scope when there is no more to wait for."""
        settings, draining = self._settings, self._draining
        drain_seconds = draining.patience(settings.drain_seconds)
        self._config.graceful_timeout = _beyond(settings, drain_seconds)
        draining.begin()
        logger.info("draining: %d requests in flight", draining.in_flight)
        await anyio.sleep(settings.pre_stop_seconds)
        draining.refuse()
        if turn_away(self._config.listener) or draining.served_within(settings.keep_alive_seconds):
            await anyio.sleep(_FAREWELL_SECONDS)
        self._stop.set()
        with anyio.move_on_after(drain_seconds):
            await draining.wait_idle()
        if draining.in_flight:
            logger.warning("drain time is over: ending %d requests", draining.in_flight)
            draining.expire()
            with anyio.move_on_after(_ENDING_SECONDS):
                await draining.wait_idle()
        await self._config.let_linger()
        scope.cancel()


class _Process:
    """Signals, watchdog and exit code around `serve`."""

    def __init__(self, settings: ServerSettings, draining: Draining) -> None:
        self._settings = settings
        self._draining = draining
        self._second_signal: int | None = None
        self.watchdog = Watchdog()

    async def run(
        self,
        app: ASGIApp,
        listener: socket.socket,
        on_started: Callable[[], None] | None,
        beside: Callable[[], Coroutine[Any, Any, None]] | None,
    ) -> int:
        shutdown, hurry = anyio.Event(), anyio.Event()
        cut = 0

        def started() -> None:
            tuning.enter_context(tuned_for_serving())
            if on_started is not None:
                on_started()
            if beside is not None:
                group.start_soon(beside)

        with ExitStack() as tuning:
            async with anyio.create_task_group() as group:
                await group.start(self._listen_for_signals, shutdown, hurry)
                cut = await serve(
                    app,
                    listener=listener,
                    settings=self._settings,
                    draining=self._draining,
                    shutdown=shutdown,
                    hurry=hurry,
                    on_started=started,
                )
                group.cancel_scope.cancel()
        if self._second_signal is not None:
            return 128 + self._second_signal
        return EXIT_CUT if cut else EXIT_CLEAN

    async def _listen_for_signals(
        self,
        shutdown: anyio.Event,
        hurry: anyio.Event,
        *,
        task_status: anyio.abc.TaskStatus[None],
    ) -> None:
        numbers = signal.SIGTERM, signal.SIGINT
        with anyio.open_signal_receiver(*numbers) as signals:
            self.watchdog.follow(numbers, self._patience)
            task_status.started()
            async for number in signals:
                if not shutdown.is_set():
                    shutdown.set()
                elif not hurry.is_set():
                    self._second_signal = int(number)
                    hurry.set()

    def _patience(self, received: int) -> float:
        """Give the seconds that the process has after its first and after later signals."""
        if received > 1:
            return _HURRY_WATCHDOG
        return _beyond(self._settings, self._draining.patience(self._settings.drain_seconds))


def _has_uvloop() -> bool:
    try:
        import uvloop  # noqa: F401, PLC0415 - not on every platform
    except ImportError:
        return False
    return True


def _hypercorn_config(listener: socket.socket, settings: ServerSettings) -> Http1Config:
    """Translate our settings, and undo the defaults of Hypercorn that bend or leak."""
    config = Http1Config(listener, head_seconds=settings.head_seconds)
    config.alpn_protocols = ["http/1.1"]
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.workers = 1
    config.backlog = settings.backlog
    config.keep_alive_timeout = settings.keep_alive_seconds
    config.keep_alive_max_requests = 2**31
    config.read_timeout = None
    config.startup_timeout = settings.startup_seconds
    config.shutdown_timeout = settings.shutdown_seconds
    # More than the gate allows, so that it is the gate that answers, and it says why.
    config.h11_max_incomplete_size = 2 * (MAX_HEADER_BYTES + MAX_TARGET_BYTES)
    config.graceful_timeout = _beyond(settings, settings.drain_seconds)
    return config


def _beyond(settings: ServerSettings, drain_seconds: float) -> float:
    """Seconds from the order to stop to an instant later than every step of our own drain."""
    return settings.pre_stop_seconds + drain_seconds + _WATCHDOG_MARGIN
