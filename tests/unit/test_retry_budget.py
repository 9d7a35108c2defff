"""How much may be tried again; the laws are in tests/property."""

import random

import pytest

from engine import RetryBudgetConfig
from engine.resilience.retry_budget import CONNECT_COST, RetryBudget


class Clock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def budget(clock: Clock | None = None, **settings: float) -> RetryBudget:
    """A budget that lets through as many at a time as anyone likes, unless told otherwise."""
    config = RetryBudgetConfig(**{"min_concurrency": 1_000, **settings})  # type: ignore[arg-type]
    return RetryBudget(config, clock or Clock())


def test_bucket_begins_full_and_runs_empty() -> None:
    """As many repeats as the bucket holds, then none."""
    bucket = budget(capacity=3)
    assert [bucket.try_take(1) for _ in range(5)] == [True, True, True, False, False]
    assert (bucket.level, bucket.repeats, bucket.taken, bucket.denied) == (0, 3, 3, 2)


def test_connect_fail_over_costs_half() -> None:
    """Twice as many, as the provider that failed did no work."""
    bucket = budget(capacity=1)
    assert [bucket.try_take(1, CONNECT_COST) for _ in range(3)] == [True, True, False]


def test_less_than_the_cost_is_not_enough() -> None:
    """Half a token is left for a cheap repeat when a whole one is refused."""
    bucket = budget(capacity=1)
    assert bucket.try_take(1, 0.5)
    assert not bucket.try_take(1)
    assert bucket.level == 0.5
    assert bucket.try_take(1, 0.5)


def test_first_successes_pay_in() -> None:
    """Five of them are worth one repeat, and the bucket never overflows."""
    bucket = budget(capacity=1, per_success=0.25, per_second=0)
    assert bucket.try_take(1)
    for _ in range(3):
        bucket.first_successes += 1
    assert not bucket.try_take(1)
    bucket.first_successes += 1
    assert bucket.try_take(1)
    for _ in range(100):
        bucket.first_successes += 1
    assert bucket.level == 1


def test_time_pays_in() -> None:
    """A trickle for those who have no successes, up to the capacity."""
    clock = Clock()
    bucket = budget(clock, capacity=2, per_second=0.5)
    assert bucket.try_take(1)
    assert bucket.try_take(1)
    clock.now += 1.5
    assert not bucket.try_take(1)
    clock.now += 0.5
    assert bucket.try_take(1)
    clock.now += 3_600
    assert bucket.level == 2


def test_clock_that_steps_back_takes_nothing_away() -> None:
    """Tokens that were gained stay, and are not gained a second time."""
    clock = Clock()
    bucket = budget(clock, capacity=10, per_second=1)
    for _ in range(10):
        bucket.try_take(1)
    clock.now = 5
    assert bucket.level == 5
    clock.now = 3
    assert bucket.level == 5
    clock.now = 5
    assert bucket.level == 5


def test_repeats_in_flight_are_a_share_of_all() -> None:
    """Half of twenty; a refusal costs no token, and a repeat that ends makes room."""
    bucket = budget(max_share=0.5, min_concurrency=3)
    assert sum(bucket.try_take(20) for _ in range(30)) == 10
    assert bucket.level == 90
    bucket.give_back_slot()
    assert bucket.try_take(20)
    assert not bucket.try_take(20)


def test_few_requests_leave_room_for_some_repeats() -> None:
    """With hardly anything in flight the minimum counts instead of the share."""
    bucket = budget(max_share=0.5, min_concurrency=3)
    assert sum(bucket.try_take(1) for _ in range(5)) == 3


def test_repeats_that_sleep_hold_their_slot() -> None:
    """Taken before the sleep and given back at the end: a long backoff lets no more through."""
    clock = Clock()
    bucket = budget(clock, max_share=0.5, min_concurrency=2)
    assert [bucket.try_take(2) for _ in range(3)] == [True, True, False]
    clock.now += 3_600
    assert not bucket.try_take(2)


def test_no_room_at_all_is_a_legal_choice() -> None:
    """Nothing is ever repeated when neither share nor minimum allow it."""
    assert not budget(max_share=0, min_concurrency=0).try_take(1_000)


def test_slot_can_only_be_given_back_once() -> None:
    """A second time is a bug, and says so."""
    bucket = budget()
    assert bucket.try_take(1)
    bucket.give_back_slot()
    with pytest.raises(RuntimeError, match="nobody holds"):
        bucket.give_back_slot()
    assert bucket.repeats == 0


@pytest.mark.parametrize("cost", [1, CONNECT_COST])
def test_total_outage_is_amplified_by_a_tenth_at_most(cost: float) -> None:
    """100 requests a second for 60 s, none succeeds, each is tried three times if allowed."""
    clock = Clock()
    bucket = budget(clock)
    attempts = 0
    for request in range(6_000):
        clock.now = request / 100
        attempts += 1
        for _ in range(2):
            if not bucket.try_take(100, cost):
                break
            attempts += 1
            bucket.give_back_slot()
    assert 1.02 <= attempts / 6_000 <= 1.1


def outcome(failure_rate: float, *, requests: int = 10_000) -> tuple[float, float]:
    """Success rate and attempts a request: random failures, 100 requests a second, 3 repeats."""
    rng = random.Random(7)
    clock = Clock()
    bucket = budget(clock)
    succeeded = attempts = 0
    for request in range(requests):
        clock.now = request / 100
        for number in range(4):
            if number and not bucket.try_take(100):
                break
            attempts += 1
            failed = rng.random() < failure_rate
            if number:
                bucket.give_back_slot()
            if not failed:
                succeeded += 1
                if not number:
                    bucket.first_successes += 1
                break
    return succeeded / requests, attempts / requests


@pytest.mark.parametrize(
    ("failure_rate", "least_success", "most_attempts"),
    [(0, 1, 1), (0.01, 0.9999, 1.02), (0.1, 0.995, 1.12), (0.5, 0.5, 1.2), (1, 0, 1.1)],
)
def test_random_failures_are_repeated_while_that_helps(
    failure_rate: float, least_success: float, most_attempts: float
) -> None:
    """One failure in ten is hidden nearly always; with more, repeats fade out."""
    success, attempts = outcome(failure_rate)
    assert success >= least_success
    assert attempts <= most_attempts
