"""How long one call may take at each step, how many run at once, and how that is read off."""

import functools
from typing import Final, NamedTuple

import anyio
import httpx

_SHORTEST_SECONDS: Final = 0.001  # 0 means "no limit" to the clients below; we mean "now"
_LONGEST_SECONDS: Final = 86_400.0  # a day: every wait ends, whatever the caller wrote

DEFAULT_CONCURRENT_CALLS: Final = 1_000
KEEPALIVE_SECONDS: Final = 15.0  # below what servers commonly allow, so we rarely meet a dead one


class CallLimits(NamedTuple):
    """Limits of one call, all in seconds, all finite.

    Attributes:
        connect: Name look-up, TCP and TLS handshakes together, over all addresses tried.
        read: Longest silence of the upstream, before its headers and between body bytes.
        write: Longest time in which the upstream takes no further part of the body.
        pool: Longest wait for a free connection slot.
    """

    connect: float = 5.0
    read: float = 60.0
    write: float = 30.0
    pool: float = 5.0


class PoolStatistics(NamedTuple):
    """What the pool of the running event loop does at this instant.

    Attributes:
        limit: Calls that may run at once.
        in_flight: Calls that hold a slot, from before the connect to the end of the body.
        waiting: Calls that wait for a slot.
    """

    limit: int
    in_flight: int
    waiting: int


DEFAULT_LIMITS: Final = CallLimits()


def limits_of(request: httpx.Request) -> CallLimits:
    """Read the limits of a call from `request.extensions["timeout"]` (httpx's convention).

    A missing entry, and httpx's `None` for "unlimited", mean the finite default.
    """
    given = request.extensions.get("timeout")
    if not given:
        return DEFAULT_LIMITS
    get = given.get
    return _bounded(get("connect"), get("read"), get("write"), get("pool"))


@functools.lru_cache(maxsize=256)  # a provider's calls mostly have the same limits
def _bounded(
    connect: float | None, read: float | None, write: float | None, pool: float | None
) -> CallLimits:
    return CallLimits(
        connect=_finite(connect, DEFAULT_LIMITS.connect),
        read=_finite(read, DEFAULT_LIMITS.read),
        write=_finite(write, DEFAULT_LIMITS.write),
        pool=_finite(pool, DEFAULT_LIMITS.pool),
    )


def _finite(seconds: float | None, default: float) -> float:
    if seconds is None:
        return default
    return min(max(seconds, _SHORTEST_SECONDS), _LONGEST_SECONDS)


async def take_slot(slots: anyio.Semaphore, seconds: float) -> None:
    """Take a connection slot, waiting at most `seconds` for one.

    Raises:
        httpx.PoolTimeout: No slot became free in time; nothing was sent.
    """
    try:
        slots.acquire_nowait()
    except anyio.WouldBlock:
        pass
    else:
        return
    with anyio.move_on_after(seconds):
        await slots.acquire()
        return
    message = f"no free connection slot within {seconds:g} s"
    raise httpx.PoolTimeout(message)


def statistics_of(slots: anyio.Semaphore, limit: int) -> PoolStatistics:
    """Count the slots of one event loop."""
    return PoolStatistics(
        limit=limit,
        in_flight=limit - slots.value,
        waiting=slots.statistics().tasks_waiting,
    )
