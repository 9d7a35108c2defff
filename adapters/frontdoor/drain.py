"""The end of a server's life: who is still being served, and what they have been told.

One `Draining` object is shared by the app (readiness, streams), by the request border (counts,
refusals) and by the server (decides when). It only ever moves forward::

    serving --begin--> draining --refuse--> refusing --expire--> expired --cut--> cut
               |                   |                    |                |
               readiness red,      new requests: 503    streams end      whoever is left
               answers close       and Retry-After      themselves       is cancelled
"""

from types import TracebackType
from typing import Protocol

import anyio

from adapters.frontdoor.refusal import Refusal

_RETRY_AFTER = 1

SERVER_DRAINING = Refusal(
    503,
    "server_draining",
    message="This server is shutting down. Repeat the request; another instance will take it.",
    wait=_RETRY_AFTER,
)
"""The answer to a request that comes too late, or that was cut before it was answered."""


class Cancellable(Protocol):
    """What `Draining` can end: a cancel scope, or a request that owns one."""

    def cancel(self) -> None:
        """Ask it to end; returns at once."""


class Draining:
    """Whether this server is going away, and the requests that it still serves.

    Not thread-safe: one event loop owns it.

    Attributes:
        always_served: paths that are answered to the very end.
        drain_seconds: time for requests in flight, where it is no longer what the server was
            started with; read when the drain begins.
    """

    __slots__ = (
        "_begun",
        "_cut",
        "_expired",
        "_finished_at",
        "_idle",
        "_refusing",
        "_requests",
        "_streams",
        "always_served",
        "drain_seconds",
    )

    def __init__(self, *, always_served: frozenset[str] = frozenset()) -> None:
        """Start in the state of serving.

        Args:
            always_served: paths that are answered to the very end (health, readiness, metrics), so
                that whoever watches the server sees it drain instead of seeing errors.
        """
        self.always_served = always_served
        self.drain_seconds: float | None = None
        self._begun = anyio.Event()
        self._expired = anyio.Event()
        self._idle: anyio.Event | None = None
        self._refusing = False
        self._cut = False
        self._requests: set[Cancellable] = set()
        self._streams: set[Cancellable] = set()
        self._finished_at = float("-inf")

    def __repr__(self) -> str:
        """Show the state and the number of requests in flight."""
        return f"<Draining {self.state}, {self.in_flight} in flight>"

    @property
    def state(self) -> str:
        """One of ``serving``, ``draining``, ``refusing``, ``expired``, ``cut``."""
        if self._cut:
            return "cut"
        if self.expired:
            return "expired"
        if self._refusing:
            return "refusing"
        return "draining" if self.is_set() else "serving"

    def is_set(self) -> bool:
        """Tell whether the server is going away: readiness is then red."""
        return self._begun.is_set()

    @property
    def expired(self) -> bool:
        """True once the time for requests in flight is over; streams must end with an error."""
        return self._expired.is_set()

    @property
    def in_flight(self) -> int:
        """Requests between their arrival and the end of their answer."""
        return len(self._requests)

    def patience(self, configured: float) -> float:
        """Give the seconds for requests in flight.

        Args:
            configured: what the server was started with.
        """
        return configured if self.drain_seconds is None else self.drain_seconds

    async def wait(self) -> None:
        """Wait until the server starts to go away."""
        await self._begun.wait()

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        while self._requests:
            if self._idle is None:
                self._idle = anyio.Event()
            await self._idle.wait()

    def begin(self) -> None:
        """Turn readiness red and let every answer close its connection."""
        self._begun.set()

    def refuse(self) -> None:
        """Answer new requests with 503 from here on."""
        self.begin()
        self._refusing = True

    def expire(self) -> None:
        """Tell the streams in flight to end themselves."""
        self.refuse()
        self._expired.set()
        for stream in tuple(self._streams):
            stream.cancel()

    def cut(self) -> int:
        """Cancel every request that is left.

        Returns:
            How many there were.
        """
        self.expire()
        self._cut = True
        left = tuple(self._requests)
        for request in left:
            request.cancel()
        return len(left)

    def refuses(self, path: str) -> bool:
        """Tell whether a new request for this path is to be answered with 503."""
        return self._refusing and path not in self.always_served

    def enter(self, request: Cancellable) -> None:
        """Count a request in. Pair with `leave` in a ``finally``."""
        self._requests.add(request)
        if self._cut:
            request.cancel()

    def leave(self, request: Cancellable) -> None:
        """Count a request out; doing it twice is harmless."""
        self._requests.discard(request)
        self._finished_at = anyio.current_time()
        if self._idle is not None and not self._requests:
            self._idle.set()
            self._idle = None

    def served_within(self, seconds: float) -> bool:
        """Tell whether a request was in flight during the last seconds.

        If none was for longer than the keep-alive timeout, no idle connection can be open.
        """
        return bool(self._requests) or anyio.current_time() - self._finished_at < seconds

    def ends(self, stream: Cancellable) -> "EndsOnExpiry":
        """Let a stream be stopped, not cut, when the time is over.

        The stream keeps control: its cancel scope is cancelled, and what stands behind the scope
        can still send the event that says why the stream ends::

            with CancelScope() as scope, draining.ends(scope):
                ... send the events ...
            if draining.expired and scope.cancelled_caught:
                ... send the error event and the end ...

        Args:
            stream: the cancel scope around the loop that sends the events.
        """
        return EndsOnExpiry(self._streams, stream, expired=self.expired)


class EndsOnExpiry:
    """Context manager that keeps a stream registered; made by `Draining.ends`."""

    __slots__ = ("_expired", "_stream", "_streams")

    def __init__(self, streams: set[Cancellable], stream: Cancellable, *, expired: bool) -> None:
        """Remember where to register what."""
        self._streams = streams
        self._stream = stream
        self._expired = expired

    def __enter__(self) -> None:
        """Register the stream, and end it at once if it comes too late."""
        self._streams.add(self._stream)
        if self._expired:
            self._stream.cancel()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Forget the stream."""
        self._streams.discard(self._stream)
