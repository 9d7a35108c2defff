"""The mailbox as a state machine, beside a model that is a plain list."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine import MailboxFullError
from engine.mailbox import Mailbox


class Item:
    """Something that waits; items are told apart by identity."""

    __slots__ = ("queued_at",)

    def __init__(self, queued_at: float) -> None:
        self.queued_at = queued_at


class MailboxMachine(RuleBasedStateMachine):
    """Offers, takes, withdrawals and closing in any order."""

    mailbox: Mailbox[Item]

    @initialize(capacity=st.integers(0, 6))
    def make(self, capacity: int) -> None:
        self.capacity = capacity
        self.mailbox = Mailbox("owner", capacity)
        self.waiting: list[Item] = []
        self.gone: list[Item] = []
        self.now = 0.0
        self.offered = self.taken = self.withdrawn = self.refused = 0

    @rule(pause=st.floats(0, 10))
    def offer(self, pause: float) -> None:
        self.now += pause
        item = Item(self.now)
        assert self.mailbox.has_room == (len(self.waiting) < self.capacity)
        if len(self.waiting) < self.capacity:
            self.mailbox.offer(item)
            self.waiting.append(item)
            self.offered += 1
        else:
            with pytest.raises(MailboxFullError) as caught:
                self.mailbox.offer(item)
            assert caught.value.reason == "mailbox_full"
            self.gone.append(item)
            self.refused += 1

    @rule()
    def take(self) -> None:
        item = self.mailbox.take()
        if self.waiting:
            assert item is self.waiting.pop(0)
            self.gone.append(item)
            self.taken += 1
        else:
            assert item is None

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        item = self.waiting.pop(data.draw(st.integers(0, len(self.waiting) - 1)))
        assert self.mailbox.withdraw(item)
        self.gone.append(item)
        self.withdrawn += 1

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def withdraw_what_is_gone(self, data: st.DataObject) -> None:
        assert not self.mailbox.withdraw(data.draw(st.sampled_from(self.gone)))

    @rule()
    def clear(self) -> None:
        assert self.mailbox.clear() == self.waiting
        self.gone += self.waiting
        self.withdrawn += len(self.waiting)
        self.waiting = []

    @invariant()
    def counts_agree(self) -> None:
        status = self.mailbox.status(self.now)
        assert len(self.mailbox) == status.depth == len(self.waiting) <= self.capacity
        assert status.capacity == self.capacity
        assert (status.offered, status.taken) == (self.offered, self.taken)
        assert (status.withdrawn, status.refused) == (self.withdrawn, self.refused)
        assert status.offered == status.taken + status.withdrawn + status.depth
        oldest = self.waiting[0].queued_at if self.waiting else self.now
        assert status.oldest_age == self.now - oldest


TestMailbox = MailboxMachine.TestCase
