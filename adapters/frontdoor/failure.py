"""From an exception to what the caller is told, before any dialect gives it its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapters.frontdoor.body_limits import ExchangeError
from adapters.frontdoor.client_advice import (
    ASK_LATER,
    Header,
    cannot_help,
    repeat_field,
    wait_fields,
)
from adapters.frontdoor.request_errors import MethodNotAllowedError, UnauthorizedError
from engine.errors import (
    ConfigurationError,
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    MisconfiguredError,
    ProviderError,
    RejectedError,
    Replay,
    StreamTruncatedError,
)
from engine.ledger import Outcome
from engine.telemetry import error_type

MAX_MESSAGE = 1024
"""Characters of a message that a caller gets; some of it can come from an upstream."""
DEFAULT_WAIT = 1.0
"""Seconds of `Retry-After` when nobody knows better."""
LONGEST_WAIT = 86_400.0

_SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request was not served, in words that are safe to tell.

    Attributes:
        status: HTTP status.
        type: `error.type` of the answer.
        message: One sentence for people.
        code: `error.code` of the answer.
        param: The request field at fault.
        provider: Name of the provider that failed last, where one did.
        attempts: Upstream calls that were made.
        wait: Seconds after which another try makes sense; always set with 429 and 503.
        should_retry: What the client's own retry loop is told: False where the same request
            would fail the same way, or may have been billed already; True where the provider
            said so; None leaves it to the client.
        fallbacks: Other models that were asked.
        retry_denied: Why nothing more was tried although it might have been.
        outcome: How the request ended.
        kind: A word of low cardinality, for spans.
        headers: Further header fields of the answer.
    """

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    provider: str | None = None
    attempts: int = 0
    wait: float | None = None
    should_retry: bool | None = None
    fallbacks: tuple[str, ...] = ()
    retry_denied: str | None = None
    outcome: Outcome = Outcome.FAILED
    kind: str = ""
    headers: tuple[Header, ...] = ()

    def header_fields(self) -> list[Header]:
        """The header fields that this failure adds to its answer."""
        fields = list(self.headers)
        if self.wait is not None:
            fields += wait_fields(self.wait)
        if self.should_retry is not None:
            fields.append(repeat_field(repeats=self.should_retry))
        if self.provider is not None:
            fields.append((b"x-gateway-provider", self.provider.encode("latin-1", "replace")))
        if self.attempts:
            fields.append((b"x-gateway-attempts", b"%d" % self.attempts))
        if self.fallbacks:
            fields.append(fallback_field(self.fallbacks))
        if self.retry_denied is not None:
            fields.append((b"x-gateway-retry", self.retry_denied.encode()))
        return fields


def fallback_field(models: tuple[str, ...]) -> Header:
    """The header field that names the other models that were asked, in their order."""
    return (b"x-gateway-fallback", ", ".join(models).encode("latin-1", "replace"))


def failure_of(error: Exception, request_id: str) -> Failure:
    """Say what a caller is told about an exception.

    Only our own exceptions speak for themselves. Of any other, and of a mistake in the
    configuration, the caller learns no more than the id to ask the operator about.

    Args:
        error: What was raised.
        request_id: The request's id.
    """
    if isinstance(error, ExchangeError):
        return Failure(
            error.status,
            "invalid_request_error",
            error.message,
            code=error.code,
            should_retry=False if cannot_help(error.status) else None,
            outcome=Outcome.REJECTED,
            kind=error.code,
        )
    if not isinstance(error, GatewayError) or isinstance(error, ConfigurationError):
        return Failure(
            _SERVER_ERROR,
            "api_error",
            f"the gateway failed to serve this request (request id {request_id})",
            code="internal_error",
            kind=type(error).__name__,
        )
    return Failure(
        error.status,
        error.type,
        error.message[:MAX_MESSAGE],
        code=error.code,
        param=error.param,
        provider=error.provider if isinstance(error, ProviderError) else None,
        attempts=error.attempts,
        wait=_wait(error),
        should_retry=_should_retry(error),
        fallbacks=error.fallbacks,
        retry_denied=error.retry_denied,
        outcome=_outcome(error),
        kind=error_type(error),
        headers=_headers(error),
    )


def _wait(error: GatewayError) -> float | None:
    if error.status not in ASK_LATER:
        return None
    wait = error.retry_after
    if wait is None or not 0 < wait < math.inf:
        return DEFAULT_WAIT
    return min(wait, LONGEST_WAIT)


def _should_retry(error: GatewayError) -> bool | None:
    """What to tell the client's own retry loop.

    The provider's word counts most. Without one, what it may have executed, and billed, is not
    asked for again behind the back of whoever pays: to repeat it is a decision, not a reflex.
    """
    if isinstance(error, (DeadlineExceededError, MisconfiguredError)):
        return False
    if isinstance(error, ProviderError):
        if error.should_retry is not None:
            return error.should_retry
        if error.replay is not Replay.NOT_ACCEPTED:
            return False
    return False if cannot_help(error.status) else None


def _outcome(error: GatewayError) -> Outcome:
    if isinstance(error, (InvalidRequestError, RejectedError)):
        return Outcome.REJECTED
    return Outcome.TRUNCATED if isinstance(error, StreamTruncatedError) else Outcome.FAILED


def _headers(error: GatewayError) -> tuple[Header, ...]:
    if isinstance(error, UnauthorizedError):
        return ((b"www-authenticate", b"Bearer"),)
    if isinstance(error, MethodNotAllowedError):
        return ((b"allow", error.allowed.encode()),)
    return ()
