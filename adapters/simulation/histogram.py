"""`Histogram`: percentiles of any number of durations in a few hundred counters."""

from __future__ import annotations

import math

GROWTH = 1.02
"""Each bucket is two per cent wider than the one before, and so is the error."""

_SCALE = 1 / math.log(GROWTH)
SMALLEST = 1e-5
_BUCKETS = int(math.log(86_400 / SMALLEST) * _SCALE) + 2


class Histogram:
    """Counts durations, seconds; from 10 microseconds to a day, at most 1,200 counters."""

    __slots__ = ("_counts", "count", "longest", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        index = 0 if seconds <= SMALLEST else int(math.log(seconds / SMALLEST) * _SCALE) + 1
        index = min(index, _BUCKETS)
        counts = self._counts
        counts[index] = counts.get(index, 0) + 1
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)

    def percentile(self, share: float) -> float:
        """The duration that `share` of all do not exceed; 0 when nothing was counted."""
        if not self.count:
            return 0.0
        left = math.ceil(share * self.count)
        for index in sorted(self._counts):
            left -= self._counts[index]
            if left <= 0:
                upper = SMALLEST * GROWTH**index
                return min(self.longest, upper)
        return self.longest

    def summary(self) -> dict[str, float]:
        """What people ask of it, seconds."""
        mean = self.total / self.count if self.count else 0.0
        return {
            "mean": round(mean, 6),
            "p50": round(self.percentile(0.5), 6),
            "p90": round(self.percentile(0.9), 6),
            "p95": round(self.percentile(0.95), 6),
            "p99": round(self.percentile(0.99), 6),
            "p99_9": round(self.percentile(0.999), 6),
            "max": round(self.longest, 6),
        }
