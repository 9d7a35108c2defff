"""Starting and stopping the app so that a failure is a failure.

Hypercorn 0.18 logs an exception in the app's startup and goes on serving without the app's
resources. It also takes a shutdown for finished when the app says so, and cancels the rest of it.
And when what the app keeps running dies while it serves, Hypercorn goes on without it.
"""

import logging

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


class StartupError(Exception):
    """The app did not start. The app's own exception is the cause, when it raised one."""


class LifespanBorder:
    """ASGI middleware that reports the app's startup and shutdown only when they are over."""

    __slots__ = ("_app", "_cause", "_end", "_failed", "_message", "_started", "crashed")

    def __init__(self, app: ASGIApp, *end: anyio.Event) -> None:
        """Wrap an app.

        Args:
            app: The app.
            end: Set when the app dies while it serves: nobody is there to serve any more, and
                whoever watches over the process can start another one.
        """
        self._app = app
        self._end = end
        self.crashed = False
        self._started = False
        self._failed = False
        self._message = ""
        self._cause: Exception | None = None

    @property
    def started(self) -> bool:
        """True once the app has said that it is ready."""
        return self._started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Watch over the lifespan; other scopes pass unchanged."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        held: Message | None = None
        stopping = False

        async def listen() -> Message:
            """Note that the end was ordered."""
            nonlocal stopping
            message = await receive()
            stopping |= message["type"] == "lifespan.shutdown"
            return message

        async def hold(message: Message) -> None:
            """Pass on that the app has started; keep everything else until it has returned."""
            nonlocal held
            if message["type"] == "lifespan.startup.complete":
                self._started = True
                await send(message)
            else:
                held = message

        try:
            await self._app(scope, listen, hold)
        except Exception as error:
            if self._started:
                if not stopping:
                    self._die(error)
                raise
            self._cause = error
        if not self._started and (self._cause is not None or _is_failure(held)):
            self._failed = True
            self._message = str(self._cause or (held or {}).get("message", ""))
            await send({"type": "lifespan.startup.failed", "message": self._message})
        elif held is not None:
            await send(held)

    def _die(self, error: Exception) -> None:
        """Bring the whole server to its end, for the app has come to its own."""
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        # The type, never the text: it may hold what a caller wrote.
        logger.critical("the app died while it served: %s; ending", type(error).__name__)
        self.crashed = True
        for event in self._end:
            event.set()

    def raise_startup_failure(self, server_error: Exception | None) -> None:
        """Turn a failed startup into an exception.

        Args:
            server_error: what the server raised; used as the cause if the app raised nothing.

        Raises:
            StartupError: the app did not start.
        """
        if self._failed:
            message = f"the app did not start: {self._message}"
            raise StartupError(message) from (self._cause or server_error)


def _is_failure(message: Message | None) -> bool:
    return message is not None and message["type"] == "lifespan.startup.failed"
