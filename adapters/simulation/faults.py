"""What goes wrong at a simulated upstream: from a fault's name to what the adapter raises.

The classes and replay marks are those that the HTTP adapters give to the same facts.
"""

from __future__ import annotations

from engine.errors import (
    BrokenError,
    CallerError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    ErrorClass,
    ExhaustedError,
    MisconfiguredError,
    OverloadedError,
    ProviderError,
    Replay,
    SilentError,
    TransientError,
)

ERRORS: dict[ErrorClass, type[ProviderError]] = {
    ErrorClass.CONNECT: ConnectError,
    ErrorClass.OVERLOADED: OverloadedError,
    ErrorClass.TRANSIENT: TransientError,
    ErrorClass.SILENT: SilentError,
    ErrorClass.BROKEN: BrokenError,
    ErrorClass.MISCONFIGURED: MisconfiguredError,
    ErrorClass.CALLER: CallerError,
    ErrorClass.CONTEXT_LENGTH: ContextLengthError,
    ErrorClass.CONTENT_FILTER: ContentFilterError,
}

_BY_STATUS: dict[int, type[ProviderError]] = {
    401: MisconfiguredError, 402: MisconfiguredError, 403: MisconfiguredError,
    408: TransientError, 425: TransientError,
    429: OverloadedError, 503: OverloadedError, 529: OverloadedError,
}  # fmt: skip

SERVER_ERRORS = 500


class SimulatedBugError(Exception):
    """What an adapter with a bug raises; the engine must not know it."""


class SimulatedCrash(BaseException):
    """What takes an actor down."""


def of_class(kind: ErrorClass, provider: str, *, retry_after: float | None = None) -> ProviderError:
    """An error of a class."""
    return ERRORS[kind](f"simulated {kind.value}", provider=provider, retry_after=retry_after)


def of_status(status: int, provider: str, *, retry_after: float | None = None) -> ProviderError:
    """The error that an adapter makes of an HTTP status."""
    kind = _BY_STATUS.get(status, TransientError if status >= SERVER_ERRORS else CallerError)
    return kind(
        f"simulated status {status}",
        provider=provider,
        upstream_status=status,
        retry_after=retry_after,
    )


def reset(provider: str) -> ProviderError:
    """The connection was reset after the request had been sent."""
    return TransientError("simulated reset", provider=provider, replay=Replay.MAYBE_ACCEPTED)


def refused(provider: str) -> ProviderError:
    """Nobody listens."""
    return ConnectError("simulated refusal", provider=provider)


def quota(provider: str, retry_after: float | None) -> ProviderError:
    """The money or the quota is used up."""
    return ExhaustedError(
        "simulated quota", provider=provider, upstream_status=429, retry_after=retry_after
    )


def html(provider: str) -> ProviderError:
    """A 200 with a page for people."""
    return BrokenError("simulated page instead of an answer", provider=provider)


def error_event(provider: str) -> ProviderError:
    """A 200 whose first event, or whose body, is an error object."""
    return TransientError("simulated error event", provider=provider, replay=Replay.MAYBE_ACCEPTED)


def cut(provider: str) -> ProviderError:
    """The answer ended before it was complete."""
    return BrokenError("simulated cut", provider=provider)
