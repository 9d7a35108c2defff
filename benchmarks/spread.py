"""`Spread`: a measured value with its least and its greatest round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

MICROSECONDS = 1e6
MILLISECONDS = 1e3


@dataclass(frozen=True, slots=True)
class Spread:
    """Several rounds of one measurement.

    Attributes:
        median: The value that counts.
        low: The least of all rounds.
        high: The greatest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Sum up the rounds.

        Raises:
            ValueError: If there is none.
        """
        if not values:
            msg = "a spread needs at least one value"
            raise ValueError(msg)
        return cls(statistics.median(values), min(values), max(values))

    def scaled(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def per(self, count: float) -> Spread:
        """The share of one of `count`."""
        return self.scaled(1 / count)

    def __str__(self) -> str:
        return f"{figure(self.median)} ({figure(self.low)} to {figure(self.high)})"


def figure(value: float) -> str:
    """A number with three figures that count, and all of them before the point; counts as is."""
    if value == 0 or isinstance(value, int):
        return f"{value:,.0f}"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    if abs(value) >= 9.995:
        return f"{value:.1f}"
    if abs(value) >= 0.9995:
        return f"{value:.2f}"
    return f"{value:.3g}"


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the sorted values lie: nearest rank.

    Raises:
        ValueError: If there are no values.
    """
    if not ordered:
        msg = "a percentile needs at least one value"
        raise ValueError(msg)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rounds_of(rounds: int, measure: Callable[[], float]) -> Spread:
    """Measure several times; one more, uncounted, comes first to warm up."""
    measure()
    return Spread.of([measure() for _ in range(rounds)])
