"""From an exception to what the caller is told, before any dialect gives it its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adapters.frontdoor.body_limits import ExchangeError
from adapters.frontdoor.request_errors import MethodNotAllowedError, UnauthorizedError
from engine.errors import (
    ConfigurationError,
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    MisconfiguredError,
    ProviderError,
    RejectedError,
    StreamTruncatedError,
)
from engine.ledger import Outcome
from engine.telemetry import error_type

MAX_MESSAGE = 1024
"""Characters of a message that a caller gets; some of it can come from an upstream."""
DEFAULT_WAIT = 1.0
"""Seconds of `Retry-After` when nobody knows better."""
LONGEST_WAIT = 86_400.0

_ASK_LATER = frozenset({429, 503})
# What the OpenAI clients would repeat by themselves, beside every status from 500 on.
_REPEATED_BY_CLIENTS = frozenset({408, 409, 429})
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
        hopeless: Whether repeating the same request is of no use.
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
    hopeless: bool = False
    outcome: Outcome = Outcome.FAILED
    kind: str = ""
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def header_fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields that this failure adds to its answer."""
        fields = list(self.headers)
        if self.wait is not None:
            fields.append((b"retry-after", b"%d" % max(1, math.ceil(self.wait))))
            fields.append((b"retry-after-ms", b"%d" % max(1, math.ceil(self.wait * 1000))))
        if self.hopeless:
            fields.append((b"x-should-retry", b"false"))
        if self.provider is not None:
            fields.append((b"x-gateway-provider", self.provider.encode("latin-1", "replace")))
        if self.attempts:
            fields.append((b"x-gateway-attempts", b"%d" % self.attempts))
        return fields


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
            hopeless=_cannot_help(error.status),
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
        hopeless=_is_hopeless(error),
        outcome=_outcome(error),
        kind=error_type(error),
        headers=_headers(error),
    )


def _wait(error: GatewayError) -> float | None:
    if error.status not in _ASK_LATER:
        return None
    wait = error.retry_after
    if wait is None or not 0 < wait < math.inf:
        return DEFAULT_WAIT
    return min(wait, LONGEST_WAIT)


def _is_hopeless(error: GatewayError) -> bool:
    if isinstance(error, (DeadlineExceededError, MisconfiguredError)):
        return True
    return _cannot_help(error.status)


def _cannot_help(status: int) -> bool:
    return status < _SERVER_ERROR and status not in _REPEATED_BY_CLIENTS


def _outcome(error: GatewayError) -> Outcome:
    if isinstance(error, (InvalidRequestError, RejectedError)):
        return Outcome.REJECTED
    return Outcome.TRUNCATED if isinstance(error, StreamTruncatedError) else Outcome.FAILED


def _headers(error: GatewayError) -> tuple[tuple[bytes, bytes], ...]:
    if isinstance(error, UnauthorizedError):
        return ((b"www-authenticate", b"Bearer"),)
    if isinstance(error, MethodNotAllowedError):
        return ((b"allow", error.allowed.encode()),)
    return ()
