"""What the engine takes from the running event loop, without anyio's look-ups per call.

`anyio.Event()` and `anyio.current_time()` first find out which event loop is running,
1 to 2 µs each time. A router lives on one event loop, so it asks once.
"""

from __future__ import annotations

import time
from collections.abc import Callable

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


def native_event() -> type[anyio.Event]:
    """The class of `anyio.Event` objects on the running event loop."""
    return type(anyio.Event())
