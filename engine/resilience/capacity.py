"""`Capacity`: how many attempts a provider may hold at once, and how long each keeps a place."""

from __future__ import annotations

from collections.abc import Callable

from engine.config import LimitsConfig
from engine.resilience.adaptive_concurrency import AdaptiveConcurrency

RECENT = 0.1
"""Weight of the latest service time in the moving average: about the last twenty count."""


class Capacity:
    """The limit on concurrency of one provider, and what can be foretold from it.

    Args:
        limits: What the configuration says.
        clock: The router's clock.

    Attributes:
        adaptive: What moves the limit; None where it is fixed.
        service_seconds: Moving mean of the time that a request keeps its place; 0 while
            nothing is known.
    """

    __slots__ = ("_fixed", "adaptive", "service_seconds")

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float]) -> None:
        self._fixed = limits.concurrency
        self.adaptive = (
            AdaptiveConcurrency(limits.adaptive, limits.concurrency, clock)
            if limits.adaptive
            else None
        )
        self.service_seconds = 0.0

    @property
    def limit(self) -> int:
        """Attempts that may run at the same time now."""
        return self._fixed if self.adaptive is None else self.adaptive.limit

    def note_service(self, seconds: float) -> None:
        """A request has given its place back after so many seconds."""
        mean = self.service_seconds
        self.service_seconds = seconds if mean == 0.0 else mean + RECENT * (seconds - mean)

    def expected_wait(self, waiting: int) -> float:
        """Seconds until the next of so many has a place, by what others took."""
        return waiting * self.service_seconds / self.limit
