"""`RequestRun`: one request from acceptance to its outcome, over all its attempts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
from opentelemetry import trace
from opentelemetry.context import Context

from engine.dispatcher import Dispatcher
from engine.envelope import AttemptFailure, Envelope
from engine.errors import (
    GatewayError,
    InvalidRequestError,
    MailboxFullError,
    ProviderError,
    RejectedError,
    RouterClosedError,
    StreamTruncatedError,
)
from engine.ledger import Ledger, Outcome
from engine.operations import Request, Response
from engine.plan import Plan, Target
from engine.resilience.deadline import DeadlineWheel
from engine.resilience.retry import may_go_elsewhere, may_repeat_here
from engine.streaming import ResponseStream
from engine.telemetry import Telemetry

if TYPE_CHECKING:
    from opentelemetry.trace import Span


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
    """

    clock: Callable[[], float]
    event: Callable[[], anyio.Event]
    dispatcher: Dispatcher
    wheel: DeadlineWheel
    ledger: Ledger
    telemetry: Telemetry


@dataclass(frozen=True, slots=True)
class TargetFailure:
    """What a request has met at one target so far.

    Attributes:
        error: The latest failure there.
        calls: Upstream calls made there.
    """

    error: ProviderError
    calls: int


class RequestRun:
    """Finds a provider for a request, judges failures, and settles the outcome once.

    Attributes:
        request: What was asked.
        request_id: Its id.
        deadline: When it must have ended, an instant of the router's clock.
        attempts: Upstream calls made so far.
        upstream_seconds: Time spent in them.
        failures: The attempts that failed.
    """

    __slots__ = (
        "_context",
        "_engine",
        "_failed",
        "_opened",
        "_plan",
        "_repeat_maybe_accepted",
        "_span",
        "_streamed",
        "attempts",
        "deadline",
        "failures",
        "request",
        "request_id",
        "upstream_seconds",
    )

    def __init__(
        self,
        request: Request,
        request_id: str,
        *,
        engine: RunningEngine,
        plan: Plan,
        now: float,
        deadline: float,
        streamed: bool,
        context: Context | None,
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.deadline = deadline
        self.attempts = 0
        self.upstream_seconds = 0.0
        self.failures: tuple[AttemptFailure, ...] = ()
        self._engine = engine
        self._plan = plan
        self._streamed = streamed
        self._context: Context | None = None
        self._span: Span | None = None
        self._opened: ResponseStream | None = None
        self._failed: dict[Target, TargetFailure] | None = None
        repeat = plan.retries.repeat_maybe_accepted
        self._repeat_maybe_accepted = repeat == "always" or (
            repeat == "non_streaming" and not streamed
        )
        if engine.telemetry.recording(now):
            self._span = engine.telemetry.start_request(request, request_id, context)
            self._context = trace.set_span_in_context(self._span, context)

    async def respond(self) -> Response:
        """Get the whole answer.

        Raises:
            GatewayError: If nobody could serve the request in time.
        """
        try:
            result = await self._first_success()
        except BaseException as error:
            self._settle_failure(error)
            raise
        assert isinstance(result, Response)
        result.attempts = self.attempts
        result.request_id = self.request_id
        result.upstream_seconds = self.upstream_seconds
        self._settle(Outcome.COMPLETED, result.provider, response=result)
        return result

    async def open_stream(self) -> ResponseStream:
        """Get a stream that has given its first useful event; it settles when it ends.

        Raises:
            GatewayError: If nobody could serve the request in time.
        """
        try:
            stream = await self._first_success()
        except BaseException as error:
            self._settle_failure(error)
            raise
        assert isinstance(stream, ResponseStream)
        stream.attempts = self.attempts
        stream.request_id = self.request_id
        stream.upstream_seconds = self.upstream_seconds

        def settle(outcome: Outcome, error: BaseException | None) -> None:
            self._settle(outcome, stream.provider, error=error, stream=stream)

        stream.settle_with(settle)
        self._opened = stream
        return stream

    def cut(self, message: str) -> None:
        """End the stream that the caller holds open, if there is one."""
        if self._opened is not None:
            self._opened.cut(message)

    # ── attempts ─────────────────────────────────────────────────────────────────

    async def _first_success(self) -> Response | ResponseStream:
        while True:
            target, prior = self._next_target()
            envelope = self._envelope(target, prior)
            try:
                target.actor.offer(envelope)
            except (MailboxFullError, RouterClosedError) as error:
                # It was eligible a moment ago, in this very turn: only a bug gets here,
                # and the request must not loop over it.
                raise error from None
            try:
                await envelope.replied.wait()
            except BaseException:
                envelope.abandon()
                if isinstance(envelope.result, ResponseStream):
                    # It came in the very turn in which the caller left.
                    envelope.result.release()
                self._take_stock(envelope)
                raise
            calls = envelope.number - self.attempts
            self._take_stock(envelope)
            if envelope.result is not None:
                if isinstance(envelope.result, Response):
                    envelope.result.provider = target.actor.name
                return envelope.result
            self._judge(target, envelope.error, prior, calls)

    def _next_target(self) -> tuple[Target, TargetFailure | None]:
        """Who is asked next, and the failure there that makes it a repeat.

        Raises:
            GatewayError: If there is nobody (left).
        """
        operation, failed = self.request.operation, self._failed
        if failed is None:
            target = self._engine.dispatcher.choose(self._plan, operation)
            if target is not None:
                return target, None
            raise self._engine.dispatcher.refusal(self._plan, operation, self.request.model)
        target = self._engine.dispatcher.choose(self._plan, operation, excluded=failed)
        if target is not None:
            return target, None
        # Everybody has failed once: those that may be asked again, after a backoff.
        again = [target for target, failure in failed.items() if self._may_repeat(target, failure)]
        if again:
            target = self._engine.dispatcher.choose(self._plan, operation, only=again)
            if target is None:
                # They have asked for a pause: the repeat waits for the one that ends first.
                paused = (
                    t for t in again if not t.actor.unavailable(operation, despite_pause=True)
                )
                target = min(paused, key=lambda t: t.actor.available_in(), default=None)
            if target is not None:
                return target, failed[target]
        raise list(failed.values())[-1].error

    def _may_repeat(self, target: Target, failure: TargetFailure) -> bool:
        return failure.calls <= target.actor.config.max_retries and may_repeat_here(
            failure.error, repeat_maybe_accepted=self._repeat_maybe_accepted
        )

    def _envelope(self, target: Target, prior: TargetFailure | None) -> Envelope:
        config = target.actor.config
        left = self._plan.retries.max_attempts - self.attempts
        if prior is not None:
            repeats = min(config.max_retries + 1 - prior.calls, left)
        elif self._plan.targets - len(self._failed or ()) > 1:
            # Somebody else can serve: going there beats waiting here.
            repeats = 0
        else:
            repeats = min(config.max_retries, left - 1)
        return Envelope(
            self.request,
            target.model or self.request.model,
            self.request_id,
            config=config,
            wheel=self._engine.wheel,
            deadline=self.deadline,
            now=self._engine.clock(),
            number=self.attempts,
            streamed=self._streamed,
            repeats=repeats,
            repeat_maybe_accepted=self._repeat_maybe_accepted,
            prior_failure=None if prior is None else prior.error,
            context=self._context,
            event=self._engine.event,
        )

    def _take_stock(self, envelope: Envelope) -> None:
        self.upstream_seconds += envelope.upstream_seconds
        if envelope.failures:
            self.failures += tuple(envelope.failures)
        self.attempts = envelope.number

    def _judge(
        self,
        target: Target,
        error: BaseException | None,
        prior: TargetFailure | None,
        calls: int,
    ) -> None:
        """Note a failure that allows another try, or raise it."""
        assert error is not None
        out_of_attempts = self.attempts >= self._plan.retries.max_attempts
        if (
            out_of_attempts
            or self._engine.clock() >= self.deadline
            or not isinstance(error, ProviderError)
            or not may_go_elsewhere(error, repeat_maybe_accepted=self._repeat_maybe_accepted)
        ):
            raise error
        if self._failed is None:
            self._failed = {}
        if prior is not None:
            # A repeat that made no call found its pause too long for the deadline, and so
            # would the next one.
            calls = prior.calls + calls if calls else target.actor.config.max_retries + 1
        # The latest failure stands last: it is the one that is raised if nobody can serve.
        self._failed.pop(target, None)
        self._failed[target] = TargetFailure(error, calls)

    # ── the end ──────────────────────────────────────────────────────────────────

    def _settle_failure(self, error: BaseException) -> None:
        if not isinstance(error, Exception):
            # Cancelled by the caller, or something like a keyboard interrupt.
            outcome = Outcome.CANCELLED
        elif isinstance(error, (RejectedError, InvalidRequestError)) and not self.attempts:
            outcome = Outcome.REJECTED
        elif isinstance(error, StreamTruncatedError):
            outcome = Outcome.TRUNCATED
        else:
            outcome = Outcome.FAILED
        if isinstance(error, GatewayError):
            error.attempts = self.attempts
        provider = error.provider if isinstance(error, ProviderError) else None
        self._settle(outcome, provider, error=error)

    def _settle(
        self,
        outcome: Outcome,
        provider: str | None,
        *,
        error: BaseException | None = None,
        response: Response | None = None,
        stream: ResponseStream | None = None,
    ) -> None:
        self._engine.ledger.settle(self, outcome)
        if self._span is not None:
            usage = response.usage if response is not None else stream.usage if stream else None
            self._engine.telemetry.end_request(
                self._span,
                outcome=outcome.value,
                attempts=self.attempts,
                provider=provider,
                error=error,
                response=response,
                usage=usage,
            )
