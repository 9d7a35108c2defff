"""One transport for the whole process: what makes a provider cost microseconds and bytes."""

import threading
import weakref
from typing import Protocol

import httpx

from adapters.transports.http1 import Http1Transport
from adapters.transports.httpx_pool import HttpxPoolTransport
from adapters.transports.limits import DEFAULT_CONCURRENT_CALLS, PoolStatistics
from adapters.transports.per_loop import required_loop, running_loop, running_on_trio


class CountingTransport(Protocol):
    """A transport that can say how much of it is in use; all that we ship can."""

    def statistics(self) -> PoolStatistics:
        """Return the use of the running loop's slots."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request."""

    async def aclose(self) -> None:
        """Close the running loop's connections."""


class SharedTransport(httpx.AsyncBaseTransport):
    """Sends with `Http1Transport` on asyncio and with httpx's pools on trio, as is running."""

    def __init__(
        self,
        *,
        limit: int = DEFAULT_CONCURRENT_CALLS,
        on_asyncio: CountingTransport | None = None,
    ) -> None:
        """Make both transports; neither opens anything before its first request.

        Args:
            limit: Calls that may run at once on one event loop.
            on_asyncio: What sends there instead, such as an `AiohttpTransport`; it has a limit
                of its own.
        """
        self._on_asyncio: CountingTransport = on_asyncio or Http1Transport(limit=limit)
        self._on_trio: CountingTransport = HttpxPoolTransport(limit=limit)

    def __repr__(self) -> str:
        """Name both."""
        return f"SharedTransport(asyncio={self._on_asyncio!r}, trio={self._on_trio!r})"

    def statistics(self) -> PoolStatistics:
        """Return the use of the running loop's slots.

        Raises:
            RuntimeError: No event loop is running.
        """
        return self._here().statistics()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; see `Http1Transport` and `HttpxPoolTransport`.

        Raises:
            httpx.TransportError: What those two raise, with the same meaning.
            RuntimeError: No event loop is running.
        """
        return await self._here().handle_async_request(request)

    async def aclose(self) -> None:
        """Close the running loop's connections, whoever uses them; a lease asks who does."""
        await self._here().aclose()

    def _here(self) -> CountingTransport:
        return self._on_trio if running_on_trio() else self._on_asyncio


class _Users:
    """Which open leases may be sending on which loop; all held weakly."""

    def __init__(self) -> None:
        self._on_loop: weakref.WeakKeyDictionary[object, weakref.WeakSet[TransportLease]] = (
            weakref.WeakKeyDictionary()
        )
        # Leases whose transport was taken while no loop ran: they may be sending anywhere.
        self._anywhere: weakref.WeakSet[TransportLease] = weakref.WeakSet()
        self._changing = threading.Lock()

    def add(self, lease: "TransportLease", loop: object | None) -> None:
        """Note that `lease` may send on `loop`, or, for `None`, on any."""
        with self._changing:
            if loop is None:
                self._anywhere.add(lease)
            else:
                self._on_loop.setdefault(loop, weakref.WeakSet()).add(lease)

    def remove(self, lease: "TransportLease", loop: object) -> bool:
        """Forget a lease; say whether nobody is left who may send on `loop`."""
        with self._changing:
            self._anywhere.discard(lease)
            for users in self._on_loop.values():
                users.discard(lease)
            alone = not self._anywhere and not self._on_loop.get(loop)
            if alone:
                self._on_loop.pop(loop, None)
            return alone


_transport = SharedTransport()
_users = _Users()


class TransportLease:
    """A share in the transport of the process, held by one provider.

    It costs a microsecond and about a hundred bytes until the first request. The connections of
    an event loop are closed with the last lease that was used there; a lease that never was, or
    that was dropped without being closed, keeps nothing open.
    """

    __slots__ = ("__weakref__", "_closed", "_last_loop")

    def __init__(self) -> None:
        """Take a share; no I/O, no task, no running loop needed."""
        self._closed = False
        self._last_loop: weakref.ref[object] | None = None

    def __repr__(self) -> str:
        """Say whether it is closed."""
        return f"TransportLease(closed={self._closed})"

    @property
    def transport(self) -> httpx.AsyncBaseTransport:
        """The one transport, the same object for every lease.

        Best read anew for each request, at 0.5 µs: that tells the lease on which loop it is used.
        One that is read while no loop runs counts as used on every loop.
        """
        loop = running_loop()
        last_loop = self._last_loop
        if last_loop is None or last_loop() is not loop or loop is None:
            self._note(loop)
        return _transport

    async def aclose(self) -> None:
        """Give the share back; the last user of the running loop closes its connections.

        May be repeated. A transport used after that opens new connections, which the next lease
        to be closed, or the end of the loop, closes.

        Raises:
            RuntimeError: No event loop is running.
        """
        loop = required_loop()
        if self._closed:
            return
        self._closed = True
        if _users.remove(self, loop):
            await _transport.aclose()

    def _note(self, loop: object | None) -> None:
        if not self._closed:
            _users.add(self, loop)
            self._last_loop = None if loop is None else weakref.ref(loop)


def share_transport() -> TransportLease:
    """Take a share in the transport of the process.

    Synchronous and thread-safe; no I/O, no task, no running loop needed.
    """
    return TransportLease()
