"""`Ledger`: every accepted request is counted in, and counted out exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import anyio


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TRUNCATED = "truncated"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """The counts at one instant.

    Attributes:
        accepted: Requests taken in since the router was made.
        in_flight: Of those, the ones that have not ended.
        outcomes: Of those, the ones that have ended, by outcome.
    """

    accepted: int
    in_flight: int
    outcomes: dict[Outcome, int]

    @property
    def conservation_error(self) -> int:
        """Requests lost (positive) or settled twice (negative); 0, or there is a bug."""
        return self.accepted - self.in_flight - sum(self.outcomes.values())


class Ledger:
    """Counts requests in and out; bounded by what is in flight."""

    def __init__(self) -> None:
        self._accepted = 0
        self._open: set[object] = set()
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._empty: anyio.Event | None = None

    def open(self, entry: object) -> None:
        """Count a request in."""
        self._accepted += 1
        self._open.add(entry)

    def settle(self, entry: object, outcome: Outcome) -> None:
        """Count a request out.

        Raises:
            KeyError: If it was not open: settled twice, or never counted in.
        """
        self._open.remove(entry)
        self._outcomes[outcome] += 1
        if self._empty is not None and not self._open:
            self._empty.set()

    def entries(self) -> list[object]:
        """The requests that have not ended."""
        return list(self._open)

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    async def wait_empty(self) -> None:
        """Wait until nothing is in flight."""
        while self._open:
            if self._empty is None or self._empty.is_set():
                self._empty = anyio.Event()
            await self._empty.wait()

    def status(self) -> LedgerStatus:
        """The counts now."""
        return LedgerStatus(self._accepted, len(self._open), dict(self._outcomes))
