"""`ProviderHealth`: what one provider's attempts came to, and whether it may be picked."""

from __future__ import annotations

from engine.errors import ErrorClass, GatewayError, OverloadedError, ProviderError


class ProviderHealth:
    """Counts successes and failures; closes a provider that asked for a pause.

    Attributes:
        completed: Attempts that succeeded.
        failed: Attempts that failed, by error class; bounded by the number of classes.
        closed_until: Instant before which the provider asked not to be called; 0 if it did not.
    """

    def __init__(self) -> None:
        self.completed = 0
        self.failed: dict[ErrorClass, int] = {}
        self.closed_until = 0.0

    def note_success(self) -> None:
        """An attempt succeeded."""
        self.completed += 1

    def note_failure(self, error: GatewayError | None, now: float) -> None:
        """An attempt failed; errors that say nothing of the provider are passed over."""
        if not isinstance(error, ProviderError):
            return
        self.failed[error.error_class] = self.failed.get(error.error_class, 0) + 1
        if isinstance(error, OverloadedError) and error.retry_after:
            self.closed_until = max(self.closed_until, now + error.retry_after)

    def closed(self, now: float) -> bool:
        """Whether the provider is closed until an instant that has not come yet."""
        return self.closed_until > now
