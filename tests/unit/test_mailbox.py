"""The bounded queue in front of a provider; its laws are in tests/property."""

import math
from dataclasses import dataclass

import pytest

from engine import MailboxFullError
from engine.mailbox import AGEING, Mailbox
from engine.priority import Priority

CRITICAL_PLUS, CRITICAL, SHEDDABLE_PLUS, SHEDDABLE = Priority


@dataclass(eq=False, slots=True)
class Item:
    """Something that waits."""

    queued_at: float = 0.0
    deadline: float = math.inf
    priority: Priority = CRITICAL_PLUS


def filled(*items: Item, capacity: int = 100) -> Mailbox[Item]:
    """A mailbox in which these items wait."""
    mailbox: Mailbox[Item] = Mailbox("a", capacity)
    for item in items:
        mailbox.offer(item)
    return mailbox


def order(mailbox: Mailbox[Item], now: float) -> list[Item]:
    """Everything that can be taken at one instant."""
    taken = []
    while (item := mailbox.take(now)) is not None:
        taken.append(item)
    return taken


# ── room ─────────────────────────────────────────────────────────────────────────────


def test_full_mailbox_names_its_owner_and_bound() -> None:
    """The refusal says whose mailbox is full and how many it holds."""
    mailbox: Mailbox[Item] = Mailbox("openai-main", 2)
    mailbox.offer(Item())
    mailbox.offer(Item())
    with pytest.raises(MailboxFullError, match=r"'openai-main' is full \(2 requests wait\)"):
        mailbox.offer(Item())
    assert mailbox.status(0).refused == 1


def test_refusal_of_a_class_names_the_class_and_its_bound() -> None:
    """While there is room for others, the text says for whom there is none."""
    mailbox = filled(*(Item() for _ in range(5)), capacity=10)
    with pytest.raises(
        MailboxFullError, match=r"'a' is full for sheddable requests \(5 or more requests wait\)"
    ) as caught:
        mailbox.offer(Item(priority=SHEDDABLE))
    assert (caught.value.reason, caught.value.status) == ("mailbox_full", 503)
    assert caught.value.retry_after
    assert mailbox.status(0).refused == 1


@pytest.mark.parametrize(
    ("capacity", "bounds"),
    [
        (0, [0, 0, 0, 0]),
        (1, [1, 1, 1, 1]),
        (2, [2, 2, 2, 1]),
        (3, [3, 3, 3, 2]),
        (10, [10, 9, 7, 5]),
        (128, [128, 116, 90, 64]),
        (1_000, [1_000, 900, 700, 500]),
    ],
)
def test_class_is_let_in_up_to_its_part(capacity: int, bounds: list[int]) -> None:
    """100, 90, 70 and 50 % of the capacity, rounded up."""
    mailbox: Mailbox[Item] = Mailbox("a", capacity)
    admitted = []
    for depth in range(capacity + 1):
        admitted.append([mailbox.has_room_for(priority) for priority in Priority])
        assert mailbox.has_room == mailbox.has_room_for(CRITICAL_PLUS)
        if depth < capacity:
            mailbox.offer(Item())
    assert [sum(column) for column in zip(*admitted, strict=True)] == bounds


def test_bound_of_a_class_counts_all_classes() -> None:
    """It is the room that is left which decides, whoever has taken the rest."""
    mailbox = filled(*(Item(priority=SHEDDABLE) for _ in range(5)), capacity=10)
    assert not mailbox.has_room_for(SHEDDABLE)
    for _ in range(2):
        mailbox.offer(Item(priority=SHEDDABLE_PLUS))
    assert not mailbox.has_room_for(SHEDDABLE_PLUS)
    assert mailbox.has_room_for(CRITICAL)


def test_withdrawing_from_the_middle_makes_room_at_once() -> None:
    """An item that leaves gives its room back wherever it stands, and order is kept."""
    items = [Item() for _ in range(3)]
    mailbox = filled(*items, capacity=3)
    assert mailbox.withdraw(items[1])
    assert not mailbox.withdraw(items[1])
    late = Item()
    mailbox.offer(late)
    assert order(mailbox, 0) == [items[0], items[2], late]


def test_capacity_zero_takes_nothing() -> None:
    """A mailbox without room is a legal choice: nobody ever waits."""
    mailbox: Mailbox[Item] = Mailbox("a", 0)
    assert not mailbox.has_room
    with pytest.raises(MailboxFullError):
        mailbox.offer(Item())


# ── classes and ageing ───────────────────────────────────────────────────────────────


def test_most_important_class_goes_first() -> None:
    """Whoever came first, the class decides among items of the same age."""
    items = [Item(priority=priority) for priority in reversed(Priority)]
    assert order(filled(*items), 0) == items[::-1]


def test_class_is_served_in_order_of_arrival() -> None:
    """First in, first out, while nobody has waited for long."""
    items = [Item(at, at + 100) for at in (0, 1, 2)]
    assert order(filled(*items), 3) == items


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_waiting_makes_up_for_classes(classes: int) -> None:
    """An item gets level with new ones of the next class after `AGEING` seconds."""
    old = Item(priority=Priority(classes))
    slightly_sooner = Item(queued_at=AGEING * classes - 0.1)
    just_then = Item(queued_at=AGEING * classes)
    assert order(filled(old, slightly_sooner, just_then), 20) == [slightly_sooner, old, just_then]


def test_nobody_starves_in_calm_times() -> None:
    """Though a more important item always waits, the least important gets its turn."""
    least = Item(priority=SHEDDABLE, deadline=1_000)
    mailbox = filled(least)
    for second in range(17):
        mailbox.offer(Item(second, second + 1_000))
        if mailbox.take(second) is least:
            break
    assert second == 3 * AGEING


def test_nobody_starves_for_want_of_newer_ones() -> None:
    """Under overload, too, an item ages, as long as no newer one of its class comes."""
    least = Item(priority=SHEDDABLE, deadline=30)
    mailbox = filled(least)
    for second in range(1, 17):
        mailbox.offer(Item(second, second + 30))
        if mailbox.take(second) is least:
            break
    assert second == 3 * AGEING


# ── overload ─────────────────────────────────────────────────────────────────────────


def test_newest_goes_first_once_the_oldest_has_waited_too_long() -> None:
    """From a tenth of the oldest item's time on, order is turned round."""
    items = [Item(at, at + 100) for at in (0, 1, 2)]
    mailbox = filled(*items)
    assert not mailbox.status(9.9).overloaded
    assert mailbox.status(10).overloaded
    assert order(mailbox, 10) == items[::-1]


def test_order_returns_when_the_backlog_is_gone() -> None:
    """There is no memory of an overload: what waits now decides."""
    old, *fresh = items = [Item(0, 100), Item(9, 109), Item(9.5, 109.5), Item(9.75, 109.75)]
    mailbox = filled(*items)
    assert mailbox.take(12) is fresh[2]
    assert mailbox.withdraw(old)
    assert not mailbox.status(12).overloaded
    assert order(mailbox, 12) == fresh[:2]


def test_one_class_that_waits_turns_the_order_of_all() -> None:
    """It is the oldest item of the whole mailbox that tells of an overload."""
    first, second = Item(10, 110), Item(11, 111)
    waiting = Item(0, 100, SHEDDABLE)
    assert order(filled(waiting, first, second), 12) == [second, first, waiting]


def test_backlog_of_one_class_does_not_hold_up_another_under_overload() -> None:
    """Old items that were passed over do not lift their class above new, more important ones."""
    backlog = [Item(at, at + 100, SHEDDABLE) for at in range(20)]
    mailbox = filled(*backlog)
    newcomer = Item(20, 120)
    mailbox.offer(newcomer)
    assert mailbox.take(20) is newcomer
    assert mailbox.take(20) is backlog[-1]


# ── expiry ───────────────────────────────────────────────────────────────────────────


def test_expired_items_are_dropped_and_counted() -> None:
    """What is past its deadline is never handed out, in whichever order."""
    items = [Item(0, 5), Item(0, 10), Item(0, 5), Item(0, 10), Item(0, 5)]
    mailbox = filled(*items)
    assert mailbox.take(5) is items[3]
    assert mailbox.take(5) is items[1]
    assert mailbox.take(5) is None
    status = mailbox.status(5)
    assert (status.taken, status.withdrawn, status.expired, status.depth) == (2, 3, 3, 0)
    assert not mailbox.withdraw(items[0])


def test_expired_items_say_nothing_of_the_load() -> None:
    """A leftover that nobody can serve does not turn the order round."""
    items = [Item(0, 5), Item(4, 104), Item(4.5, 104.5)]
    assert order(filled(*items), 5) == items[1:]


# ── what it tells ────────────────────────────────────────────────────────────────────


def test_age_is_never_negative() -> None:
    """A clock that is read a moment earlier does not show a negative age."""
    mailbox = filled(Item(queued_at=5.0))
    assert mailbox.status(4.9).oldest_age == 0
    assert mailbox.status(7.5).oldest_age == 2.5


def test_status_tells_the_depth_of_each_class() -> None:
    """By the words of the classes, and all of them, even where nobody waits."""
    mailbox = filled(Item(), Item(priority=SHEDDABLE), Item(priority=SHEDDABLE))
    assert mailbox.status(0).depths == {
        "critical_plus": 1, "critical": 0, "sheddable_plus": 0, "sheddable": 2
    }  # fmt: skip


def test_empty_mailbox_is_calm() -> None:
    """Nothing to take, nothing old, nothing overloaded."""
    mailbox = filled()
    assert mailbox.take(1) is None
    status = mailbox.status(1)
    assert (status.depth, status.oldest_age, status.overloaded) == (0, 0, False)


def test_clear_hands_everything_over() -> None:
    """Expired or not, whoever waits must be answered by whoever clears."""
    items = [Item(priority=SHEDDABLE), Item(0, 1), Item()]
    mailbox = filled(*items)
    assert mailbox.clear() == [items[1], items[2], items[0]]
    status = mailbox.status(5)
    assert (len(mailbox), status.withdrawn, status.expired) == (0, 3, 0)
