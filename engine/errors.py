"""The one tree of errors that the engine raises, each with its HTTP status.

```
GatewayError
├── ConfigurationError (also a ValueError)   what the operator wrote cannot work
├── InvalidRequestError                      the caller's mistake, found before any attempt
│   ├── ModelNotFoundError                   no model of that name is served
│   └── UnsupportedOperationError            the model exists, but nothing behind it can do this
├── RejectedError                            shed: refused at once, nothing was sent upstream
│   ├── NoProviderAvailableError             nobody can take it now
│   ├── MailboxFullError                     the chosen mailbox has no room
│   └── RouterClosedError                    the router is not open, or is closing
├── DeadlineExceededError                    the request's time is over
└── ProviderError                            an attempt failed; carries its error class
    ├── ConnectError                         connect
    ├── OverloadedError                      overloaded
    │   ├── ExhaustedError                   the same, because a quota or spending limit is used up
    │   └── ProviderClosedError              it was closed while the request waited for it
    ├── TransientError                       transient
    ├── SilentError                          silent
    ├── BrokenError                          broken
    │   ├── AdapterError                     the adapter itself raised something unexpected
    │   └── ActorCrashedError                the actor died while it served the request
    ├── MisconfiguredError                   misconfigured
    ├── CallerError                          caller
    ├── ContextLengthError                   context_length
    ├── ContentFilterError                   content_filter
    └── StreamTruncatedError                 after_commit
```

Whether an attempt may be repeated is a fact of its error class and its replay mark,
set where the error is raised (`engine.resilience.retry` holds the table).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar


class ErrorClass(StrEnum):
    """What kind of failure an attempt met; the rows of the retry table."""

    CONNECT = "connect"
    OVERLOADED = "overloaded"
    TRANSIENT = "transient"
    SILENT = "silent"
    BROKEN = "broken"
    MISCONFIGURED = "misconfigured"
    CALLER = "caller"
    CONTEXT_LENGTH = "context_length"
    CONTENT_FILTER = "content_filter"
    AFTER_COMMIT = "after_commit"


class Replay(StrEnum):
    """Whether the provider may have executed (and billed) a failed attempt."""

    NOT_ACCEPTED = "not_accepted"
    MAYBE_ACCEPTED = "maybe_accepted"
    ACCEPTED = "accepted"


class GatewayError(Exception):
    """Root of everything that the engine raises.

    Attributes:
        status: HTTP status that a front door answers with.
        type: OpenAI-style `error.type`.
        code: Machine-readable `error.code`, or None.
        param: The request field at fault, or None.
        retry_after: Seconds after which another try makes sense, or None.
        attempts: Upstream calls that were made before it was raised by the router.
        retry_denied: Why nothing more was tried although it might have been (`budget`),
            or None.
        fallbacks: Other models that were asked before it was raised by the router.
    """

    status: int = 500
    type: str = "api_error"
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    attempts: int = 0
    retry_denied: str | None = None
    fallbacks: tuple[str, ...] = ()

    @property
    def message(self) -> str:
        """The text for people, without the class name."""
        return str(self.args[0]) if self.args else type(self).__name__


class ConfigurationError(GatewayError, ValueError):
    """What the operator configured cannot work; the text says what to do."""

    code: str | None = "configuration_error"


class InvalidRequestError(GatewayError):
    """The caller's request cannot be served by anybody as it is."""

    status = 400
    type = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status


class ModelNotFoundError(InvalidRequestError):
    """No model of that name is served here."""

    status = 404
    code: str | None = "model_not_found"


class UnsupportedOperationError(InvalidRequestError):
    """The model is known, but none of its providers offers the operation."""

    status = 404
    code: str | None = "unsupported_operation"


class RejectedError(GatewayError):
    """Shed: refused at once with a reason, and nothing was sent upstream.

    Attributes:
        reason: Machine-readable word for the bound that was hit.
    """

    status = 503
    type = "overloaded_error"
    code: str | None = "rejected"

    def __init__(self, message: str, *, reason: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = reason
        self.retry_after = retry_after


class NoProviderAvailableError(RejectedError):
    """No provider of the model can take the request now.

    Attributes:
        passed_over: For each provider of the model, the word that says why not.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "no_provider_available",
        retry_after: float = 1.0,
        passed_over: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, retry_after=retry_after)
        self.passed_over = passed_over or {}


class MailboxFullError(RejectedError):
    """The mailbox of one provider has no room left."""

    def __init__(self, provider: str, capacity: int) -> None:
        super().__init__(
            f"the mailbox of provider {provider!r} is full ({capacity} requests wait)",
            reason="mailbox_full",
        )


class RouterClosedError(RejectedError):
    """The router was not entered yet, or is closing."""

    def __init__(self, message: str = "the router is closed") -> None:
        super().__init__(message, reason="router_closed")


class DeadlineExceededError(GatewayError):
    """The request's deadline passed before an answer was there."""

    status = 504
    type = "timeout_error"
    code: str | None = "deadline_exceeded"


class ProviderError(GatewayError):
    """One attempt failed. Raised to the caller when nothing else could serve.

    Attributes:
        error_class: The row of the retry table that this failure belongs to.
        replay: Whether the provider may have executed the request.
        provider: Name of the provider, or None where it is not known yet.
        upstream_status: HTTP status that the provider answered, or None.
        retry_after: Seconds that the provider asked to wait, or None.
        should_retry: What the provider says of trying again (`x-should-retry`): False
            forbids it, True allows it where it was open; None says nothing.
        body: The provider's `error` object, scrubbed of keys and addresses, or None.
    """

    status = 502
    type = "upstream_error"
    error_class: ClassVar[ErrorClass]
    default_replay: ClassVar[Replay] = Replay.MAYBE_ACCEPTED

    def __init__(
        self,
        message: str,
        *,
        provider: str | None = None,
        replay: Replay | None = None,
        upstream_status: int | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
        status: int | None = None,
        type: str | None = None,  # noqa: A002 - the wire's word
        code: str | None = None,
        param: str | None = None,
        body: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.replay = replay or self.default_replay
        self.upstream_status = upstream_status
        self.retry_after = retry_after
        self.should_retry = should_retry
        self.param = param
        self.body = body
        if status is not None:
            self.status = status
        if type is not None:
            self.type = type
        if code is not None:
            self.code = code


class ConnectError(ProviderError):
    """The provider could not be reached: refused, DNS, TLS, connect or pool time-out."""

    error_class = ErrorClass.CONNECT
    default_replay = Replay.NOT_ACCEPTED
    code: str | None = "provider_unreachable"


class OverloadedError(ProviderError):
    """The provider said "not now": 429, 503, 529."""

    error_class = ErrorClass.OVERLOADED
    default_replay = Replay.NOT_ACCEPTED
    status = 503
    type = "overloaded_error"
    code: str | None = "provider_overloaded"


class ExhaustedError(OverloadedError):
    """A quota or a spending limit is used up: waiting a moment does not help."""

    code: str | None = "provider_exhausted"


class ProviderClosedError(OverloadedError):
    """The provider was taken out of rotation while the request waited in its mailbox."""

    code: str | None = "provider_closed"


class TransientError(ProviderError):
    """The provider failed in a way that may pass: other 5xx, 408, 425, early reset."""

    error_class = ErrorClass.TRANSIENT
    default_replay = Replay.NOT_ACCEPTED
    code: str | None = "provider_error"


class SilentError(ProviderError):
    """No headers, or no first event, came in time."""

    error_class = ErrorClass.SILENT
    status = 504
    type = "timeout_error"
    code: str | None = "provider_timeout"


class BrokenError(ProviderError):
    """The provider answered something that is no answer: not JSON, cut, garbled."""

    error_class = ErrorClass.BROKEN
    code: str | None = "provider_protocol_error"


class AdapterError(BrokenError):
    """The adapter raised an exception that is no `GatewayError`: a bug in the adapter."""

    code: str | None = "adapter_error"


class ActorCrashedError(BrokenError):
    """The provider's actor died while it served the request."""

    code: str | None = "actor_crashed"


class MisconfiguredError(ProviderError):
    """The provider refuses us, not the caller: bad key, no permission, unknown model."""

    error_class = ErrorClass.MISCONFIGURED
    default_replay = Replay.NOT_ACCEPTED
    code: str | None = "provider_misconfigured"


class CallerError(ProviderError):
    """The provider found a mistake in the request; every other one would as well."""

    error_class = ErrorClass.CALLER
    default_replay = Replay.NOT_ACCEPTED
    status = 400
    type = "invalid_request_error"


class ContextLengthError(ProviderError):
    """The prompt is longer than the model's context."""

    error_class = ErrorClass.CONTEXT_LENGTH
    default_replay = Replay.NOT_ACCEPTED
    status = 400
    type = "invalid_request_error"
    code: str | None = "context_length_exceeded"


class ContentFilterError(ProviderError):
    """The provider's policy refused the content."""

    error_class = ErrorClass.CONTENT_FILTER
    default_replay = Replay.ACCEPTED
    status = 400
    type = "invalid_request_error"
    code: str | None = "content_filter"


class StreamTruncatedError(ProviderError):
    """A stream broke after its first useful event; what came so far is not the whole."""

    error_class = ErrorClass.AFTER_COMMIT
    default_replay = Replay.ACCEPTED
    code: str | None = "stream_truncated"
