"""`Trend`: how fast a measured value grows, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through samples, by least squares.

    Attributes:
        per_hour: By how much the value grows in an hour.
        error: Standard error of that: two of them on both sides hold the truth mostly.
    """

    per_hour: float
    error: float

    @classmethod
    def of(cls, samples: Sequence[tuple[float, float]]) -> Self:
        """Fit the line.

        Args:
            samples: Seconds and value of each.

        Raises:
            ValueError: If there are fewer than three, or all of one instant.
        """
        count = len(samples)
        middle = sum(second for second, _ in samples) / max(1, count)
        spread = sum((second - middle) ** 2 for second, _ in samples)
        if count < 3 or not spread:
            msg = "a trend needs at least three samples, at different instants"
            raise ValueError(msg)
        level = sum(value for _, value in samples) / count
        slope = sum((second - middle) * (value - level) for second, value in samples) / spread
        left = sum((value - level - slope * (second - middle)) ** 2 for second, value in samples)
        return cls(slope * HOUR, math.sqrt(left / (count - 2) / spread) * HOUR)

    def __str__(self) -> str:
        return f"{_signed(self.per_hour)} ± {_signed(self.error).lstrip('+')}"


def _signed(value: float) -> str:
    return f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.2f}"
