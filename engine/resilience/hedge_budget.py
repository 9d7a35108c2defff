"""`HedgeBudget`: keeps second calls, made because the first is slow, to a share of all requests."""

from __future__ import annotations

BURST = 10.0
"""Hedges that may be saved up: enough for the handful of requests that one slow answerer
holds at a time, too few to double the load of a provider that becomes slow as a whole."""


class HedgeBudget:
    """A bucket of tokens: each request pays in its share, each hedge takes out one.

    It begins empty, so hedges never exceed `max_share` of the requests seen, from the
    first request on.

    Args:
        max_share: Part of the requests that may be hedged, between 0 and 1.
        capacity: Tokens that the bucket holds.

    Attributes:
        level: Tokens in the bucket.
        requests: Requests that were seen.
        taken: Hedges that were allowed.
        denied: Hedges that were refused.
    """

    __slots__ = ("_capacity", "_max_share", "denied", "level", "requests", "taken")

    def __init__(self, max_share: float, *, capacity: float = BURST) -> None:
        self._max_share = max_share
        self._capacity = capacity
        self.level = 0.0
        self.requests = self.taken = self.denied = 0

    def request(self) -> None:
        """Count a request that could have been hedged."""
        self.requests += 1
        self.level = min(self._capacity, self.level + self._max_share)

    def try_take(self) -> bool:
        """Take the token for one hedge; False if there is none."""
        if self.level < 1:
            self.denied += 1
            return False
        self.level -= 1
        self.taken += 1
        return True
