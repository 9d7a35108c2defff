"""`Pause`: keeps a provider closed for a while, longer each time it repeats."""

from __future__ import annotations


class Pause:
    """An instant until which a provider is closed.

    Without a hint of the provider the pauses double. A closing while it is closed already
    does not count again: many attempts in flight hear the same refusal.

    Attributes:
        until: Instant before which the provider is closed; 0 if it never was.

    Args:
        first: The first pause, seconds.
        longest: The longest pause that doubling comes to, seconds.
    """

    __slots__ = ("_first", "_longest", "_next", "until")

    def __init__(self, first: float, longest: float) -> None:
        self.until = 0.0
        self._first = first
        self._longest = longest
        self._next = first

    def close(self, now: float, hint: float | None = None) -> None:
        """Close for the seconds that the provider asks for, or for the next pause.

        A hint of 0 names no time to wait, so it counts as none.
        """
        if hint is not None and hint > 0:
            self.until = max(self.until, now + hint)
        elif self.until <= now:
            self.until = now + self._next
            self._next = min(self._longest, 2 * self._next)

    def reset(self) -> None:
        """Begin with the first pause again; a pause under way stays."""
        self._next = self._first

    def clear(self) -> None:
        """End a pause under way, and begin with the first again."""
        self.until = 0.0
        self._next = self._first

    def idle(self, now: float) -> bool:
        """Whether there is nothing to remember."""
        return self.until <= now and self._next == self._first
