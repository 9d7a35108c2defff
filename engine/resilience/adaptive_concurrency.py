"""`AdaptiveConcurrency`: how many attempts a provider can take at a time, found by trying.

Additive increase, multiplicative decrease (Chiu and Jain 1989; the form is AIMDLimit of
Netflix's concurrency-limits). It listens to refusals and not to delays: we are a client of
the provider, and the time of an answer follows its length, not the provider's load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from engine.config import AdaptiveConcurrencyConfig

SAMPLES = 100
"""Latencies that are kept for the median: enough to be steady, few enough to forget a
provider's slow hour within seconds."""

UNKNOWN_LATENCY = 1.0
"""Seconds that stand for the median before anything has succeeded: about one short answer."""


class AdaptiveConcurrency:
    """A limit that grows by one for a limit's worth of successes and shrinks by a tenth on drops.

    Attempts that say nothing of the provider's load (the caller left, the request was at
    fault) are not reported here at all.

    Args:
        config: Where the limit begins, and below which it never falls.
        maximum: Above which it never rises: the configured concurrency. It bounds the
            minimum, too.
        clock: The router's clock.

    Attributes:
        limit: Attempts that may run at the same time now.
        drops: Drops that were reported so far.
    """

    __slots__ = (
        "_clock", "_latencies", "_maximum", "_minimum", "_next_decrease", "_successes", "drops",
        "limit",
    )  # fmt: skip

    def __init__(
        self, config: AdaptiveConcurrencyConfig, maximum: int, clock: Callable[[], float]
    ) -> None:
        self._maximum = maximum
        self._minimum = min(config.min, maximum)
        self._clock = clock
        self._latencies: deque[float] = deque(maxlen=SAMPLES)
        self._next_decrease = float("-inf")
        self._successes = 0
        self.limit = max(self._minimum, min(config.initial, maximum))
        self.drops = 0

    def note_success(self, in_flight: int, seconds: float) -> None:
        """An attempt succeeded.

        Args:
            in_flight: Attempts that ran when it ended, itself included.
            seconds: How long it took.
        """
        self._latencies.append(seconds)
        # A limit that is not used is not tried out either: it would grow without end in
        # quiet hours and mean nothing when it is needed.
        if in_flight * 2 < self.limit:
            return
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit = min(self._maximum, self.limit + 1)

    def note_drop(self, now: float | None = None) -> None:
        """The provider refused (429, 503, 529), or the connection or first event came too late.

        Shrinks the limit at most once per median latency: attempts that were on their way
        before it shrank tell nothing about the new limit.

        Args:
            now: When it happened, an instant of the router's clock; None for this moment.
        """
        if now is None:
            now = self._clock()
        self.drops += 1
        if now < self._next_decrease:
            return
        self._next_decrease = now + self._median()
        self._successes = 0
        # Rounded down in whole numbers: below 10, too, each step takes at least one.
        self.limit = max(self._minimum, self.limit * 9 // 10)

    def _median(self) -> float:
        """The middle one of the last latencies, seconds; sorted only when the limit shrinks."""
        if not self._latencies:
            return UNKNOWN_LATENCY
        return sorted(self._latencies)[len(self._latencies) // 2]
