"""`Mailbox`: the bounded queue in front of a provider.

What it does when there is too much: less important requests find it full sooner, waiting
makes a request more important, and once the oldest has waited for long, the newest are
served first (adaptive LIFO, as Facebook describes it in "Fail at Scale", 2015). The old
ones would hardly be answered in time any more; served first, they would make all who
stand behind them late as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.errors import MailboxFullError, RejectedError
from engine.priority import Priority

ADMITTED_PERCENT = {
    Priority.CRITICAL_PLUS: 100,
    Priority.CRITICAL: 90,
    Priority.SHEDDABLE_PLUS: 70,
    Priority.SHEDDABLE: 50,
}
"""Up to which part of the capacity, all classes together, a class is let in."""

AGEING = 5.0
"""Seconds of waiting that make up for one class. A class is thus a head start: 5 s is some
times a usual first event, so that a burst of important requests passes first as a whole;
and the least important gets level with new requests of the most important in 3 * 5 = 15 s,
half of an attempt's default time, so that there is still time left to answer it."""

FRESH_SHARE = 0.1
"""Part of its time that the oldest item may have waited before the newest go first. Below
it, order costs nobody much and first come, first served is fair."""


class Queued(Protocol):
    """What a mailbox needs to know of its items; none of it may change while one waits."""

    @property
    def queued_at(self) -> float:
        """When the item was offered, an instant of the router's clock."""
        ...

    @property
    def deadline(self) -> float:
        """From when on it is pointless to hand the item out, an instant of the same clock."""
        ...

    @property
    def priority(self) -> Priority:
        """How much the item matters."""
        ...


ItemT = TypeVar("ItemT", bound=Queued)


@dataclass(frozen=True, slots=True)
class MailboxStatus:
    """A mailbox at one instant; `offered = taken + withdrawn + depth` always holds.

    Attributes:
        depth: Items that wait.
        capacity: Items that may wait.
        oldest_age: Seconds that the oldest has waited; 0 when nothing waits.
        offered: Items that were let in so far.
        taken: Items that were handed out.
        withdrawn: Items that left without being handed out: given up, expired, closed.
        refused: Items that found no room.
        expired: Of the withdrawn ones, those that were found too late when their turn came.
        depths: Items that wait, by the word of their class.
        overloaded: Whether the newest are served first.
    """

    depth: int
    capacity: int
    oldest_age: float
    offered: int
    taken: int
    withdrawn: int
    refused: int
    expired: int
    depths: dict[str, int]
    overloaded: bool


class ClassFullError(MailboxFullError):
    """A mailbox keeps the room that it has left for requests that matter more."""

    def __init__(self, provider: str, priority: Priority, bound: int) -> None:
        # Past the parent, whose text says that the whole mailbox is full.
        RejectedError.__init__(
            self,
            f"the mailbox of provider {provider!r} is full for {priority.word} requests "
            f"({bound} or more requests wait)",
            reason="mailbox_full",
        )


class Mailbox(Generic[ItemT]):
    """Never more than `capacity` items, the most important first; nobody ever waits here.

    An item that is withdrawn leaves its room at once, wherever in the queue it stands.
    All operations take the time of a few dictionary look-ups, however many items wait.
    """

    def __init__(self, owner: str, capacity: int) -> None:
        self._owner = owner
        self._capacity = capacity
        # Rounded up: a mailbox that holds anything holds at least one of each class.
        self._bounds = [-(-capacity * ADMITTED_PERCENT[priority] // 100) for priority in Priority]
        self._queues: list[OrderedDict[ItemT, None]] = [OrderedDict() for _ in Priority]
        self._depth = 0
        self._offered = self._taken = self._withdrawn = self._refused = self._expired = 0

    def __len__(self) -> int:
        return self._depth

    @property
    def has_room(self) -> bool:
        """Whether `offer` would succeed for an item of the most important class."""
        return self._depth < self._capacity

    def has_room_for(self, priority: Priority) -> bool:
        """Whether `offer` would succeed for an item of that class."""
        return self._depth < self._bounds[priority]

    def offer(self, item: ItemT) -> None:
        """Put an item at the end of its class.

        Raises:
            MailboxFullError: If there is no room for its class; the text names the bound.
        """
        priority = item.priority
        if self._depth >= self._bounds[priority]:
            self._refused += 1
            if self._depth >= self._capacity:
                raise MailboxFullError(self._owner, self._capacity)
            raise ClassFullError(self._owner, priority, self._bounds[priority])
        self._queues[priority][item] = None
        self._depth += 1
        self._offered += 1

    def take(self, now: float) -> ItemT | None:
        """Hand out the item whose turn it is, or None if none is waiting.

        That is the most important of each class's first, or of each class's newest under
        overload, where `AGEING` seconds of waiting weigh as much as one class. So in calm
        times nobody starves; under overload a class starves only while newer requests of
        its own or more important ones keep coming, which is what overload has to mean.

        Items that are met past their deadline are dropped, and nobody is told: whoever
        watches over deadlines answers them.
        """
        if not self._depth:
            return None
        while (item := self._next(now)) is not None:
            del self._queues[item.priority][item]
            self._depth -= 1
            if now < item.deadline:
                self._taken += 1
                return item
            self._withdrawn += 1
            self._expired += 1
        return None

    def withdraw(self, item: ItemT) -> bool:
        """Take an item out of the queue; False if it was not there (any more)."""
        queue = self._queues[item.priority]
        if item not in queue:
            return False
        del queue[item]
        self._depth -= 1
        self._withdrawn += 1
        return True

    def __iter__(self) -> Iterator[ItemT]:
        """All that wait, the most important class first, the oldest of it first."""
        return (item for queue in self._queues for item in queue)

    def clear(self) -> list[ItemT]:
        """Take everything out, in the order of iteration."""
        items = list(self)
        for queue in self._queues:
            queue.clear()
        self._withdrawn += len(items)
        self._depth = 0
        return items

    def status(self, now: float) -> MailboxStatus:
        """The mailbox now, for people and metrics."""
        oldest = min(self._fronts(), key=_queued_at, default=None)
        return MailboxStatus(
            depth=self._depth,
            capacity=self._capacity,
            oldest_age=0.0 if oldest is None else max(0.0, now - oldest.queued_at),
            offered=self._offered,
            taken=self._taken,
            withdrawn=self._withdrawn,
            refused=self._refused,
            expired=self._expired,
            depths={priority.word: len(self._queues[priority]) for priority in Priority},
            overloaded=oldest is not None and _stale(oldest, now),
        )

    def _fronts(self) -> Iterator[ItemT]:
        """The oldest item of each class that has any, the least important class first.

        `min` takes the first of equals: who has just caught up with a class has waited longer.
        """
        return (next(iter(queue)) for queue in reversed(self._queues) if queue)

    def _next(self, now: float) -> ItemT | None:
        """The item whose turn it is, or one past its deadline that stands in the way."""
        oldest: ItemT | None = None
        for item in self._fronts():
            if now >= item.deadline:
                # Before anything is decided: the dead say nothing about the load.
                return item
            if oldest is None or item.queued_at < oldest.queued_at:
                oldest = item
        if oldest is None:
            return None
        if not _stale(oldest, now):
            return min(self._fronts(), key=_rank)
        newest = (next(reversed(queue)) for queue in reversed(self._queues) if queue)
        return min(newest, key=_rank)


def _queued_at(item: Queued) -> float:
    return item.queued_at


def _rank(item: Queued) -> float:
    """When the item came, as if each class below the first had come `AGEING` seconds later.

    Comparing this is comparing classes that improve by one with every `AGEING` seconds of
    waiting, and as all age alike, it does not depend on the instant of the comparison.
    """
    return item.queued_at + AGEING * item.priority


def _stale(item: Queued, now: float) -> bool:
    """Whether an item has waited for so much of its time that newer ones should go first."""
    return now - item.queued_at >= FRESH_SHARE * (item.deadline - item.queued_at)
