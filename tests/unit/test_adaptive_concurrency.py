"""The limit that follows what a provider can take; its laws are in tests/property."""

import random

import pytest

from engine import AdaptiveConcurrencyConfig
from engine.resilience.adaptive_concurrency import SAMPLES, UNKNOWN_LATENCY, AdaptiveConcurrency


class Clock:
    """Time by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def limiter(maximum: int = 64, clock: Clock | None = None, **settings: int) -> AdaptiveConcurrency:
    """A limiter with some settings of its own."""
    return AdaptiveConcurrency(AdaptiveConcurrencyConfig(**settings), maximum, clock or Clock())


@pytest.mark.parametrize(
    ("initial", "least", "maximum", "limit"),
    [(20, 2, 64, 20), (20, 2, 8, 8), (1, 4, 64, 4), (20, 10, 4, 4)],
)
def test_begins_between_its_bounds(initial: int, least: int, maximum: int, limit: int) -> None:
    """The configured concurrency bounds everything else."""
    assert limiter(maximum, initial=initial, min=least).limit == limit


def test_grows_by_one_for_a_limit_of_successes() -> None:
    """Four successes at four, then five at five."""
    found = limiter(initial=4)
    limits = []
    for _ in range(9):
        found.note_success(4, 1)
        limits.append(found.limit)
    assert limits == [4, 4, 4, 5, 5, 5, 5, 5, 6]


def test_does_not_grow_while_it_is_not_used() -> None:
    """Fewer than half of the limit in flight tell nothing about the limit."""
    found = limiter(initial=10)
    for _ in range(1_000):
        found.note_success(4, 1)
    assert found.limit == 10
    for _ in range(10):
        found.note_success(5, 1)
    assert found.limit == 11


def test_never_grows_above_the_maximum() -> None:
    """The configured concurrency stays the upper bound."""
    found = limiter(5, initial=4)
    for _ in range(1_000):
        found.note_success(found.limit, 1)
    assert found.limit == 5


def test_drops_shrink_it_by_a_tenth_but_at_least_by_one() -> None:
    """Down to the minimum, and not below."""
    clock = Clock()
    found = limiter(clock=clock, initial=20, min=2)
    limits = []
    for _ in range(13):
        found.note_drop(clock.now)
        limits.append(found.limit)
        clock.now += UNKNOWN_LATENCY
    assert limits == [18, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2]
    found.note_drop(clock.now)
    assert (found.limit, found.drops) == (2, 14)


def test_drops_within_a_median_latency_count_as_one() -> None:
    """What was on its way already says nothing about the smaller limit."""
    found = limiter(initial=20)
    for seconds in (0.1, 2.0, 2.0, 2.0, 60.0):
        found.note_success(1, seconds)
    for now in (10.0, 10.5, 11.99):
        found.note_drop(now)
    assert found.limit == 18
    found.note_drop(12.0)
    assert found.limit == 16


def test_median_follows_the_last_latencies() -> None:
    """A slow past is forgotten."""
    found = limiter(initial=20)
    for seconds in [60.0] * SAMPLES + [0.5] * SAMPLES:
        found.note_success(1, seconds)
    found.note_drop(10)
    found.note_drop(10.5)
    assert found.limit == 16


def test_drop_without_an_instant_is_now() -> None:
    """The clock is asked where the caller does not say when."""
    clock = Clock()
    found = limiter(clock=clock, initial=20)
    found.note_drop()
    clock.now = UNKNOWN_LATENCY / 2
    found.note_drop()
    assert found.limit == 18
    clock.now = UNKNOWN_LATENCY
    found.note_drop()
    assert found.limit == 16


def test_drop_begins_the_count_of_successes_anew() -> None:
    """Successes under a limit that proved too large do not speed up the next growth."""
    found = limiter(initial=10)
    for _ in range(9):
        found.note_success(10, 1)
    found.note_drop(0)
    assert found.limit == 9
    for _ in range(8):
        found.note_success(9, 1)
    assert found.limit == 9
    found.note_success(9, 1)
    assert found.limit == 10


def test_settles_around_what_the_provider_takes() -> None:
    """A provider that refuses beyond 30 at a time is given about 30, and seldom more."""
    rng = random.Random(3)
    found = limiter(200, initial=20)
    seen = []
    for turn in range(2_000):
        in_flight = found.limit
        for attempt in range(in_flight):
            if attempt < 30:
                found.note_success(in_flight, rng.uniform(0.5, 1.5))
            else:
                found.note_drop(turn)
        if turn >= 100:
            seen.append(found.limit)
    assert min(seen) >= 26
    assert max(seen) <= 32
