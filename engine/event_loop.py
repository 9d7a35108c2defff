"""What the engine takes from the running event loop, without anyio's look-ups per call.

`anyio.Event()` and `anyio.current_time()` first find out which event loop is running,
1 to 2 µs each time. A router lives on one event loop, so it asks once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import anyio
import anyio.lowlevel


def native_clock() -> Callable[[], float]:
    """The running event loop's own monotonic clock, in seconds.

    It is the clock of `anyio.current_time`. Trio's token has none, so there it is that
    function itself. uvloop reads the system's monotonic clock once a turn and rounds it to
    milliseconds, which is too coarse to tell what the gateway itself has cost, so there it
    is the same clock read directly.
    """
    loop = anyio.lowlevel.current_token().native_token
    if type(loop).__module__.partition(".")[0] == "uvloop":
        return time.monotonic  # noqa: TID251 - the loop's clock, unrounded
    loop_time = getattr(loop, "time", None)
    return loop_time if callable(loop_time) else anyio.current_time


def native_event() -> Callable[[], anyio.Event]:
    """What makes events on the running event loop, as `anyio.Event` would.

    On asyncio anyio's event wraps asyncio's, which costs two coroutines for each wait; a
    request waits twice. There it is an event on the loop's own futures instead.
    """
    loop = anyio.lowlevel.current_token().native_token
    make_future = getattr(loop, "create_future", None)
    if make_future is None:
        return type(anyio.Event())
    return partial(FutureEvent, make_future)


class FutureEvent(anyio.Event):
    """An event on an asyncio loop: whoever waits, waits for a future, and nothing between.

    Each waiter has a future of its own: cancelling a waiter cancels the future that it
    waits for, which must not end the wait of another.
    """

    __slots__ = ("_make_future", "_set", "_waiting")

    def __new__(cls, make_future: Callable[[], Any]) -> Self:  # noqa: ARG004 - as __init__ takes
        """Make one of this class: anyio's own would look for the running loop."""
        return object.__new__(cls)

    def __init__(self, make_future: Callable[[], Any]) -> None:
        self._make_future = make_future
        self._set = False
        self._waiting: list[Any] | None = None

    def set(self) -> None:
        """Wake all who wait."""
        self._set = True
        if self._waiting is not None:
            for future in self._waiting:
                if not future.done():
                    future.set_result(None)
            self._waiting = None

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._set

    def wait(self) -> Any:
        """Wait until it is set."""
        if self._set:
            return anyio.lowlevel.checkpoint()
        future = self._make_future()
        if self._waiting is None:
            self._waiting = [future]
        else:
            # Those who were cancelled have left theirs behind.
            self._waiting = [each for each in self._waiting if not each.done()]
            self._waiting.append(future)
        return future

    def statistics(self) -> anyio.EventStatistics:
        """How many wait."""
        waiting = [each for each in self._waiting or () if not each.done()]
        return anyio.EventStatistics(len(waiting))
