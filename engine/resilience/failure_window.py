"""`FailureWindow`: how many of the last attempts failed, in a fixed amount of memory."""

from __future__ import annotations

import math
from collections import deque

BUCKETS = 10
"""Parts of the window: it looks back between nine tenths of its length and all of it."""


class FailureWindow:
    """Counts attempts and failures over a sliding window of time.

    Args:
        seconds: How far it looks back.
    """

    __slots__ = ("_attempts", "_end", "_failures", "_past", "_width")

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        self._end = 0.0
        self._attempts = self._failures = 0
        self._past: deque[tuple[int, int]] = deque(maxlen=BUCKETS - 1)

    def note_success(self, now: float) -> None:
        """Count an attempt that succeeded."""
        if now >= self._end:
            self._advance(now)
        self._attempts += 1

    def note_failure(self, now: float) -> None:
        """Count an attempt that failed."""
        if now >= self._end:
            self._advance(now)
        self._attempts += 1
        self._failures += 1

    def totals(self, now: float) -> tuple[int, int]:
        """Attempts and failures within the window.

        Changes nothing, for metrics are read in a thread of their own.
        """
        passed = 0 if now < self._end else int((now - self._end) / self._width) + 1
        if passed >= BUCKETS:
            return 0, 0
        # What is current now and nine before it; those that began since then are empty.
        kept = (*self._past, (self._attempts, self._failures))[passed - BUCKETS :]
        return sum(attempts for attempts, _ in kept), sum(failures for _, failures in kept)

    def clear(self) -> None:
        """Forget everything."""
        self._attempts = self._failures = 0
        self._past.clear()

    def _advance(self, now: float) -> None:
        passed = int((now - self._end) / self._width) + 1
        if passed >= BUCKETS:
            self._past.clear()
        else:
            self._past.append((self._attempts, self._failures))
            self._past.extend([(0, 0)] * (passed - 1))
        self._attempts = self._failures = 0
        self._end = (math.floor(now / self._width) + 1) * self._width
