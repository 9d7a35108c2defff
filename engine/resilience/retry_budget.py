"""`RetryBudget`: how much may be tried again, for one provider or over all of them.

Two gates, and a further attempt must pass both: a bucket of tokens, filled by requests
that succeed at their first attempt (Finagle's retry budget), and a bound on the repeats
in flight (Envoy's).

What the defaults come to (capacity 100, 0.2 a success, 1 a second, half of the requests):

* A total outage, 100 requests a second for 60 s, is 6,000 requests and no first success:
  100 + 60 * 1 = 160 tokens, so (6,000 + 160) / 6,000 = 1.03 attempts a request. If every
  repeat is a fail-over at half a token, 320 of them: 1.05. Below 1.1 either way.
* Providers that fail at random one time in ten: a request gains 0.2 * 0.9 = 0.18 tokens
  and spends 0.1 * 1.1 = 0.11, so the bucket stays full. Gain and cost meet where
  0.2 * (1 - f) = f / (1 - f), at f = 0.146; above it the bucket drains and repeats fade out.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.config import RetryBudgetConfig

CONNECT_COST = 0.5
"""Tokens for going elsewhere after a connect-phase failure: the provider that failed did
no work for it, so it adds half as much load as a repeat that was answered."""


class RetryBudget:
    """A bucket of tokens and a bound on the repeats in flight. Never waits.

    Begins full, so that a start into trouble can still be helped.

    Args:
        config: Sizes and rates.
        clock: The router's clock.

    Attributes:
        repeats: Repeats in flight, those that sleep before they begin included.
        first_successes: Requests that succeeded at their first attempt, not paid in yet: to be
            counted up by whoever sees one. Only those pay in: a success that took repeats
            would earn part of its own cost, and a half-dead provider would be repeated all
            the more.
        taken: Repeats that were allowed so far.
        denied: Repeats that were refused so far.
    """

    __slots__ = (
        "_at",
        "_clock",
        "_config",
        "_level",
        "denied",
        "first_successes",
        "repeats",
        "taken",
    )

    def __init__(self, config: RetryBudgetConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._level = float(config.capacity)
        self._at = clock()
        self.repeats = self.taken = self.denied = self.first_successes = 0

    @property
    def capacity(self) -> int:
        """Tokens that the bucket holds."""
        return self._config.capacity

    @property
    def level(self) -> float:
        """Tokens in the bucket now, between 0 and the capacity."""
        self._refill()
        return self._level

    def try_take(self, in_flight: int, cost: float = 1.0) -> bool:
        """Take tokens and a slot for one repeat, or nothing at all.

        To be asked before the sleep of a backoff, not after it: sleepers that hold no slot
        all wake at once and are then too many to refuse (Envoy issue 30205).

        Args:
            in_flight: Requests in flight now, queued ones and this one included.
            cost: Tokens that the repeat takes; `CONNECT_COST` for a connect-phase fail-over.

        Returns:
            Whether the repeat may be made. If so, `give_back_slot` must follow once.
        """
        self._refill()
        config = self._config
        slots = max(config.min_concurrency, config.max_share * in_flight)
        if self._level < cost or self.repeats >= slots:
            self.denied += 1
            return False
        self._level -= cost
        self.repeats += 1
        self.taken += 1
        return True

    def give_back_slot(self) -> None:
        """A repeat has ended, whatever it came to; its tokens stay spent.

        Raises:
            RuntimeError: If no repeat is in flight: one slot was given back twice.
        """
        if not self.repeats:
            msg = "a retry slot was given back that nobody holds"
            raise RuntimeError(msg)
        self.repeats -= 1

    def _refill(self) -> None:
        config, now = self._config, self._clock()
        gained = self.first_successes * config.per_success
        self.first_successes = 0
        if now > self._at:
            gained += (now - self._at) * config.per_second
            self._at = now
        self._level = min(config.capacity, self._level + gained)
