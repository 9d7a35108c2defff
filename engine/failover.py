"""`Failover`: what a request does once its first attempt has failed, or found nobody.

In this order, always within the deadline, `max_attempts` and the retry budgets: another
target of the same tier, a lower tier, the same provider again after a backoff where all
have failed, and another model that is named as a fallback for this cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.dispatcher import Choice
from engine.errors import GatewayError, ProviderError
from engine.resilience.retry import fallback_cause, may_go_elsewhere, may_repeat_here

if TYPE_CHECKING:
    from engine.envelope import Envelope
    from engine.operations import Response
    from engine.plan import Plan, Target
    from engine.request_attempts import RequestAttempts
    from engine.streaming import ResponseStream


@dataclass(frozen=True, slots=True)
class TargetFailure:
    """What a request has met at one target so far.

    Attributes:
        error: The latest failure there.
        calls: Upstream calls made there.
    """

    error: ProviderError
    calls: int


@dataclass(frozen=True, slots=True)
class Next:
    """Who is asked next.

    Attributes:
        choice: The target, and how it was chosen.
        prior: What it has failed with before; None if it was not asked yet.
        resort: The word for it in the request's record.
    """

    choice: Choice
    prior: TargetFailure | None
    resort: str


class Failover:
    """Takes a request over from its first failure to its outcome.

    Args:
        run: The request.
        plan: The plan under which it failed.
    """

    __slots__ = ("_asked_models", "_failed", "_last", "_most_attempts", "_others", "_plan", "_run")

    def __init__(self, run: RequestAttempts, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._failed: dict[Target, TargetFailure] = {}
        self._others: list[str] = []
        self._asked_models = {plan.model}
        self._last: GatewayError | None = None
        # The first model's: it bounds the request in all, whoever answers in the end.
        self._most_attempts = plan.retries.max_attempts

    async def instead_of(self, refusal: GatewayError) -> Response | ResponseStream:
        """Find another model for a request that none of its own providers can take.

        Raises:
            GatewayError: The refusal, if there is none, or what became of the others.
        """
        self._last = refusal
        self._fall_back(refusal)
        return await self._until_success()

    async def after(self, failed: Sequence[tuple[Target, Envelope]]) -> Response | ResponseStream:
        """Go on after the first envelope failed, or all of those that ran side by side.

        Args:
            failed: Who was asked with which envelope, in the order in which they failed.

        Raises:
            GatewayError: The last failure, if nothing helps, or an earlier one after which
                nothing may be tried any more.
        """
        *earlier, (target, envelope) = failed
        for other, ended in earlier:
            error = ended.error
            if not may_go_elsewhere(error, repeat_maybe_accepted=self._run.repeat_maybe_accepted):
                raise error or AssertionError
            assert isinstance(error, ProviderError)
            self._failed[other] = TargetFailure(error, len(ended.failures or ()))
        self._note(target, envelope, None)
        return await self._until_success()

    def _note(self, target: Target, envelope: Envelope, prior: TargetFailure | None) -> None:
        """Note a failure after which another try makes sense, or raise it."""
        run, error = self._run, envelope.error
        assert error is not None
        if isinstance(error, GatewayError):
            self._last = error
        if (
            not isinstance(error, ProviderError)
            or run.attempts >= self._most_attempts
            or run.engine.clock() >= run.deadline
            or error.retry_denied is not None
        ):
            raise error
        if not may_go_elsewhere(error, repeat_maybe_accepted=run.repeat_maybe_accepted):
            self._fall_back(error)
            return
        calls = len(envelope.failures or ())
        if prior is not None:
            # A repeat that made no call found its pause too long for the deadline, and so
            # would the next one.
            calls = prior.calls + calls if calls else target.actor.config.max_retries + 1
        # The latest failure stands last: it is the one that is raised if nobody can serve.
        self._failed.pop(target, None)
        self._failed[target] = TargetFailure(error, calls)

    async def _until_success(self) -> Response | ResponseStream:
        run = self._run
        while True:
            after = self._next()
            target, prior = after.choice.target, after.prior
            now = run.engine.clock()
            envelope = run.envelope(
                self._plan,
                target,
                now,
                repeats=self._repeats(target, prior),
                prior=None if prior is None else prior.error,
            )
            self._pay(target, envelope)
            run.note_pick(self._plan, after.choice, after.resort, now)
            await run.ask(target, envelope)
            if envelope.result is not None:
                return envelope.result
            self._note(target, envelope, prior)

    def _pay(self, target: Target, envelope: Envelope) -> None:
        """Take what one more attempt costs from the retry budgets.

        Raises:
            GatewayError: The last failure, marked as final for want of budget.
        """
        if not self._run.attempts:
            # Nothing was sent yet: the first call is no repeat, whichever model it goes to.
            return
        if not target.actor.take_repeat(envelope, self._last):
            assert self._last is not None
            raise self._last

    # ── who is next ──────────────────────────────────────────────────────────────

    def _next(self) -> Next:
        """Who is asked next.

        Raises:
            GatewayError: If there is nobody (left); the last failure.
        """
        while True:
            run, plan, failed = self._run, self._plan, self._failed
            choice = run.engine.dispatcher.choose(
                plan, run.asked(run.engine.clock(), excluded=failed)
            )
            if choice is not None:
                return Next(choice, None, choice.resort)
            again = self._again()
            if again is not None:
                return Next(again, failed[again.target], "repeat")
            assert self._last is not None
            # If the other model cannot take it either, the caller learns why it was needed.
            self._fall_back(self._last)

    def _again(self) -> Choice | None:
        """One of those that have failed already, if one may be asked again."""
        run, plan = self._run, self._plan
        again = [
            target for target, failure in self._failed.items() if self._may_repeat(target, failure)
        ]
        if not again:
            return None
        choice = run.engine.dispatcher.choose(plan, run.asked(run.engine.clock(), only=again))
        if choice is not None:
            return choice
        # They have asked for a pause: the repeat waits for the one that ends first.
        asked = run.asked(run.engine.clock())
        paused = [
            target
            for target in again
            if not target.actor.unavailable(
                asked.operation, asked.priority, asked.remaining, despite_pause=True
            )
        ]
        if not paused:
            return None
        waits = {target.label: target.actor.available_in() for target in paused}
        target = min(paused, key=lambda target: waits[target.label])
        return Choice(target, plan.tiers[target.stage], "repeat", {}, {"available_in": waits})

    def _may_repeat(self, target: Target, failure: TargetFailure) -> bool:
        return failure.calls <= target.actor.config.max_retries and may_repeat_here(
            failure.error, repeat_maybe_accepted=self._run.repeat_maybe_accepted
        )

    def _repeats(self, target: Target, prior: TargetFailure | None) -> int:
        """How many repeats the target may make of its own accord."""
        config = target.actor.config
        left = self._most_attempts - self._run.attempts
        if prior is not None:
            return min(config.max_retries + 1 - prior.calls, left)
        if self._plan.targets - len(self._failed) > 1:
            # Somebody else can serve: going there beats waiting here.
            return 0
        return min(config.max_retries, left - 1)

    # ── other models ─────────────────────────────────────────────────────────────

    def _fall_back(self, error: GatewayError) -> None:
        """Go on with another model that is named for this cause.

        Raises:
            GatewayError: `error`, if there is none (left).
        """
        run = self._run
        cause = fallback_cause(error, repeat_maybe_accepted=run.repeat_maybe_accepted)
        if cause is not None:
            named = getattr(self._plan.fallbacks, cause)
            self._others[:0] = [name for name in named if name not in self._others]
        while cause is not None and self._others:
            name = self._others.pop(0)
            plan = run.generation.plan_for(name)
            if plan is None or name in self._asked_models:
                continue
            self._asked_models.add(name)
            run.fallbacks += (name,)
            self._plan = plan
            self._failed = {}
            return
        raise error
