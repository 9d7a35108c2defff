"""`Ledger`: every accepted request is counted in, and counted out exactly once."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import anyio

from engine.operations import Usage

logger = logging.getLogger("engine.ledger")


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    TRUNCATED = "truncated"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class AttemptAccount(NamedTuple):
    """What the attempts of one request come to.

    Attributes:
        attempts: Upstream calls.
        wasted: Of those, the ones without use for the caller that may have been billed.
        usage: Tokens of the answer, as the provider counted them; None if it did not say.
    """

    attempts: int
    wasted: int
    usage: Usage | None


NO_ATTEMPTS = AttemptAccount(0, 0, None)


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """The counts at one instant.

    Attributes:
        accepted: Requests taken in since the router was made.
        in_flight: Of those, the ones that have not ended.
        outcomes: Of those, the ones that have ended, by outcome.
        settled_twice: Endings of requests that had ended before; 0, or there is a bug.
        attempts: Upstream calls of the requests that have ended.
        wasted: Of those, the ones without use for the caller that may have been billed.
        input_tokens: Tokens of the questions that were answered, as providers counted them.
        output_tokens: Tokens of their answers.
    """

    accepted: int
    in_flight: int
    outcomes: dict[Outcome, int]
    settled_twice: int = 0
    attempts: int = 0
    wasted: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def conservation_error(self) -> int:
        """Requests lost or settled twice; 0, or there is a bug."""
        lost = self.accepted - self.in_flight - sum(self.outcomes.values())
        return abs(lost) + self.settled_twice


class Ledger:
    """Counts requests in and out; bounded by what is in flight."""

    def __init__(self) -> None:
        self._accepted = 0
        self._open: set[object] = set()
        self._outcomes = dict.fromkeys(Outcome, 0)
        self._empty: anyio.Event | None = None
        self._settled_twice = 0
        self._attempts = self._wasted = 0
        self._input_tokens = self._output_tokens = 0

    def open(self, entry: object) -> None:
        """Count a request in."""
        self._accepted += 1
        self._open.add(entry)

    def settle(
        self, entry: object, outcome: Outcome, *, attempts: AttemptAccount = NO_ATTEMPTS
    ) -> None:
        """Count a request out. A second time changes nothing but the count of such errors.

        Args:
            entry: What was given to `open`.
            outcome: How it ended.
            attempts: What its attempts come to.
        """
        if entry not in self._open:
            self._settled_twice += 1
            logger.error("a request was settled twice, the second time as %s", outcome.value)
            return
        self._open.remove(entry)
        self._outcomes[outcome] += 1
        self._attempts += attempts.attempts
        self._wasted += attempts.wasted
        if attempts.usage is not None:
            self._input_tokens += attempts.usage.input_tokens
            self._output_tokens += attempts.usage.output_tokens
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
        return LedgerStatus(
            self._accepted,
            len(self._open),
            dict(self._outcomes),
            self._settled_twice,
            self._attempts,
            self._wasted,
            self._input_tokens,
            self._output_tokens,
        )
