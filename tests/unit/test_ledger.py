"""Counting requests in and out."""

import anyio
import pytest

from engine import LedgerStatus, Outcome, Usage
from engine.ledger import AttemptAccount, Ledger


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


def test_settling_twice_counts_as_an_error_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A second settling, or one without an opening, is told and changes no other count."""
    ledger = Ledger()
    entry = object()
    ledger.open(entry)
    ledger.settle(entry, Outcome.FAILED)
    ledger.settle(entry, Outcome.COMPLETED, attempts=AttemptAccount(3, 1, Usage(1, 1)))
    ledger.settle(object(), Outcome.CANCELLED)
    status = ledger.status()
    assert status.outcomes == {**dict.fromkeys(Outcome, 0), Outcome.FAILED: 1}
    assert (status.settled_twice, status.conservation_error) == (2, 2)
    assert (status.attempts, status.input_tokens) == (0, 0)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_conservation_error_shows_what_does_not_add_up() -> None:
    """What is lost and what was counted too often never cancel each other out."""
    assert LedgerStatus(3, 1, {Outcome.COMPLETED: 1}).conservation_error == 1
    assert LedgerStatus(1, 0, {Outcome.COMPLETED: 1, Outcome.FAILED: 1}).conservation_error == 1
    lost_and_twice = LedgerStatus(2, 0, {Outcome.COMPLETED: 1}, settled_twice=1)
    assert lost_and_twice.conservation_error == 2


def test_attempts_and_tokens_are_summed() -> None:
    """The ledger knows what the ended requests have cost, as far as providers said it."""
    ledger = Ledger()
    for account in (
        AttemptAccount(1, 0, Usage(10, 20)),
        AttemptAccount(3, 2, None),
        AttemptAccount(2, 1, Usage(1, 2)),
    ):
        entry = object()
        ledger.open(entry)
        ledger.settle(entry, Outcome.COMPLETED, attempts=account)
    status = ledger.status()
    assert (status.attempts, status.wasted) == (6, 3)
    assert (status.input_tokens, status.output_tokens) == (11, 22)


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
