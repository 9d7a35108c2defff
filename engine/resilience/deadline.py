"""`DeadlineWheel`: one task and one timer for every limit in the router.

A cancel scope with a deadline costs two timer operations on the event loop for each
request, though nearly no request ever meets its limit. Here a limit is an entry in a
dictionary, filed under the tick in which it falls due (hashed timing wheel, after
Varghese and Lauck 1987), and given back when the request ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.lowlevel

TICK = 0.02
"""Seconds by which a limit may be noticed late: a fifth of the 100 ms that we promise."""


class Timed(Protocol):
    """Something with an instant at which it is due.

    Attributes:
        tick: The wheel's entry; None while it is not on a wheel.
    """

    tick: int | None

    def on_due(self, now: float) -> None:
        """React to the instant having passed. Must not wait and must not raise."""
        ...


class DeadlineWheel:
    """Calls `on_due` of each entry within `TICK` seconds after its instant.

    Bounded by the number of requests in flight: each has one entry at most.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[int, dict[Timed, None]] = {}
        self._ticks: list[int] = []
        self._sleeping_until: int | None = None
        self._sooner = anyio.Event()

    def add(self, item: Timed, when: float) -> None:
        """File an item that is on no wheel."""
        tick = item.tick = int(when / TICK) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {item: None}
            heapq.heappush(self._ticks, tick)
            if self._sleeping_until is None or tick < self._sleeping_until:
                self._sooner.set()
        else:
            bucket[item] = None

    def discard(self, item: Timed) -> None:
        """Take an item off, if it is on the wheel."""
        tick = item.tick
        if tick is not None:
            item.tick = None
            del self._buckets[tick][item]

    def move(self, item: Timed, when: float) -> None:
        """File an item under another instant, wherever it was before."""
        tick = item.tick
        if tick is not None:
            if tick == int(when / TICK) + 1:
                return
            del self._buckets[tick][item]
        self.add(item, when)

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    async def run(self) -> None:
        """Watch the wheel until cancelled."""
        while True:
            self._sooner = anyio.Event()
            if not self._ticks:
                self._sleeping_until = None
                await self._sooner.wait()
                continue
            self._sleeping_until = self._ticks[0]
            delay = self._sleeping_until * TICK - self._clock()
            if delay > 0:
                with anyio.move_on_after(delay):
                    await self._sooner.wait()
            else:
                # A turn for the others, should an item file itself as due again and again.
                await anyio.lowlevel.checkpoint()
            self._fire(self._clock())

    def _fire(self, now: float) -> None:
        # The product of tick and count is not exact in floating point: a millionth of a
        # tick of tolerance keeps a wake-up in time from finding nothing due.
        reached = int(now / TICK + 1e-6)
        due = []
        while self._ticks and self._ticks[0] <= reached:
            due.append(self._buckets.pop(heapq.heappop(self._ticks)))
        # Taken off before any is called: an item may file itself again, under this very
        # tick too, and must then wait for the next turn, or this loop would never end.
        for bucket in due:
            for item in bucket:
                item.tick = None
        for bucket in due:
            for item in bucket:
                item.on_due(now)
        # Only here, and not whenever a bucket runs empty: a caller that asks one thing
        # after the other would otherwise wake this task with every request.
        while self._ticks and not self._buckets[self._ticks[0]]:
            del self._buckets[heapq.heappop(self._ticks)]
