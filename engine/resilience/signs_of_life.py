"""`SignsOfLife`: how soon a provider begins to answer, and whether it has fallen silent."""

from __future__ import annotations

import math
from collections import deque

SAMPLES = 128
"""Times that are kept for the quantiles: one of 128 is finer than the 95th percentile."""

STALE_SAMPLES = 8
"""New times after which the sorted ones are made again: sorting 128 costs 5 µs, which an
eighth of the requests may pay, and 8 of 128 move a quantile by 6 % of the ranks at most."""

SMOOTHING = 1 / 8
"""Weight of the newest value in a mean, as in TCP's smoothed round-trip time (RFC 6298)."""

SHORTEST_SILENCE = 0.25
"""Below a quarter of a second a pause of our own process would look like silence."""

UNKNOWN_SILENCE = 1.0
"""Seconds of silence that are suspicious where no time is known. Others are only preferred
then: a slow provider that nobody knows yet is asked less for a moment, and a dead one is
met by a handful of requests instead of hundreds."""

FALSE_ALARM = 1 / 1_000
"""The largest chance with which a provider that is well looks silent at an instant. A false
alarm costs a moment's share: the others are preferred until its next sign of life."""

KEPT_STARTS = 1_024
"""Starts that are remembered; beyond it the oldest count, which tell of silence first."""

SAME_INSTANT = 1e-6
"""Seconds by which a start may seem to differ, computed back from its first sign of life."""


class SignsOfLife:
    """Which attempts began after the newest that is known to live, and times to first signs.

    Attributes:
        mean_seconds: Moving mean of the times from the begin of an attempt to its first sign
            of life; None before the first.

    Args:
        evidence: Attempts that must be silent before the provider counts as silent.
    """

    __slots__ = (
        "_evidence",
        "_part",
        "_samples",
        "_sorted",
        "_starts",
        "_unsorted",
        "mean_seconds",
    )

    def __init__(self, evidence: int) -> None:
        self.mean_seconds: float | None = None
        self._evidence = min(evidence, KEPT_STARTS)
        # If each of n attempts is still open with a chance of 1 - part, all are with
        # (1 - part) ** n. For the default of ten the part is the median.
        self._part = 1 - FALSE_ALARM ** (1 / self._evidence)
        self._starts: deque[float] = deque()
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self._sorted: list[float] = []
        self._unsorted = 0

    def note_start(self, now: float) -> None:
        """An attempt begins."""
        if len(self._starts) < KEPT_STARTS:
            self._starts.append(now)

    def note(self, now: float, seconds: float) -> None:
        """An attempt that began `seconds` ago showed its first sign of life."""
        # What is left began after the newest attempt that is known to live, and none of it
        # has shown life. Attempts that were given up stay until a later one shows life.
        alive, starts = now - seconds + SAME_INSTANT, self._starts
        while starts and starts[0] <= alive:
            starts.popleft()
        mean = self.mean_seconds
        self.mean_seconds = seconds if mean is None else mean + (seconds - mean) * SMOOTHING
        self._samples.append(seconds)
        self._unsorted += 1

    def note_refusal(self) -> None:
        """The provider refused an attempt: it is alive, but that tells no time."""
        self._starts.clear()

    def silent(self, now: float) -> bool:
        """Whether its newest attempts have shown no sign of life for longer than chance explains.

        It is by the order of starts, for what began before a fault goes on to show life for
        seconds after it. If the times of a provider that is well are independent of each
        other, it looks silent at an instant with a chance of `FALSE_ALARM` at most, whatever
        their distribution: so many attempts have all lasted longer than a time that each
        exceeds with the chance that `_part` leaves. It is far less in practice, as the older
        ones have lasted longer still: about 1e-6 for log-normal times with a mean of 1 s.

        Args:
            now: The instant.
        """
        if len(self._starts) < self._evidence:
            return False
        open_for = now - self._starts[self._evidence - 1]
        if open_for <= SHORTEST_SILENCE:
            return False
        usual = self.quantile(self._part)
        return open_for > (UNKNOWN_SILENCE if usual is None else usual)

    def quantile(self, part: float) -> float | None:
        """The time within which that part of the last attempts showed life (nearest rank).

        Up to seven of the newest times may not be counted yet.

        Args:
            part: Above 0, at most 1; 0.95 for the 95th percentile.

        Returns:
            Seconds; None before the first sign of life.
        """
        if self._unsorted >= STALE_SAMPLES or (
            self._unsorted and len(self._samples) <= STALE_SAMPLES
        ):
            self._sorted = sorted(self._samples)
            self._unsorted = 0
        if not self._sorted:
            return None
        return self._sorted[max(0, math.ceil(part * len(self._sorted)) - 1)]
