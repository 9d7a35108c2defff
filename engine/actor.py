"""`ProviderActor`: owns one provider, its mailbox, its workers and its health.

Nobody else changes an actor's state. Others ask whether it can take a request, offer an
envelope, which never waits, and read a snapshot.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from engine.attempt_runner import AttemptRunner
from engine.config import RetryBudgetConfig
from engine.envelope import Envelope
from engine.errors import GatewayError, MailboxFullError, ProviderError, Replay, RouterClosedError
from engine.health_checks import HealthChecks
from engine.mailbox import Mailbox
from engine.operations import Operation, Usage
from engine.priority import Priority
from engine.repeat_permits import RepeatPermits
from engine.resilience.capacity import Capacity
from engine.resilience.health import SOFT, HealthReason, ProviderHealth
from engine.resilience.limits import UNLIMITED, RateLimits
from engine.resilience.retry_budget import RetryBudget
from engine.status import ActorState, ActorStatus
from engine.turning_away import turn_away
from engine.worker_pool import WorkerPool, cancelled_from_outside

if TYPE_CHECKING:
    from engine.config import ProviderConfig
    from engine.provider import BaseProvider
    from engine.resilience.deadline import DeadlineWheel
    from engine.telemetry import Telemetry

NOTHING_USED = Usage()
NOTHING_FORGIVEN: frozenset[str] = frozenset()

LEAST_USEFUL = 0.2
"""An attempt is not begun with less time left than this part of what the provider usually
takes to answer (reliability notes on deadlines: a fifth of the median)."""


class ProviderActor:
    """Serves the requests of one provider.

    Attributes:
        provider: The adapter.
        config: Its configuration.
        mailbox: Its queue.
        health: What its attempts came to.
        state: What it is doing.
        restarts: How often the supervisor restarted it.
        picked: How often the dispatcher chose it.
    """

    def __init__(
        self,
        provider: BaseProvider,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        wheel: DeadlineWheel,
        telemetry: Telemetry,
        event: Callable[[], anyio.Event] = anyio.Event,
        rate_limits: RateLimits | None = None,
        retry_budget: RetryBudgetConfig | None = None,
        permits: RepeatPermits | None = None,
    ) -> None:
        self.provider = provider
        self.config: ProviderConfig = provider.config
        self.mailbox: Mailbox[Envelope] = Mailbox(provider.name, provider.config.limits.queue)
        self.state = ActorState.STARTING
        self.restarts = 0
        self.health = ProviderHealth(self.config.ejection, rng, name=provider.name)
        self._checks = HealthChecks(provider, self.health, clock=clock, rng=rng)
        self.budget = RetryBudget(retry_budget or RetryBudgetConfig(), clock)
        self._permits = permits
        self._rates = rate_limits or UNLIMITED
        self._unproven_from = self.config.ejection.unproven_concurrency
        self._capacity = Capacity(provider.config.limits, clock)
        self._runner = AttemptRunner(
            provider,
            self.health,
            adaptive=self._capacity.adaptive,
            in_flight=lambda: self._pool.busy,
            permit=self.take_repeat,
            clock=clock,
            rng=rng,
            wheel=wheel,
            telemetry=telemetry,
            rates=self._rates,
            event=event,
        )
        self._clock = clock
        self._wheel = wheel
        self._pool = WorkerPool(self, event=event)
        self.picked = 0

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.config.name

    @property
    def in_flight(self) -> int:
        """Attempts that run, streams included."""
        return self._pool.busy

    @property
    def concurrency(self) -> int:
        """Attempts that may run at the same time now."""
        return self._capacity.limit

    @property
    def queued(self) -> int:
        """Requests that wait in the mailbox."""
        return len(self.mailbox)

    def take_repeat(self, envelope: Envelope, failure: GatewayError | None) -> bool:
        """Whether the retry budgets, this provider's and the router's, allow one more try.

        What they give is the envelope's, and is given back when its work here ends.
        """
        if self._permits is None:
            return True
        # One repeat after the other is one repeat at a time.
        envelope.give_back_slots()
        slots = self._permits.take(self.budget, self.in_flight + self.queued, failure)
        if slots is None:
            if failure is not None:
                failure.retry_denied = "budget"
            return False
        envelope.repeat_slots = slots
        return True

    # ── what others may ask ──────────────────────────────────────────────────────

    def unavailable(
        self,
        operation: Operation,
        priority: Priority = Priority.CRITICAL,
        remaining: float = math.inf,
        *,
        forgiven: frozenset[str] = NOTHING_FORGIVEN,
        despite_pause: bool = False,
    ) -> str | None:
        """Why this actor cannot take a request of that kind now, or None if it can.

        Args:
            operation: What is asked.
            priority: How much it matters: the mailbox keeps room for what matters most.
            remaining: Seconds until the request's deadline.
            forgiven: Reasons of its health that do not count, while little is in flight.
            despite_pause: Whether the caller will wait out a pause that the provider asked for.
        """
        if self.state is not ActorState.SERVING:
            return self.state.value
        if operation not in self.provider.operations:
            return "unsupported_operation"
        in_flight, health = self._pool.busy, self.health
        if health.suspect or in_flight >= self._unproven_from:
            reason = health.unavailable(self._clock(), in_flight)
            if reason is not None and not self._forgiven(reason, forgiven, despite_pause):
                return reason
        return self._no_room(in_flight, priority, remaining)

    def _no_room(self, in_flight: int, priority: Priority, remaining: float) -> str | None:
        """Why there is no room for one more request, or no time to answer it."""
        if in_flight >= self._capacity.limit:
            if not self.mailbox.has_room_for(priority):
                return "mailbox_full"
            if self.expected_wait() + self._capacity.service_seconds > remaining:
                return "queue_too_long"
        if self._rates is not UNLIMITED and self._rates.wait_time() > 0:
            return "rate_limited"
        mean = self.health.signs.mean_seconds
        if mean is not None and mean * LEAST_USEFUL > remaining:
            return "deadline_too_short"
        return None

    def _forgiven(self, reason: str, forgiven: frozenset[str], despite_pause: bool) -> bool:
        if despite_pause and reason == HealthReason.OVERLOADED:
            return True
        if reason not in forgiven:
            return False
        # Whoever is unproven serves when nobody else can; whoever is ejected gets no more
        # than a few requests at a time even then.
        return reason in SOFT or self.in_flight < self.config.ejection.unproven_concurrency

    def expected_wait(self) -> float:
        """Seconds that one more request would wait in the mailbox, by what others took."""
        return self._capacity.expected_wait(len(self.mailbox) + 1)

    def available_in(self, remaining: float = math.inf) -> float:
        """Seconds until it makes sense to ask again; a guess where nothing is known.

        Args:
            remaining: Seconds that the same request would have again until its deadline.
        """
        closed = self.health.available_in(self._clock())
        if closed > 0:
            return closed
        if (limited := self._rates.wait_time()) > 0:
            return limited
        if (service := self._capacity.service_seconds) > 0:
            # Room comes whenever one of those in hand is done; time, when enough of them are.
            step, wait = self._capacity.expected_wait(1), self.expected_wait()
            late = max(0.0, min(wait, wait + service - remaining))
            return step * max(1, math.ceil(late / step))
        return 1.0

    @property
    def share(self) -> float:
        """The part of its weight that counts now: less than 1 in slow start."""
        return self.health.share(self._clock()) if self.health.suspect else 1.0

    def eject(self, seconds: float | None = None) -> None:
        """Take the provider out of rotation by hand, for some seconds or until `restore`."""
        self.health.eject(self._clock(), seconds)
        self._turn_away()

    def restore(self) -> None:
        """Put the provider back into rotation, whatever took it out."""
        self.health.restore(self._clock())

    def offer(self, envelope: Envelope) -> None:
        """Give the actor a request; never waits.

        Raises:
            MailboxFullError: If there is no room.
            RouterClosedError: If the actor is not serving.
        """
        if not self._pool.is_open:
            envelope.give_back_slots()
            msg = f"the actor of provider {self.name!r} is {self.state.value}"
            raise RouterClosedError(msg)
        if self._pool.busy < self._capacity.limit:
            self._pool.hand_over(envelope)
        else:
            try:
                self.mailbox.offer(envelope)
            except MailboxFullError:
                envelope.give_back_slots()
                raise
            envelope.handler = self
        envelope.probe = self.health.suspect and self.health.begin(self._clock())
        self._wheel.add(envelope, envelope.until)
        if self._rates is not UNLIMITED:
            envelope.reserved_tokens = self._rates.take(envelope.request)
        self.picked += 1

    def interrupt(self, envelope: Envelope) -> None:
        """Take an envelope that waits out of the mailbox."""
        # It may have been dropped already, as expired: what it holds is given back here.
        self.mailbox.withdraw(envelope)
        self._give_back(envelope, NOTHING_USED)

    def status(self, now: float, all_picks: int) -> ActorStatus:
        """A snapshot."""
        health = self.health.status(now)
        serving = self.state is ActorState.SERVING
        return ActorStatus(
            name=self.name,
            type=self.config.type,
            state=self.state,
            mailbox=self.mailbox.status(now),
            in_flight=self.in_flight,
            concurrency=self.concurrency,
            workers=self._pool.workers,
            health=health,
            ejected_until=health.seconds_left,
            reason=health.reason if serving else self.state.value,
            weight=self.config.weight,
            share=self.picked / all_picks if all_picks else 0.0,
            picked=self.picked,
            completed=self.health.completed,
            failed={kind.value: count for kind, count in self.health.failed.items()},
            restarts=self.restarts,
            retries_denied=self.budget.denied,
        )

    # ── life ─────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Serve until cancelled. Starts from nothing each time it is called.

        Raises:
            BaseException: Whatever escaped a worker; a bug, not a provider's failure.
        """
        try:
            async with anyio.create_task_group() as group:
                self._pool.open(group)
                self._checks.start(group)
                self.state = ActorState.SERVING
                await anyio.sleep_forever()
        finally:
            self._pool.close()

    def stop(self, state: ActorState) -> None:
        """Say why the actor no longer serves, then answer all who wait in the mailbox.

        In this order: a request must be either refused or answered.
        """
        self.state = state
        self._pool.close()
        for envelope in self.mailbox.clear():
            self.worker_lost(envelope)

    def _gone(self, envelope: Envelope) -> GatewayError:
        if self.state is ActorState.STOPPED or (
            self.state is ActorState.SERVING and cancelled_from_outside()
        ):
            return RouterClosedError("the router was closed while the request was under way")
        return envelope.crashed(retired=self.state is ActorState.RETIRED)

    # ── what its workers ask ─────────────────────────────────────────────────────

    def next_envelope(self) -> Envelope | None:
        """The next envelope for a worker without one, or None."""
        # The worker that asks is one of the busy ones. A limit that has shrunk below them
        # is obeyed by handing out nothing until enough of them are done.
        if not self.mailbox or self._pool.busy > self.concurrency:
            return None
        return self.mailbox.take(self._clock())

    async def serve(self, envelope: Envelope) -> None:
        """Serve an envelope to its end, whatever happens to it."""
        if not envelope.open:
            self._give_back(envelope, NOTHING_USED)
            return
        usage: Usage | None = None
        started = self._clock()
        try:
            result = await self._runner.run(envelope)
            if envelope.reserved_tokens:
                # Read out of the answer, which costs more than all of this: only for who asks.
                usage = result.usage
        except GatewayError as error:
            if isinstance(error, ProviderError) and error.replay is Replay.NOT_ACCEPTED:
                usage = NOTHING_USED
            envelope.fail(error)
        except anyio.get_cancelled_exc_class():
            # The limit that passed, the caller who left, or the actor that stops.
            envelope.fail(envelope.expiry or self._gone(envelope))
            raise
        except BaseException:
            envelope.fail(envelope.crashed())
            raise
        finally:
            self._give_back(envelope, usage)
            if self.mailbox:
                self._turn_away()
            self._note_service(self._clock() - started)

    def worker_crashed(self) -> None:
        """A worker is ending with an exception that is nobody's cancellation."""
        if self.state is ActorState.SERVING:
            # At once, and not when the supervisor hears of it: whoever is answered now
            # must not be sent back into a group of tasks that is ending.
            self.stop(ActorState.RESTARTING)

    def worker_lost(self, envelope: Envelope) -> None:
        """A worker has ended with this envelope in its hands, or none will take it."""
        self._give_back(envelope, NOTHING_USED)
        envelope.fail(self._gone(envelope))

    def _give_back(self, envelope: Envelope, usage: Usage | None) -> None:
        """Return what an envelope holds of the actor's: tokens, the probe, its repeats."""
        if envelope.reserved_tokens:
            self._rates.settle(envelope.reserved_tokens, usage)
            envelope.reserved_tokens = 0
        if envelope.probe:
            envelope.probe = False
            self.health.note_nothing(self._clock(), probe=True)
        envelope.give_back_slots()

    def _turn_away(self) -> None:
        """Answer those who wait at a provider that is closed, so that others serve them."""
        for envelope, error in turn_away(self.mailbox, self.health, self._clock()):
            self._give_back(envelope, NOTHING_USED)
            envelope.fail(error)

    def _note_service(self, seconds: float) -> None:
        self._capacity.note_service(seconds)
        # A limit that has grown leaves room that no worker asks for by itself.
        if self._capacity.adaptive is not None and self._pool.is_open:
            while self.mailbox and self._pool.busy < self.concurrency:
                envelope = self.mailbox.take(self._clock())
                if envelope is None:
                    return
                self._pool.hand_over(envelope)
