"""Counting requests in and out."""

import anyio
import pytest

from engine import LedgerStatus, Outcome
from engine.ledger import Ledger


def test_each_entry_is_counted_in_and_out() -> None:
    """Open entries are in flight, settled ones are outcomes, and nothing is lost."""
    ledger = Ledger()
    first, second = object(), object()
    ledger.open(first)
    ledger.open(second)
    ledger.settle(first, Outcome.COMPLETED)
    status = ledger.status()
    assert (status.accepted, status.in_flight, ledger.in_flight) == (2, 1, 1)
    assert status.outcomes[Outcome.COMPLETED] == 1
    assert status.conservation_error == 0


def test_settling_twice_is_an_error() -> None:
    """Nothing can be settled twice, nor without having been opened."""
    ledger = Ledger()
    entry = object()
    ledger.open(entry)
    ledger.settle(entry, Outcome.FAILED)
    with pytest.raises(KeyError):
        ledger.settle(entry, Outcome.FAILED)
    with pytest.raises(KeyError):
        ledger.settle(object(), Outcome.FAILED)
    assert ledger.status().conservation_error == 0


def test_conservation_error_shows_what_does_not_add_up() -> None:
    """A lost request is positive, one that was settled twice negative."""
    assert LedgerStatus(3, 1, {Outcome.COMPLETED: 1}).conservation_error == 1
    assert LedgerStatus(1, 0, {Outcome.COMPLETED: 1, Outcome.FAILED: 1}).conservation_error == -1


def test_status_is_a_snapshot() -> None:
    """A status does not change when the ledger does."""
    ledger = Ledger()
    status = ledger.status()
    ledger.open(entry := object())
    ledger.settle(entry, Outcome.CANCELLED)
    assert status.accepted == 0
    assert status.outcomes[Outcome.CANCELLED] == 0


async def test_all_who_wait_for_empty_are_told() -> None:
    """Several tasks may wait for the last entry to be settled; new entries prolong it."""
    ledger = Ledger()
    await ledger.wait_empty()
    first, second = object(), object()
    ledger.open(first)
    told: list[int] = []

    async def wait(number: int) -> None:
        await ledger.wait_empty()
        told.append(number)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(wait, number)
        await anyio.wait_all_tasks_blocked()
        ledger.open(second)
        ledger.settle(first, Outcome.COMPLETED)
        await anyio.wait_all_tasks_blocked()
        assert told == []
        ledger.settle(second, Outcome.COMPLETED)
    assert sorted(told) == [0, 1, 2]
