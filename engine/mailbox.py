"""`Mailbox`: the bounded queue in front of a provider."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from engine.errors import MailboxFullError


class Queued(Protocol):
    """What a mailbox needs to know of its items."""

    @property
    def queued_at(self) -> float:
        """When the item was offered, an instant of the router's clock."""
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
    """

    depth: int
    capacity: int
    oldest_age: float
    offered: int
    taken: int
    withdrawn: int
    refused: int


class Mailbox(Generic[ItemT]):
    """First in, first out; never more than `capacity` items; nobody ever waits here.

    An item that is withdrawn leaves its room at once, wherever in the queue it stands.
    """

    def __init__(self, owner: str, capacity: int) -> None:
        self._owner = owner
        self._capacity = capacity
        self._items: OrderedDict[ItemT, None] = OrderedDict()
        self._offered = self._taken = self._withdrawn = self._refused = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def has_room(self) -> bool:
        """Whether `offer` would succeed."""
        return len(self._items) < self._capacity

    def offer(self, item: ItemT) -> None:
        """Put an item at the end.

        Raises:
            MailboxFullError: If there is no room.
        """
        if len(self._items) >= self._capacity:
            self._refused += 1
            raise MailboxFullError(self._owner, self._capacity)
        self._items[item] = None
        self._offered += 1

    def take(self) -> ItemT | None:
        """Hand out the item that has waited longest, or None."""
        if not self._items:
            return None
        item, _ = self._items.popitem(last=False)
        self._taken += 1
        return item

    def withdraw(self, item: ItemT) -> bool:
        """Take an item out of the queue; False if it was not there (any more)."""
        if item not in self._items:
            return False
        del self._items[item]
        self._withdrawn += 1
        return True

    def clear(self) -> list[ItemT]:
        """Take everything out, oldest first."""
        items = list(self._items)
        self._items.clear()
        self._withdrawn += len(items)
        return items

    def status(self, now: float) -> MailboxStatus:
        """The mailbox now, for people and metrics."""
        oldest = next(iter(self._items), None)
        return MailboxStatus(
            depth=len(self._items),
            capacity=self._capacity,
            oldest_age=0.0 if oldest is None else max(0.0, now - oldest.queued_at),
            offered=self._offered,
            taken=self._taken,
            withdrawn=self._withdrawn,
            refused=self._refused,
        )
