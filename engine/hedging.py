"""`Hedging`: a second provider is asked when the first one is slow, and the first answer wins.

After Dean and Barroso, "The Tail at Scale" (2013). Each hedge may be a second bill, so it
is off unless a model asks for it, and every guard must agree: nothing was answered yet, the
wait was longer than 95 % of the first provider's answers take, the request keeps nothing at
the provider, `max_attempts` allows a second call, somebody else has room to spare, the retry
budget is more than half full, the gateway is not busy, and the share of hedged requests is
below its bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import ProviderError
from engine.failover import Failover
from engine.resilience.retry import RETRY_RULES

if TYPE_CHECKING:
    import anyio

    from engine.dispatcher import Choice
    from engine.envelope import Envelope
    from engine.operations import Response
    from engine.plan import Plan, Target
    from engine.request_attempts import RequestAttempts
    from engine.streaming import ResponseStream

SPARE = 0.3
"""Part of its concurrency that a provider must have free to be asked as the second one."""

BUSY = 0.7
"""Part of all concurrency in use above which nothing is hedged: hedging finishes off a
brown-out."""

BUDGET = 0.5
"""How full the retry budget must be (gRPC throttles hedges and retries by one bucket)."""


class Alarm:
    """Wakes somebody at an instant, unless it was taken off the wheel before."""

    __slots__ = ("_wake", "tick")

    def __init__(self, wake: Callable[[], None]) -> None:
        self.tick: int | None = None
        self._wake = wake

    def on_due(self, now: float) -> None:  # noqa: ARG002
        """The instant has passed."""
        self._wake()


class Hedging:
    """Runs the first attempt of one request, and a second one beside it if it is slow.

    Args:
        run: The request.
        plan: Its plan, which asks for hedging.
    """

    __slots__ = ("_plan", "_run", "_running")

    def __init__(self, run: RequestAttempts, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._running: list[tuple[Target, Envelope, int]] = []

    async def race(self, choice: Choice) -> Response | ResponseStream:
        """Ask the chosen target, and another one if it takes long; the first answer counts.

        Raises:
            GatewayError: If both have failed and nobody else could serve.
        """
        run = self._run
        assert self._plan.hedges is not None
        self._plan.hedges.request()
        delay = self._delay(choice.target)
        changed = run.engine.event()
        alarm = Alarm(changed.set)
        if delay is not None and run.engine.clock() + delay < run.deadline:
            run.engine.wheel.add(alarm, run.engine.clock() + delay)
        try:
            self._start(choice, choice.resort, changed)
            await changed.wait()
            if all(envelope.open for _, envelope, _ in self._running):
                second = self._second(choice.target)
                changed = run.engine.event()
                self._listen(changed)
                if second is not None:
                    self._start(second, "hedge", changed)
                await changed.wait()
            return await self._finish()
        finally:
            run.engine.wheel.discard(alarm)
            self._abandon_rest()

    def _start(self, choice: Choice, resort: str, changed: anyio.Event) -> None:
        run, target = self._run, choice.target
        ahead = sum(max(1, e.number - before) for _, e, before in self._running)
        now = run.engine.clock()
        envelope = run.envelope(self._plan, target, now, repeats=0, ahead=ahead)
        envelope.replied = changed
        if self._running and not target.actor.take_repeat(envelope, None):
            return
        run.note_pick(self._plan, choice, resort, now)
        target.actor.offer(envelope)
        self._running.append((target, envelope, envelope.number))

    def _listen(self, changed: anyio.Event) -> None:
        for _, envelope, _ in self._running:
            envelope.replied = changed

    async def _finish(self) -> Response | ResponseStream:
        """Take the first answer; wait for the other one where one has failed.

        Raises:
            GatewayError: If no answer came of either, nor of those that could be asked then.
        """
        run = self._run
        failed: list[tuple[Target, Envelope]] = []
        while True:
            done = [item for item in self._running if not item[1].open]
            # Of two that ended in the same turn, the one with an answer counts.
            for item in sorted(done, key=lambda item: item[1].result is None):
                if item not in self._running:
                    continue
                target, envelope, before = item
                self._running.remove(item)
                if envelope.result is not None:
                    envelope.result.provider = target.actor.name
                    run.take_stock(envelope, before, "answered")
                    if not failed and not self._running:
                        run.engine.permits.first_success(target.actor.budget)
                    return envelope.result
                run.take_stock(envelope, before, "failed")
                failed.append((target, envelope))
                if not _others_may_answer(envelope.error):
                    self._abandon_rest()
            if not self._running:
                return await Failover(run, self._plan).after(failed)
            changed = run.engine.event()
            self._listen(changed)
            await changed.wait()

    def _abandon_rest(self) -> None:
        for _, envelope, before in self._running:
            self._run.give_up(envelope)
            self._run.take_stock(envelope, before, "abandoned")
        self._running.clear()

    # ── guards ───────────────────────────────────────────────────────────────────

    def _delay(self, target: Target) -> float | None:
        """Seconds to wait for the first one; None where nothing may be hedged."""
        assert self._plan.hedging is not None
        if self._run.request.body.get("store") is True:
            # It leaves something behind at the provider: asking twice would leave it twice.
            return None
        if self._plan.retries.max_attempts < 2:  # noqa: PLR2004 - the first one, and the hedge
            return None
        usual, delay = target.actor.health.quantile(0.95), self._plan.hedging.delay
        return delay if usual is None else max(usual, delay or 0.0)

    def _second(self, first: Target) -> Choice | None:
        """Another target for a hedge, if every guard agrees."""
        run, plan = self._run, self._plan
        assert plan.hedges is not None
        targets = [target for tier in plan.tiers for target in tier.balancer.targets]
        actors = {target.actor for target in targets}
        in_use = sum(actor.in_flight for actor in actors) / sum(a.concurrency for a in actors)
        shared = run.engine.permits.shared
        if in_use > BUSY or shared.level < BUDGET * shared.capacity:
            return None
        here = [target for target in targets if target.actor is first.actor]
        choice = run.engine.dispatcher.choose(plan, run.asked(run.engine.clock(), excluded=here))
        if choice is None or choice.resort != "healthy":
            return None
        actor = choice.target.actor
        if actor.in_flight > (1 - SPARE) * actor.concurrency or not plan.hedges.try_take():
            return None
        return choice


def _others_may_answer(error: BaseException | None) -> bool:
    """Whether an answer of somebody who was asked already is worth waiting for."""
    return isinstance(error, ProviderError) and RETRY_RULES[error.error_class].another_provider
