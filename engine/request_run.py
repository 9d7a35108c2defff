"""`RequestRun`: one request from acceptance to its outcome."""

from __future__ import annotations

from engine.errors import (
    GatewayError,
    InvalidRequestError,
    ProviderError,
    RejectedError,
    Replay,
    StreamTruncatedError,
)
from engine.failover import Failover
from engine.hedging import Hedging
from engine.ledger import AttemptAccount, Outcome
from engine.operations import Response, Usage
from engine.request_attempts import RequestAttempts
from engine.streaming import ResponseStream


class RequestRun(RequestAttempts):
    """Finds a provider for a request and settles the outcome once.

    The way of a request that succeeds at once is here; what only failures need is in
    `Failover`, and a race of two providers in `Hedging`.
    """

    __slots__ = ()

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
        result.fallbacks = self.fallbacks
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
        stream.fallbacks = self.fallbacks

        def settle(outcome: Outcome, error: BaseException | None) -> None:
            self._settle(outcome, stream.provider, error=error, stream=stream)

        stream.settle_with(settle)
        self.opened = stream
        return stream

    @property
    def committed(self) -> bool:
        """Whether the caller holds a stream, so that nobody else may be asked."""
        return self.opened is not None

    def cut(self, message: str) -> None:
        """End the stream that the caller holds open, if there is one."""
        if self.opened is not None:
            self.opened.cut(message)

    # ── attempts ─────────────────────────────────────────────────────────────────

    async def _first_success(self) -> Response | ResponseStream:
        # Accepted in this very turn: it is still the instant at which it began.
        plan, now = self.plan, self.began
        asked = self.asked(now)
        choice = self.engine.dispatcher.choose(plan, asked)
        if choice is None:
            refusal = self.engine.dispatcher.refusal(plan, asked, self.request.model)
            return await Failover(self, plan).instead_of(refusal)
        if plan.hedging is not None:
            return await Hedging(self, plan).race(choice)
        target = choice.target
        self.note_pick(plan, choice, choice.resort, now)
        # Where somebody else can serve, going there beats waiting here.
        repeats = 0 if plan.targets > 1 else target.actor.config.max_retries
        envelope = self.envelope(
            plan, target, now, repeats=min(repeats, plan.retries.max_attempts - 1)
        )
        await self.ask(target, envelope)
        if envelope.result is not None:
            if self.attempts == 1:
                self.engine.permits.first_success(target.actor.budget)
            return envelope.result
        return await Failover(self, plan).after([(target, envelope)])

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
            error.fallbacks = self.fallbacks
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
        usage: Usage | None = None
        if response is not None:
            usage = response.usage
        elif stream is not None:
            usage = stream.usage
        self.engine.ledger.settle(self, outcome, attempts=self.account(usage))
        if self.record is not None:
            self.record.end(
                self,
                outcome,
                at=self.engine.clock(),
                provider=provider,
                error=error,
                usage=usage,
            )
        if self.span is not None:
            self.engine.telemetry.end_request(
                self.span,
                self.request,
                self.request_id,
                outcome=outcome.value,
                attempts=self.attempts,
                fallbacks=self.fallbacks,
                provider=provider,
                error=error,
                response=response,
                usage=usage,
            )

    def account(self, usage: Usage | None) -> AttemptAccount:
        """What this request's attempts come to, for the ledger."""
        wasted = self.cut_off
        for failure in self.failures:
            wasted += failure.replay is not Replay.NOT_ACCEPTED
        return AttemptAccount(self.attempts, wasted, usage)
