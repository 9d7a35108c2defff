"""The HTTP/1.1 connections of one event loop: slots, idle connections, and their end."""

import asyncio  # connections are asyncio protocols
import contextlib
import itertools
from typing import Final

import anyio
import httpx

from adapters.transports.http1_connecting import Resolver, connect
from adapters.transports.http1_connection import Http1Connection
from adapters.transports.http1_request import Origin
from adapters.transports.limits import KEEPALIVE_SECONDS

# A service that moves, or renews its certificate, is followed within this time.
MAX_AGE_SECONDS: Final = 300.0
# Connections of one burst live up to a tenth shorter, each by its own part, lest they all end at
# once: sixteen steps.
_AGE_STEPS: Final = 16
_AGE_SPREAD: Final = 0.1
_SWEEP_SECONDS: Final = KEEPALIVE_SECONDS / 3
_CLOSING_SECONDS: Final = 1.0


class LoopConnections:
    """The connections of one event loop.

    At most `limit` connections carry calls, and at most `limit` idle ones are kept, over all
    upstreams: each up to 15 seconds, and none is used again once it is five minutes old.
    """

    def __init__(self, limit: int) -> None:
        """Start on the running loop; no connection is made yet."""
        self.slots = anyio.Semaphore(limit, max_value=limit, fast_acquire=True)
        self.closed = False
        self.loop = asyncio.get_running_loop()
        self._limit = limit
        self._resolver = Resolver()
        self._open: dict[Http1Connection, float] = {}  # and the age that each may reach
        # The longest idle of an origin comes first, and is used last.
        self._idle: dict[Origin, dict[Http1Connection, None]] = {}
        self._idle_count = 0
        self._numbers = itertools.count()
        self._sweeper: asyncio.TimerHandle | None = None
        self._all_lost = anyio.Event()

    def take_idle(self, origin: Origin) -> Http1Connection | None:
        """Return the connection to `origin` that was used last, if one is still good."""
        waiting = self._idle.get(origin)
        while waiting:
            connection, _ = waiting.popitem()
            self._idle_count -= 1
            if not waiting:
                del self._idle[origin]
            if connection.usable() and not self._outdated(connection):
                return connection
            connection.abort()
        return None

    async def connect(self, origin: Origin, *, seconds: float) -> Http1Connection:
        """Make a connection.

        Raises:
            httpx.ConnectTimeout: No connection in time.
            httpx.ConnectError: Refused, unresolvable, no TLS, or the transport was closed.
            httpx.LocalProtocolError: The address is impossible.
        """
        connection = await connect(self, origin, self._resolver, seconds=seconds)
        if self.closed or not connection.usable():
            connection.abort()
            message = "the connection was closed before its first use"
            raise httpx.ConnectError(message)
        # Not before: uvloop tells nobody of the end of a connection whose making was cancelled.
        step = next(self._numbers) % _AGE_STEPS
        self._open[connection] = MAX_AGE_SECONDS * (1 - _AGE_SPREAD * step / _AGE_STEPS)
        return connection

    def call_ended(self, connection: Http1Connection, *, reusable: bool) -> None:
        """Take back the slot of a call, and its connection if that is as good as new."""
        self.slots.release()
        if not reusable:
            return
        connection.idle_since = self.loop.time()
        if self.closed or self._outdated(connection):
            connection.abort()
            return
        self._idle.setdefault(connection.origin, {})[connection] = None
        self._idle_count += 1
        if self._idle_count > self._limit:
            # The origin that has idled for longest without a break gives its oldest.
            self._drop(next(iter(next(iter(self._idle.values())))))
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    def lost(self, connection: Http1Connection) -> None:
        """Forget a connection that has ended."""
        self._open.pop(connection, None)
        self._forget_idle(connection)
        if self.closed and not self._open:
            self._all_lost.set()

    async def aclose(self) -> None:
        """Close every connection, those in use too; their calls end with an error."""
        self.closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        self._idle.clear()
        for connection in tuple(self._open):
            connection.fail((httpx.ReadError, "the transport was closed"))
        if self._open:
            # Everything is cut already; this waits for the loop to say so, and not for ever.
            with anyio.move_on_after(_CLOSING_SECONDS):
                await self._all_lost.wait()

    def abandon(self) -> None:
        """Forget the connections of a loop that is closed; their sockets close when collected."""
        self.closed = True
        self._idle.clear()
        self._open.clear()

    def _outdated(self, connection: Http1Connection) -> bool:
        now = self.loop.time()
        return (
            now - connection.idle_since >= KEEPALIVE_SECONDS
            or now - connection.opened_at >= self._open.get(connection, 0.0)
        )

    def _sweep(self) -> None:
        self._sweeper = None
        for waiting in tuple(self._idle.values()):
            for connection in tuple(itertools.takewhile(self._outdated, waiting)):
                self._drop(connection)
        if self._idle:
            self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _drop(self, connection: Http1Connection) -> None:
        self._forget_idle(connection)
        connection.abort()

    def _forget_idle(self, connection: Http1Connection) -> None:
        waiting = self._idle.get(connection.origin)
        if waiting is None:
            return
        with contextlib.suppress(KeyError):
            del waiting[connection]
            self._idle_count -= 1
        if not waiting:
            del self._idle[connection.origin]
