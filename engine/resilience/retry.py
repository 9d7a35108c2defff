"""What may be tried again, where, and after how long.

The table is design data: one row for each error class. Two facts decide: the class, and
whether the provider may already have executed (and billed) the request.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio

from engine.errors import (
    ContentFilterError,
    ContextLengthError,
    ErrorClass,
    ExhaustedError,
    GatewayError,
    NoProviderAvailableError,
    ProviderClosedError,
    ProviderError,
    Replay,
)

if TYPE_CHECKING:
    from tenacity import AsyncRetrying, RetryCallState

FallbackCause = Literal["error", "context_length", "content_filter"]


@dataclass(frozen=True, slots=True)
class RetryRule:
    """One row of the table.

    Attributes:
        same_provider: Whether the same provider may be asked again, after a backoff.
        another_provider: Whether another provider of the model may be asked.
        counts_as_failure: Whether it says something about the provider's health.
    """

    same_provider: bool
    another_provider: bool
    counts_as_failure: bool


RETRY_RULES: dict[ErrorClass, RetryRule] = {
    ErrorClass.CONNECT: RetryRule(True, True, True),
    ErrorClass.OVERLOADED: RetryRule(True, True, False),
    ErrorClass.TRANSIENT: RetryRule(True, True, True),
    ErrorClass.SILENT: RetryRule(False, True, True),
    ErrorClass.BROKEN: RetryRule(False, True, True),
    ErrorClass.MISCONFIGURED: RetryRule(False, True, False),
    ErrorClass.CALLER: RetryRule(False, False, False),
    ErrorClass.CONTEXT_LENGTH: RetryRule(False, False, False),
    ErrorClass.CONTENT_FILTER: RetryRule(False, False, False),
    ErrorClass.AFTER_COMMIT: RetryRule(False, False, True),
}

BACKOFF_BASE = 0.05
BACKOFF_CAP = 2.0


def may_repeat_here(error: BaseException | None, *, repeat_maybe_accepted: bool) -> bool:
    """Whether the provider that failed like this may be asked again.

    Never where a quota is used up, or the provider is out of rotation: no backoff of
    seconds brings it back.
    """
    return (
        isinstance(error, ProviderError)
        and not isinstance(error, (ExhaustedError, ProviderClosedError))
        and RETRY_RULES[error.error_class].same_provider
        and _may_be_tried_again(error, repeat_maybe_accepted)
    )


def may_go_elsewhere(error: BaseException | None, *, repeat_maybe_accepted: bool) -> bool:
    """Whether another provider may be asked after a failure like this."""
    return (
        isinstance(error, ProviderError)
        and RETRY_RULES[error.error_class].another_provider
        and _may_be_tried_again(error, repeat_maybe_accepted)
    )


def _may_be_tried_again(error: ProviderError, repeat_maybe_accepted: bool) -> bool:
    """Replay safety, and what the provider itself says of trying again.

    `x-should-retry: false` always wins: OpenAI's and Anthropic's clients obey it. `true`
    says that a request which may have been accepted was not, and says it of nothing else.
    """
    if error.should_retry is False:
        return False
    if error.replay is Replay.MAYBE_ACCEPTED:
        return repeat_maybe_accepted or error.should_retry is True
    return error.replay is Replay.NOT_ACCEPTED or repeat_maybe_accepted


def fallback_cause(error: BaseException, *, repeat_maybe_accepted: bool) -> FallbackCause | None:
    """Which fallbacks a model's failure leads to; None where no other model may be asked."""
    if isinstance(error, ContextLengthError):
        return "context_length"
    if isinstance(error, ContentFilterError):
        return "content_filter"
    if isinstance(error, NoProviderAvailableError):
        return "error"
    return "error" if may_go_elsewhere(error, repeat_maybe_accepted=repeat_maybe_accepted) else None


def backoff(repeat: int, error: GatewayError | None, rng: random.Random) -> float:
    """Seconds to wait before a repeat at the same provider.

    Full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015): uniform between 0
    and 50 ms doubling to 2 s. A provider's own hint is a floor, spread by up to half.

    Args:
        repeat: 1 for the first repeat.
        error: The failure before it.
        rng: Source of the jitter.
    """
    # 2 ** 6 * 0.05 s = 3.2 s is over the cap already; larger exponents would only overflow.
    jittered = rng.uniform(0, min(BACKOFF_CAP, BACKOFF_BASE * 2 ** min(repeat - 1, 6)))
    hint = error.retry_after if error is not None else None
    return jittered if not hint else max(jittered, hint * rng.uniform(1.0, 1.5))


def repeating(
    *,
    repeats: int,
    deadline: float,
    repeat_maybe_accepted: bool,
    clock: Callable[[], float],
    rng: random.Random,
    permit: Callable[[ProviderError], bool] = lambda _: True,
) -> AsyncRetrying:
    """A fresh tenacity object for the repeats of one request at one provider.

    It is entered only after a failure, and its first "call" is that failure. A wait that
    would overrun the deadline is not begun: the failure goes up at once.

    Args:
        repeats: How many repeats are allowed.
        deadline: The request's deadline, an instant of `clock`.
        repeat_maybe_accepted: Whether a possibly executed request may be repeated.
        clock: The router's clock.
        rng: Source of the jitter.
        permit: Asked last, with the failure, before each wait: whether the retry budget
            allows the repeat. What it takes is the repeat's, its wait included.
    """
    # Imported by the first repeat: it costs 10 ms, and most processes' first request succeeds.
    from tenacity import AsyncRetrying, retry_if_exception  # noqa: PLC0415

    def wait(state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome else None
        error = failure if isinstance(failure, GatewayError) else None
        return backoff(state.attempt_number, error, rng)

    def stop(state: RetryCallState) -> bool:
        if state.attempt_number > repeats or clock() + state.upcoming_sleep >= deadline:
            return True
        failure = state.outcome.exception() if state.outcome else None
        return not (isinstance(failure, ProviderError) and permit(failure))

    def retry(error: BaseException) -> bool:
        return may_repeat_here(error, repeat_maybe_accepted=repeat_maybe_accepted)

    options: dict[str, Any] = {"sleep": anyio.sleep, "reraise": True}
    return AsyncRetrying(wait=wait, stop=stop, retry=retry_if_exception(retry), **options)
