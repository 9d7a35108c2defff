"""Rate limits of one provider, asked without waiting before a request is handed to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import sniffio

from engine.config import LimitsConfig
from engine.errors import ConfigurationError
from engine.operations import Request, Usage

TOKENS_WITHOUT_HINT = 512
"""Output tokens that are reserved for a request that names no maximum."""

BYTES_PER_TOKEN = 4
"""English text in the common tokenizers; only the reservation depends on it, as the
true usage settles the account."""


class RateLimits(Protocol):
    """What the dispatcher asks of a provider's rate limits."""

    def wait_time(self) -> float:
        """Seconds until another request may start; 0 if one may start now."""
        ...

    def take(self, request: Request) -> int:
        """Note that a request starts; returns the tokens reserved for it."""
        ...

    def settle(self, reserved: int, usage: Usage | None) -> None:
        """Correct a reservation by what was really used."""
        ...


class Unlimited:
    """No rate limit at all."""

    def wait_time(self) -> float:
        """Always 0."""
        return 0.0

    def take(self, request: Request) -> int:  # noqa: ARG002
        """Reserve nothing."""
        return 0

    def settle(self, reserved: int, usage: Usage | None) -> None:
        """Do nothing."""


UNLIMITED = Unlimited()
"""The one that all providers without a limit share: it has no state."""


class RequestRate:
    """Requests per minute, by aiolimiter's leaky bucket.

    The bucket holds a tenth of a minute's requests, so that no window sees more than 1.1
    times the rate: a bucket of the whole rate lets twice the rate through in one window.
    """

    def __init__(self, per_minute: int) -> None:
        self._burst = max(1.0, per_minute / 10)
        self._per_second = per_minute / 60
        # Imported by those who set such a limit: with asyncio, it costs 20 ms.
        from aiolimiter import AsyncLimiter  # noqa: PLC0415

        self._limiter = AsyncLimiter(self._burst, self._burst / self._per_second)

    def wait_time(self) -> float:
        """Seconds until one more request fits."""
        return 0.0 if self._limiter.has_capacity(1) else 1 / self._per_second

    def take(self) -> None:
        """Count one request; must follow a `wait_time` of 0 without a wait between."""
        # With room left, aiolimiter's acquire returns without suspending, so one step of
        # its coroutine is all of it; there is no synchronous call for this in its API.
        step = self._limiter.acquire(1)
        try:
            step.send(None)
        except StopIteration:
            return
        step.close()


class TokenBucket:
    """Tokens per minute: reserved by estimate, settled by the true usage.

    Args:
        per_minute: Tokens that flow in during a minute.
        clock: The router's clock.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        # The same tenth of a minute as for requests, and for the same reason.
        self._capacity = max(1.0, per_minute / 10)
        self._per_second = per_minute / 60
        self._clock = clock
        self._level = self._capacity
        self._at = clock()

    def wait_time(self) -> float:
        """Seconds until the bucket holds something again."""
        self._refill()
        # A debt is paid before anything more is let through; a single request that is
        # larger than the bucket may pass a full one, or it never could.
        return 0.0 if self._level > 0 else (1 - self._level) / self._per_second

    def take(self, tokens: int) -> None:
        """Take tokens out; the level may fall below zero, which later requests wait for."""
        self._refill()
        self._level -= tokens

    def settle(self, reserved: int, used: int) -> None:
        """Give back what was reserved too much, or take what was reserved too little."""
        self._refill()
        self._level = min(self._capacity, self._level + reserved - used)

    def _refill(self) -> None:
        now = self._clock()
        gained = (now - self._at) * self._per_second
        self._level, self._at = min(self._capacity, self._level + gained), now


class ProviderRateLimits:
    """Requests and tokens per minute of one provider."""

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float]) -> None:
        self._requests = (
            RequestRate(limits.requests_per_minute) if limits.requests_per_minute else None
        )
        self._tokens = (
            TokenBucket(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        )

    def wait_time(self) -> float:
        """Seconds until both limits have room."""
        requests = self._requests.wait_time() if self._requests else 0.0
        return max(requests, self._tokens.wait_time() if self._tokens else 0.0)

    def take(self, request: Request) -> int:
        """Count the request in both limits."""
        if self._requests:
            self._requests.take()
        if not self._tokens:
            return 0
        reserved = estimated_tokens(request)
        self._tokens.take(reserved)
        return reserved

    def settle(self, reserved: int, usage: Usage | None) -> None:
        """Settle the token reservation; without a usage the estimate stands."""
        if self._tokens and usage is not None:
            self._tokens.settle(reserved, usage.total_tokens)


def estimated_tokens(request: Request) -> int:
    """Tokens that a request may use: its size in tokens, and the output it allows."""
    size = len(request.raw) if request.raw is not None else len(str(request.body))
    body = request.body
    allowed = body.get("max_completion_tokens") or body.get("max_tokens")
    return size // BYTES_PER_TOKEN + (allowed if type(allowed) is int else TOKENS_WITHOUT_HINT)


def rate_limits(name: str, limits: LimitsConfig, clock: Callable[[], float]) -> RateLimits:
    """The rate limits that a provider's configuration asks for.

    Raises:
        ConfigurationError: If a request rate is asked for on trio, where aiolimiter cannot run.
    """
    if limits.requests_per_minute is None and limits.tokens_per_minute is None:
        return UNLIMITED
    if limits.requests_per_minute is not None and sniffio.current_async_library() != "asyncio":
        msg = (
            f"provider {name!r}: limits.requests_per_minute works on asyncio only; "
            "remove the limit, or run the router on asyncio"
        )
        raise ConfigurationError(msg)
    return ProviderRateLimits(limits, clock)
