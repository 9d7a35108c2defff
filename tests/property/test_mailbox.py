"""The mailbox as a state machine, beside a model that is a plain list."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine import MailboxFullError
from engine.mailbox import AGEING, Mailbox
from engine.priority import Priority

PERCENT = [100, 90, 70, 50]

# Multiples of a power of two, so that sums are exact and equal ranks do occur.
quarters = st.integers(0, 40).map(lambda count: count / 4)


class Item:
    """Something that waits; items are told apart by identity."""

    __slots__ = ("deadline", "priority", "queued_at")

    def __init__(self, queued_at: float, deadline: float, priority: Priority) -> None:
        self.queued_at = queued_at
        self.deadline = deadline
        self.priority = priority

    def effective_class(self, now: float) -> float:
        """What its class has become by waiting."""
        return self.priority - (now - self.queued_at) / AGEING


class MailboxMachine(RuleBasedStateMachine):
    """Offers, takes, withdrawals, pauses and closing in any order."""

    mailbox: Mailbox[Item]

    @initialize(capacity=st.integers(0, 12))
    def make(self, capacity: int) -> None:
        self.capacity = capacity
        self.mailbox = Mailbox("owner", capacity)
        self.waiting: list[Item] = []
        self.gone: list[Item] = []
        self.now = 0.0
        self.offered = self.taken = self.withdrawn = self.refused = self.expired = 0

    def oldest(self) -> Item | None:
        """Who has waited longest; of several that came together, one that matters least."""
        return min(self.waiting, key=lambda i: (i.queued_at, -i.priority), default=None)

    def overloaded(self) -> bool:
        oldest = self.oldest()
        if oldest is None:
            return False
        return (self.now - oldest.queued_at) * 10 >= oldest.deadline - oldest.queued_at

    def leave(self, item: Item) -> None:
        self.waiting.remove(item)
        self.gone.append(item)

    @rule(pause=quarters)
    def wait(self, pause: float) -> None:
        self.now += pause

    @rule(pause=st.sampled_from([0.0, 0.25]), time=quarters.map(lambda t: t * 10),
          priority=st.sampled_from(Priority))  # fmt: skip
    def offer(self, pause: float, time: float, priority: Priority) -> None:
        self.now += pause
        item = Item(self.now, self.now + time, priority)
        room = len(self.waiting) * 100 < self.capacity * PERCENT[priority]
        assert self.mailbox.has_room_for(priority) == room
        if room:
            self.mailbox.offer(item)
            self.waiting.append(item)
            self.offered += 1
        else:
            with pytest.raises(MailboxFullError) as caught:
                self.mailbox.offer(item)
            assert caught.value.reason == "mailbox_full"
            self.gone.append(item)
            self.refused += 1

    @rule(pause=st.sampled_from([0.0, 0.25]))
    def take(self, pause: float) -> None:
        self.now += pause
        expected = self.next()
        while expected is not None and expected.deadline <= self.now:
            self.leave(expected)
            self.withdrawn += 1
            self.expired += 1
            expected = self.next()
        item = self.mailbox.take(self.now)
        assert item is expected
        if item is None:
            assert not self.waiting
        else:
            self.leave(item)
            self.taken += 1

    def next(self) -> Item | None:
        """Whose turn it is, by the rules as one would tell them; the expired go first."""
        classes = [[item for item in self.waiting if item.priority is p] for p in Priority]
        classes = [queue for queue in classes if queue]
        for queue in classes:
            if queue[0].deadline <= self.now:
                return queue[0]
        candidates = [queue[-1 if self.overloaded() else 0] for queue in classes]
        return min(
            candidates, key=lambda e: (e.effective_class(self.now), e.queued_at), default=None
        )

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.waiting))
        assert self.mailbox.withdraw(item)
        self.leave(item)
        self.withdrawn += 1

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def withdraw_what_is_gone(self, data: st.DataObject) -> None:
        assert not self.mailbox.withdraw(data.draw(st.sampled_from(self.gone)))

    @rule()
    def clear(self) -> None:
        cleared = self.mailbox.clear()
        assert cleared == sorted(self.waiting, key=lambda item: item.priority)
        self.gone += cleared
        self.withdrawn += len(cleared)
        self.waiting = []

    @invariant()
    def counts_agree(self) -> None:
        status = self.mailbox.status(self.now)
        assert len(self.mailbox) == status.depth == len(self.waiting) <= self.capacity
        assert status.capacity == self.capacity
        assert (status.offered, status.taken) == (self.offered, self.taken)
        assert (status.withdrawn, status.refused) == (self.withdrawn, self.refused)
        assert status.offered == status.taken + status.withdrawn + status.depth
        assert status.expired == self.expired <= status.withdrawn
        words = [item.priority.word for item in self.waiting]
        assert status.depths == {priority.word: words.count(priority.word) for priority in Priority}
        assert self.mailbox.has_room == (len(self.waiting) < self.capacity)

    @invariant()
    def ages_agree(self) -> None:
        status = self.mailbox.status(self.now)
        oldest = self.oldest()
        assert status.oldest_age == (self.now - oldest.queued_at if oldest else 0)
        assert status.overloaded == self.overloaded()


TestMailbox = MailboxMachine.TestCase
