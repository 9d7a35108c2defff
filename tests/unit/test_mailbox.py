"""The bounded queue in front of a provider; its laws are in tests/property."""

from dataclasses import dataclass

import pytest

from engine import MailboxFullError
from engine.mailbox import Mailbox


@dataclass(eq=False, slots=True)
class Item:
    """Something that waits."""

    queued_at: float = 0.0


def test_full_mailbox_names_its_owner_and_bound() -> None:
    """The refusal says whose mailbox is full and how many it holds."""
    mailbox: Mailbox[Item] = Mailbox("openai-main", 2)
    mailbox.offer(Item())
    mailbox.offer(Item())
    with pytest.raises(MailboxFullError, match=r"'openai-main' is full \(2 requests wait\)"):
        mailbox.offer(Item())
    assert mailbox.status(0).refused == 1


def test_withdrawing_from_the_middle_makes_room_at_once() -> None:
    """An item that leaves gives its room back wherever it stands, and order is kept."""
    mailbox: Mailbox[Item] = Mailbox("a", 3)
    items = [Item() for _ in range(3)]
    for item in items:
        mailbox.offer(item)
    assert mailbox.withdraw(items[1])
    late = Item()
    mailbox.offer(late)
    assert [mailbox.take() for _ in range(4)] == [items[0], items[2], late, None]


def test_age_is_never_negative() -> None:
    """A clock that is read a moment earlier does not show a negative age."""
    mailbox: Mailbox[Item] = Mailbox("a", 1)
    mailbox.offer(Item(queued_at=5.0))
    assert mailbox.status(4.9).oldest_age == 0
    assert mailbox.status(7.5).oldest_age == 2.5


def test_capacity_zero_takes_nothing() -> None:
    """A mailbox without room is a legal choice: nobody ever waits."""
    mailbox: Mailbox[Item] = Mailbox("a", 0)
    assert not mailbox.has_room
    with pytest.raises(MailboxFullError):
        mailbox.offer(Item())
