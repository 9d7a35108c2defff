"""`Envelope`: one attempt on its way through a mailbox, with the way back for its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

import anyio
from opentelemetry.context import Context

from engine.attempt import NO_HEADERS, Attempt
from engine.config import ProviderConfig
from engine.errors import (
    ActorCrashedError,
    DeadlineExceededError,
    ErrorClass,
    GatewayError,
    OverloadedError,
    ProviderError,
    Replay,
    SilentError,
)
from engine.operations import Request, Response
from engine.priority import Priority
from engine.resilience.deadline import DeadlineWheel

if TYPE_CHECKING:
    from engine.resilience.retry_budget import RetryBudget
    from engine.streaming import ResponseStream

CLEANUP_GRACE = 0.25
"""Seconds that a cancelled call may spend on its clean-up before the caller is answered
without it. Long enough to close a connection, short enough to fail over in time."""

LAST_GRACE = 0.05
"""The same at the request's deadline: with a tick before it and one after it, the caller
hears within the 100 ms that we promise."""


class Handling(Protocol):
    """Whoever holds an envelope now and can be told to let go of it."""

    def interrupt(self, envelope: Envelope) -> None:
        """Stop working on the envelope, at once."""
        ...


class State(Enum):
    """Where an envelope is."""

    WAITING = auto()
    RUNNING = auto()
    DONE = auto()
    ABANDONED = auto()


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """What went wrong in one attempt; kept for the answer's record.

    Attributes:
        provider: Name of the provider.
        number: 1 for the request's first attempt.
        error_class: The row of the retry table.
        replay: Whether the provider may have executed it.
        seconds: How long the attempt took.
    """

    provider: str
    number: int
    error_class: ErrorClass
    replay: Replay
    seconds: float


class Envelope(Attempt):
    """One attempt, or an attempt and its repeats at the same provider.

    It is answered exactly once: by the worker, by the limit that it meets, or by the
    actor that stops. Whoever comes later finds it done.

    Attributes:
        number: Attempts of the request that have begun, the running one included.
        config: The provider's configuration.
        deadline: The request's deadline, an instant of the router's clock.
        until: When this provider must have answered; before the deadline where time is kept
            back for another tier or model.
        streamed: Whether the answer is read from the provider as a stream.
        assembled: Whether a stream is put together to a whole answer for the caller.
        priority: How much the request matters.
        repeats: How many repeats this provider may make of its own.
        repeat_maybe_accepted: Whether a possibly executed request may be repeated.
        prior_failure: The failure at this provider that the first call is a repeat of.
        context: Trace context of the caller; None when nobody records.
        queued_at: When it was offered.
        started_at: When the running attempt began.
        last_event_at: When the latest event came of a stream that is put together and has
            given something useful; None before that.
        upstream_seconds: Time spent in calls so far.
        failures: The attempts that failed.
        reserved_tokens: What the provider's rate limit has reserved for it.
        probe: Whether it is the one that tries out an ejected provider.
        repeat_slots: Retry budgets that count it as one of the repeats under way.
        picked_up_at: When a worker took it, or None.
        replied: Set when `result` or `error` is there.
    """

    __slots__ = (
        "assembled",
        "config",
        "context",
        "deadline",
        "error",
        "expiry",
        "failures",
        "handler",
        "last_event_at",
        "picked_up_at",
        "prior_failure",
        "priority",
        "probe",
        "queued_at",
        "repeat_maybe_accepted",
        "repeat_slots",
        "repeats",
        "replied",
        "reserved_tokens",
        "result",
        "started_at",
        "state",
        "streamed",
        "tick",
        "until",
        "upstream_seconds",
        "wheel",
    )

    def __init__(
        self,
        request: Request,
        model: str,
        request_id: str,
        *,
        config: ProviderConfig,
        wheel: DeadlineWheel,
        deadline: float,
        now: float,
        until: float | None = None,
        number: int = 0,
        streamed: bool = False,
        assembled: bool = False,
        priority: Priority = Priority.CRITICAL,
        repeats: int = 0,
        repeat_maybe_accepted: bool = False,
        prior_failure: GatewayError | None = None,
        context: Context | None = None,
        event: Callable[[], anyio.Event] = anyio.Event,
    ) -> None:
        # Written out instead of calling Attempt.__init__: this is the hot path.
        self.request = request
        self.model = model
        self.request_id = request_id
        self.number = number
        self.timeouts = config.timeouts
        self.trace_headers: Mapping[str, str] = NO_HEADERS
        self.tick: int | None = None
        self.config = config
        self.wheel = wheel
        self.deadline = deadline
        self.until = deadline if until is None else until
        self.streamed = streamed
        self.assembled = assembled
        self.priority = priority
        self.repeats = repeats
        self.repeat_maybe_accepted = repeat_maybe_accepted
        self.prior_failure = prior_failure
        self.context = context
        self.queued_at = now
        self.started_at = now
        self.upstream_seconds = 0.0
        self.last_event_at: float | None = None
        self.picked_up_at: float | None = None
        self.reserved_tokens = 0
        self.probe = False
        self.repeat_slots: tuple[RetryBudget, ...] = ()
        self.failures: list[AttemptFailure] | None = None
        self.state = State.WAITING
        self.handler: Handling | None = None
        self.expiry: GatewayError | None = None
        self.result: Response | ResponseStream | None = None
        self.error: BaseException | None = None
        self.replied = event()

    # ── the way of an attempt ────────────────────────────────────────────────────

    def begin(self, now: float) -> None:
        """A call upstream starts: its first limit applies."""
        self.state = State.RUNNING
        self.number += 1
        self.started_at = now
        self.last_event_at = None
        if self.picked_up_at is None:
            self.picked_up_at = now
        limit = self.timeouts.first_event if self.streamed else self.timeouts.headers
        self.wheel.move(self, min(self.until, now + min(limit, self.config.timeout)))

    def headers_received(self) -> None:
        """The limit for headers is met: what is left is the attempt's own."""
        if self.state is State.RUNNING and not self.streamed and self.expiry is None:
            self.wheel.move(self, min(self.until, self.started_at + self.config.timeout))

    def event_received(self, now: float, *, committed: bool) -> None:
        """An event of a stream that is put together has come: the next limit applies."""
        if committed and self.state is State.RUNNING and self.expiry is None:
            self.last_event_at = now
            self.wheel.move(self, min(self.until, now + self.timeouts.idle))

    def pause(self) -> None:
        """A backoff starts: only the deadline applies."""
        if self.open:
            self.wheel.move(self, self.until)

    def failed(self, error: GatewayError, now: float) -> None:
        """Note that the running attempt failed; the envelope is not answered by that."""
        seconds = now - self.started_at
        self.upstream_seconds += seconds
        if isinstance(error, ProviderError):
            error.provider = error.provider or self.config.name
            failure = AttemptFailure(
                self.config.name, self.number, error.error_class, error.replay, seconds
            )
            self.failures = [*(self.failures or ()), failure]

    def answer(self, result: Response | ResponseStream, now: float) -> bool:
        """Give the result to whoever asked; False if nobody waits for it any more."""
        self.upstream_seconds += now - self.started_at
        if self.state in _ENDED:
            return False
        self.result = result
        self._end()
        return True

    def fail(self, error: BaseException) -> None:
        """Answer with a failure, unless the envelope has its answer already."""
        if self.state not in _ENDED:
            self.error = error
            self._end()

    def abandon(self) -> None:
        """Whoever asked has left: stop the work, free the room."""
        if self.state in _ENDED:
            return
        self.state = State.ABANDONED
        self.wheel.discard(self)
        self._interrupt()

    def give_back_slots(self) -> None:
        """No repeat of it is under way any more."""
        for budget in self.repeat_slots:
            budget.give_back_slot()
        self.repeat_slots = ()

    @property
    def open(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self.state not in _ENDED

    def _end(self) -> None:
        self.state = State.DONE
        self.wheel.discard(self)
        self.replied.set()

    def _interrupt(self) -> None:
        if self.handler is not None:
            self.handler.interrupt(self)

    # ── limits ───────────────────────────────────────────────────────────────────

    def on_due(self, now: float) -> None:
        """A limit has passed."""
        if self.state in _ENDED:
            return
        if self.expiry is not None:
            # Cancelled, and still not out of its clean-up: answer without it.
            self.fail(self.expiry)
            return
        self.expiry = self.expired(now)
        if self.state is State.WAITING:
            self._interrupt()
            self.fail(self.expiry)
        else:
            last = max(now, self.until) + LAST_GRACE
            self.wheel.add(self, min(now + CLEANUP_GRACE, last))
            self._interrupt()

    def expired(self, now: float) -> GatewayError:
        """The error for a limit that has passed: the deadline, or the attempt's own."""
        if now >= self.deadline:
            where = "in the mailbox of" if self.state is State.WAITING else "while it waited for"
            return DeadlineExceededError(
                f"the request's deadline passed {where} provider {self.config.name!r}"
            )
        if self.state is State.WAITING:
            waited = now - self.queued_at
            return OverloadedError(
                f"provider {self.config.name!r} could not begin within {waited:.3g} s",
                provider=self.config.name,
                code="queue_wait_exceeded",
            )
        awaited, since = "first event" if self.streamed else "answer", self.started_at
        if self.last_event_at is not None:
            awaited, since = "further event", self.last_event_at
        return SilentError(
            f"provider {self.config.name!r} gave no {awaited} within {now - since:.3g} s",
            provider=self.config.name,
        )

    def crashed(self, *, retired: bool = False) -> ActorCrashedError:
        """The error for an envelope whose actor has died, or was retired by a reload."""
        never_sent = self.state is State.WAITING
        what = (
            f"provider {self.config.name!r} left the configuration"
            if retired
            else f"the actor of provider {self.config.name!r} crashed"
        )
        return ActorCrashedError(
            f"{what} {'before' if never_sent else 'while'} it served the request",
            provider=self.config.name,
            replay=Replay.NOT_ACCEPTED if never_sent else Replay.MAYBE_ACCEPTED,
            code="provider_retired" if retired else None,
        )


_ENDED = frozenset({State.DONE, State.ABANDONED})
