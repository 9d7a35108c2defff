"""`RequestAttempts`: what one request knows of itself while it is tried, and how it is tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from opentelemetry.context import Context

from engine.chunk_assembly import as_upstream_stream, may_stream_upstream
from engine.dispatcher import NOBODY, Asked, Choice, Dispatcher
from engine.envelope import AttemptFailure, Envelope
from engine.errors import ProviderError
from engine.ledger import Ledger
from engine.operations import Request, Response
from engine.plan import Plan, Target
from engine.priority import Priority
from engine.repeat_permits import RepeatPermits
from engine.request_history import RequestHistory
from engine.request_record import RequestRecord
from engine.resilience.deadline import DeadlineWheel
from engine.streaming import ResponseStream
from engine.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Collection

    from opentelemetry.trace import Span

    from engine.generation import Generation


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """What all requests of a running router share.

    Attributes:
        clock: Monotonic seconds.
        event: Makes an event of the running event loop.
        dispatcher: Picks actors.
        wheel: Watches limits.
        ledger: Counts requests.
        telemetry: Makes spans.
        permits: Allows further attempts.
        history: Keeps the requests' stories.
    """

    clock: Callable[[], float]
    event: Callable[[], anyio.Event]
    dispatcher: Dispatcher
    wheel: DeadlineWheel
    ledger: Ledger
    telemetry: Telemetry
    permits: RepeatPermits
    history: RequestHistory


class RequestAttempts:
    """One request, and what its attempts have come to so far.

    `RequestRun` leads it to its outcome; `Failover` and `Hedging` try on for it.

    Attributes:
        request: What was asked.
        request_id: Its id.
        generation: The configuration under which it was accepted, and stays to its end.
        plan: The plan of the model that was asked for.
        priority: How much it matters.
        streamed: Whether the caller wants a stream.
        began: When it was accepted, an instant of the router's clock.
        deadline: When it must have ended, an instant of the router's clock.
        engine: What it shares with all others.
        span: Its span; None when nobody records.
        context: Trace context of its span; None when nobody records.
        opened: The stream in the caller's hands, if there is one.
        attempts: Upstream calls made so far.
        upstream_seconds: Time spent in them.
        failures: The attempts that failed.
        fallbacks: Other models that were asked, in order.
        cut_off: Calls that neither answered nor failed: overtaken by another provider, cut
            off by the deadline, or left behind by a caller who went away.
        repeat_maybe_accepted: Whether what may have been executed may be repeated.
        record: Its story, or None if none are kept.
    """

    __slots__ = (
        "attempts",
        "began",
        "context",
        "cut_off",
        "deadline",
        "engine",
        "failures",
        "fallbacks",
        "generation",
        "opened",
        "plan",
        "priority",
        "record",
        "repeat_maybe_accepted",
        "request",
        "request_id",
        "span",
        "streamed",
        "upstream_seconds",
    )

    def __init__(
        self,
        request: Request,
        request_id: str,
        *,
        engine: RunningEngine,
        generation: Generation,
        plan: Plan,
        now: float,
        deadline: float,
        streamed: bool,
        context: Context | None = None,
        priority: Priority = Priority.CRITICAL,
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.engine = engine
        self.generation = generation
        self.plan = plan
        self.priority = priority
        self.streamed = streamed
        self.began = now
        self.deadline = deadline
        self.context: Context | None = None
        self.span: Span | None = None
        self.opened: ResponseStream | None = None
        self.attempts = 0
        self.upstream_seconds = 0.0
        self.failures: tuple[AttemptFailure, ...] = ()
        self.fallbacks: tuple[str, ...] = ()
        self.cut_off = 0
        repeat = plan.retries.repeat_maybe_accepted
        self.repeat_maybe_accepted = repeat == "always" or (
            repeat == "non_streaming" and not streamed
        )
        self.record: RequestRecord | None = None
        if engine.history.wanted:
            self.record = RequestRecord(self, now)
            engine.history.add(self.record)
        if engine.telemetry.recording(now):
            self.span, self.context = engine.telemetry.start_request(request, context)

    def asked(
        self,
        now: float,
        *,
        excluded: Collection[Target] = NOBODY,
        only: Collection[Target] | None = None,
    ) -> Asked:
        """What a target must be able to do for this request now."""
        return Asked(
            self.request.operation,
            self.priority,
            self.deadline - now,
            excluded,
            only,
            self.record is not None,
        )

    def envelope(
        self,
        plan: Plan,
        target: Target,
        now: float,
        *,
        repeats: int,
        prior: ProviderError | None = None,
        ahead: int = 0,
    ) -> Envelope:
        """An envelope for a target.

        Args:
            plan: The plan that the target is from.
            target: Who is asked.
            now: The instant.
            repeats: How many repeats it may make of its own.
            prior: The failure there that its first call is a repeat of.
            ahead: Calls of this request that run beside it.
        """
        assembled = (
            plan.upstream_streaming and not self.streamed and may_stream_upstream(self.request)
        )
        return Envelope(
            as_upstream_stream(self.request) if assembled else self.request,
            target.model or plan.model or self.request.model,
            self.request_id,
            config=target.actor.config,
            wheel=self.engine.wheel,
            deadline=self.deadline,
            until=self._until(plan, target, now),
            now=now,
            number=self.attempts + ahead,
            streamed=self.streamed or assembled,
            assembled=assembled,
            priority=self.priority,
            repeats=repeats,
            repeat_maybe_accepted=self.repeat_maybe_accepted,
            prior_failure=prior,
            context=self.context,
            event=self.engine.event,
        )

    def _until(self, plan: Plan, target: Target, now: float) -> float:
        """When a target must have answered, so that time is left for what stands behind it.

        Kept back is what those would take by their configuration, but never more than
        their part of what is left, with this tier counted as one of them.
        """
        behind = len(plan.tiers) - 1 - target.stage + bool(plan.fallbacks.error)
        if behind <= 0:
            return self.deadline
        remaining = self.deadline - now
        kept = min(behind * target.actor.config.timeout, remaining * behind / (behind + 1))
        return self.deadline - kept

    async def ask(self, target: Target, envelope: Envelope) -> None:
        """Hand an envelope over and wait until it is answered, one way or the other.

        Raises:
            RejectedError: If the actor did not take it. It was eligible a moment ago, in
                this very turn: only a bug gets here, and the request must not loop over it.
        """
        before = envelope.number
        target.actor.offer(envelope)
        try:
            await envelope.replied.wait()
        except BaseException:
            self.give_up(envelope)
            self.take_stock(envelope, before, "abandoned")
            raise
        answered = envelope.result is not None
        if isinstance(envelope.result, Response):
            envelope.result.provider = target.actor.name
        self.take_stock(envelope, before, "answered" if answered else "failed")

    @staticmethod
    def give_up(envelope: Envelope) -> None:
        """Let go of an envelope, and of an answer that came in the very same turn."""
        envelope.abandon()
        if isinstance(envelope.result, ResponseStream):
            envelope.result.release()

    def take_stock(self, envelope: Envelope, before: int, result: str) -> None:
        """Count what became of an envelope; `before` is its number when it was offered."""
        self.upstream_seconds += envelope.upstream_seconds
        calls = envelope.number - before
        failures = envelope.failures
        if failures:
            self.failures += tuple(failures)
            self.cut_off -= len(failures)
        self.attempts += calls
        self.cut_off += calls - (result == "answered")
        if self.record is not None:
            self.record.tried(envelope, before, result)

    def note_pick(self, plan: Plan, choice: Choice, resort: str, now: float) -> None:
        """Note a choice in the record."""
        if self.record is not None:
            self.record.picked(now, plan.model, choice, resort)
