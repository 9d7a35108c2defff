"""`SharedResponse`: a whole answer that several callers wait for, and what work is to them.

The work belongs to the router, not to the caller that came first: whoever waits may leave
at any time, and the work ends early only when nobody waits any more.
"""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any

import anyio

from engine.errors import RouterClosedError
from engine.operations import Replayed, Response

CLOSING = "the gateway is closing"

Slot = tuple[str, str]
"""Whose key it is, and the key."""


async def wait_for(event: anyio.Event, deadline: float | None, clock: Callable[[], float]) -> bool:
    """Wait for an event, at most until a deadline.

    Args:
        event: What is waited for.
        deadline: An instant of the clock; None waits as long as it takes.
        clock: Monotonic seconds.

    Returns:
        Whether it happened in time.
    """
    if deadline is None:
        await event.wait()
        return True
    with anyio.move_on_after(max(0.0, deadline - clock())):
        await event.wait()
        return True
    return event.is_set()


class SharedWork(ABC):
    """Work for all who sent the same key: how many wait for it, and how it ended.

    Attributes:
        slot: Where the store keeps it.
        fingerprint: Of the request that is being served.
        recorded: Whether the store knows it, so that others can find it.
        size: What it takes of the store's bytes.
        expires: Until when a finished answer is kept, an instant of the store's clock.
        waiting: Callers that want its result and have not left.
        abandoned: Whether the last of them left before the end, so it was cancelled.
        ended: Set when nothing of it runs any more.
        scope: Cancelled when nobody waits.
        failure: Why there is no (whole) answer.
    """

    __slots__ = (
        "_traceback",
        "abandoned",
        "ended",
        "expires",
        "failure",
        "fingerprint",
        "recorded",
        "scope",
        "size",
        "slot",
        "waiting",
    )

    def __init__(
        self, slot: Slot, fingerprint: bytes, *, recorded: bool, event: Callable[[], anyio.Event]
    ) -> None:
        self.slot = slot
        self.fingerprint = fingerprint
        self.recorded = recorded
        self.size = 0
        self.expires = 0.0
        self.waiting = 1
        self.abandoned = False
        self.ended = event()
        self.scope = anyio.CancelScope()
        self.failure: BaseException | None = None
        self._traceback: TracebackType | None = None

    @property
    def joinable(self) -> bool:
        """Whether somebody who comes now can still get the whole of it."""
        return True

    @property
    @abstractmethod
    def succeeded(self) -> bool:
        """Whether the whole answer is here."""

    @property
    @abstractmethod
    def weight(self) -> int | None:
        """Bytes that it takes to keep the answer, or None if it cannot be kept."""

    def keep(self) -> None:
        """Prepare to be held for long."""

    def leave(self) -> None:
        """One who waited does not any more; the last one takes the work along."""
        self.waiting -= 1
        if not self.waiting and not self.ended.is_set():
            self.abandoned = True
            self.scope.cancel()

    def fail(self, error: BaseException) -> None:
        """Note why there is no (whole) answer, for all who wait."""
        if self.failure is None and not self.succeeded:
            self.failure, self._traceback = error, error.__traceback__

    def close(self) -> None:
        """Tell all who wait that the router goes away."""
        self.fail(RouterClosedError(CLOSING))

    def end(self) -> None:
        """Say that nothing of it runs any more."""
        self.ended.set()

    def raise_failure(self) -> None:
        """Raise why it failed, if it did.

        Raises:
            Exception: What the work raised, the same object for all who waited.
        """
        if self.failure is not None:
            # Without it, each of the many who raise it would make its traceback longer.
            raise self.failure.with_traceback(self._traceback)


class SharedResponse(SharedWork):
    """A whole answer: the first caller gets the original, the others get copies."""

    __slots__ = ("_encoded", "_facts", "_original", "_raw")

    def __init__(
        self, slot: Slot, fingerprint: bytes, *, recorded: bool, event: Callable[[], anyio.Event]
    ) -> None:
        super().__init__(slot, fingerprint, recorded=recorded, event=event)
        self._original: Response | None = None
        self._encoded: bytes | None = None
        self._raw: bytes | None = None
        self._facts: tuple[str, str, tuple[str, ...], float] = ("", "", (), 0.0)

    @property
    def succeeded(self) -> bool:
        """Whether the answer is here."""
        return self._original is not None or self._encoded is not None

    def put(self, response: Response) -> None:
        """Take the answer."""
        self._original = response
        self._raw = response.raw
        self._encoded = response.raw if response.raw is not None else _encoded(response.body)
        self._facts = (
            response.provider,
            response.request_id,
            response.fallbacks,
            response.upstream_seconds,
        )

    @property
    def weight(self) -> int | None:
        """Bytes that it takes to keep the answer, or None if it cannot be kept."""
        return None if self._encoded is None else len(self._encoded)

    def keep(self) -> None:
        """Hold nothing but bytes from now on: objects would weigh several times as much."""
        if self._encoded is not None and not self.waiting:
            self._original = None

    def leave(self) -> None:
        """One who waited does not any more; the last one takes the work along."""
        super().leave()
        self.keep()

    def answer(self, replayed: Replayed | None) -> Response:
        """The answer for one of those who waited.

        Raises:
            Exception: What the work raised.
        """
        self.raise_failure()
        if replayed is None:
            assert self._original is not None
            return self._original
        response = Response(self._body_copy(), self._raw)
        response.provider, response.request_id, response.fallbacks, seconds = self._facts
        response.attempts = 0
        response.upstream_seconds = seconds if replayed is Replayed.JOINED else 0.0
        response.replayed = replayed
        return response

    def _body_copy(self) -> dict[str, Any]:
        # A copy each: what one caller does to its answer is not seen by another.
        if self._encoded is not None:
            body: dict[str, Any] = json.loads(self._encoded)
            return body
        assert self._original is not None
        return copy.copy(self._original.body)


def _encoded(body: dict[str, Any]) -> bytes | None:
    """The body as JSON, or None if it cannot be; such an answer is shared, not kept."""
    try:
        return json.dumps(body, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError):
        return None
