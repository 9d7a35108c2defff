"""`ProviderActor`: owns one provider, its mailbox and its workers.

Nobody else changes an actor's state. Others offer an envelope, which never waits, and
read a snapshot. Workers are tasks of the actor; each serves one attempt at a time. They
are made when needed, up to the provider's concurrency, and a few stay for the next.
"""

from __future__ import annotations

import contextvars
import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from engine.attempt_runner import AttemptRunner
from engine.envelope import Envelope
from engine.errors import (
    GatewayError,
    ProviderError,
    Replay,
    RouterClosedError,
)
from engine.mailbox import Mailbox
from engine.operations import Operation, Usage
from engine.resilience.health import ProviderHealth
from engine.resilience.limits import RateLimits, Unlimited
from engine.status import ActorState, ActorStatus

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from engine.config import ProviderConfig
    from engine.provider import BaseProvider
    from engine.resilience.deadline import DeadlineWheel
    from engine.telemetry import Telemetry

IDLE_WORKERS = 64
"""Workers that stay without work, as many as the default concurrency: hiring one costs
10 µs. A parked task costs about 3 KiB, so an actor keeps at most 192 KiB of them, and
only after that much load."""


NOTHING_USED = Usage()


def _cancelled_from_outside() -> bool:
    """Whether a scope around this task is cancelled; False when an adapter made it up."""
    return anyio.current_effective_deadline() == -math.inf


class Worker:
    """One task of an actor, and what it has in hand."""

    __slots__ = ("envelope", "scope", "wakeup")

    def __init__(self, envelope: Envelope | None) -> None:
        self.envelope = envelope
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.wakeup: anyio.Event | None = None

    def interrupt(self, envelope: Envelope) -> None:
        """Stop working on the envelope, if that is what the worker has in hand."""
        if self.envelope is envelope and self.wakeup is None:
            self.scope.cancel()


class ProviderActor:
    """Serves the requests of one provider.

    Attributes:
        provider: The adapter.
        config: Its configuration.
        mailbox: Its queue.
        health: What its attempts came to.
        state: What it is doing.
        restarts: How often the supervisor restarted it.
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
    ) -> None:
        self.provider = provider
        self.config: ProviderConfig = provider.config
        self.mailbox: Mailbox[Envelope] = Mailbox(provider.name, provider.config.limits.queue)
        self.state = ActorState.STARTING
        self.restarts = 0
        self.health = ProviderHealth()
        self._rates = rate_limits or Unlimited()
        self._runner = AttemptRunner(
            provider,
            self.health,
            clock=clock,
            rng=rng,
            wheel=wheel,
            telemetry=telemetry,
            rates=self._rates,
            event=event,
        )
        self._clock = clock
        self._wheel = wheel
        self._event = event
        self._concurrency = provider.config.limits.concurrency
        self._group: TaskGroup | None = None
        self._context = contextvars.Context()
        self._idle: list[Worker] = []
        self._workers = 0
        self._picked = 0

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.config.name

    @property
    def in_flight(self) -> int:
        """Attempts that run, streams included."""
        return self._workers - len(self._idle)

    # ── what others may ask ──────────────────────────────────────────────────────

    def unavailable(self, operation: Operation, *, despite_pause: bool = False) -> str | None:
        """Why this actor cannot take a request of that kind now, or None if it can.

        Args:
            operation: What is asked.
            despite_pause: Whether the caller will wait out a pause that the provider asked for.
        """
        if self.state is not ActorState.SERVING:
            return self.state.value
        if operation not in self.provider.operations:
            return "unsupported_operation"
        if self.health.closed_until and not despite_pause and self.health.closed(self._clock()):
            return "overloaded"
        if not self._idle and self._workers >= self._concurrency and not self.mailbox.has_room:
            return "mailbox_full"
        if self._rates.wait_time() > 0:
            return "rate_limited"
        return None

    def available_in(self) -> float:
        """Seconds until it makes sense to ask again; a guess where nothing is known."""
        now = self._clock()
        if self.health.closed(now):
            return self.health.closed_until - now
        return self._rates.wait_time() or 1.0

    def offer(self, envelope: Envelope) -> None:
        """Give the actor a request; never waits.

        Raises:
            MailboxFullError: If there is no room.
            RouterClosedError: If the actor is not serving.
        """
        if self._group is None:
            msg = f"the actor of provider {self.name!r} is {self.state.value}"
            raise RouterClosedError(msg)
        if self._idle:
            worker = self._idle.pop()
            worker.envelope = envelope
            envelope.handler = worker
            if worker.wakeup is not None:
                worker.wakeup.set()
        elif self._workers < self._concurrency:
            self._hire(envelope)
        else:
            self.mailbox.offer(envelope)
            envelope.handler = self
        self._wheel.add(envelope, envelope.deadline)
        envelope.reserved_tokens = self._rates.take(envelope.request)
        self._picked += 1

    def interrupt(self, envelope: Envelope) -> None:
        """Take an envelope that waits out of the mailbox."""
        if self.mailbox.withdraw(envelope):
            self._rates.settle(envelope.reserved_tokens, NOTHING_USED)

    def status(self, now: float, all_picks: int) -> ActorStatus:
        """A snapshot."""
        left = self.health.closed_until - now
        reason = None if self.state is ActorState.SERVING else self.state.value
        return ActorStatus(
            name=self.name,
            type=self.config.type,
            state=self.state,
            mailbox=self.mailbox.status(now),
            in_flight=self.in_flight,
            workers=self._workers,
            ejected_until=left if left > 0 else None,
            reason="overloaded" if left > 0 else reason,
            weight=self.config.weight,
            share=self._picked / all_picks if all_picks else 0.0,
            picked=self._picked,
            completed=self.health.completed,
            failed={kind.value: count for kind, count in self.health.failed.items()},
            restarts=self.restarts,
        )

    @property
    def picked(self) -> int:
        """How often the dispatcher chose this actor."""
        return self._picked

    # ── life ─────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Serve until cancelled. Starts from nothing each time it is called.

        Raises:
            BaseException: Whatever escaped a worker; a bug, not a provider's failure.
        """
        # Workers start in this context: an empty one, or they would all inherit the
        # trace context and the variables of whoever happened to make the router.
        self._context = contextvars.Context()
        self._idle.clear()
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                self.state = ActorState.SERVING
                await anyio.sleep_forever()
        finally:
            self._group = None

    def stop(self, state: ActorState) -> None:
        """Say why the actor no longer serves, then answer all who wait in the mailbox.

        In this order: a request must be either refused or answered.
        """
        self.state = state
        self._group = None
        for envelope in self.mailbox.clear():
            self._rates.settle(envelope.reserved_tokens, NOTHING_USED)
            envelope.fail(self._gone(envelope))

    def _gone(self, envelope: Envelope) -> GatewayError:
        if self.state is ActorState.STOPPED or (
            self.state is ActorState.SERVING and _cancelled_from_outside()
        ):
            return RouterClosedError("the router was closed while the request was under way")
        return envelope.crashed()

    # ── workers ──────────────────────────────────────────────────────────────────

    def _hire(self, envelope: Envelope) -> None:
        worker = Worker(envelope)
        envelope.handler = worker
        self._workers += 1
        assert self._group is not None
        self._context.run(self._group.start_soon, self._work, worker)

    async def _work(self, worker: Worker) -> None:
        try:
            while True:
                with worker.scope:
                    await self._serve_all(worker)
                    return
                # An attempt was cut off: the scope is spent, the worker is not.
                worker.scope = anyio.CancelScope()
                worker.envelope = None
        except BaseException:
            if self.state is ActorState.SERVING and not _cancelled_from_outside():
                # At once, and not when the supervisor hears of it: whoever is answered now
                # must not be sent back into a group of tasks that is ending.
                self.stop(ActorState.RESTARTING)
            raise
        finally:
            self._workers -= 1
            if worker.envelope is not None:
                worker.envelope.fail(self._gone(worker.envelope))

    async def _serve_all(self, worker: Worker) -> None:
        while True:
            envelope = worker.envelope or self.mailbox.take()
            if envelope is None:
                if len(self._idle) >= IDLE_WORKERS:
                    return
                await self._park(worker)
                continue
            worker.envelope = envelope
            envelope.handler = worker
            if envelope.open:
                await self._serve(envelope)
            else:
                self._rates.settle(envelope.reserved_tokens, NOTHING_USED)
            worker.envelope = None
            if worker.scope.cancel_called:
                # The limit came in the same turn as the answer: take a fresh scope.
                await anyio.lowlevel.checkpoint()

    async def _park(self, worker: Worker) -> None:
        worker.wakeup = self._event()
        self._idle.append(worker)
        try:
            await worker.wakeup.wait()
        finally:
            worker.wakeup = None
            # Whoever gives it an envelope takes it off the list: no need to look through it.
            if worker.envelope is None:
                self._idle.remove(worker)

    async def _serve(self, envelope: Envelope) -> None:
        usage: Usage | None = None
        try:
            usage = (await self._runner.run(envelope)).usage
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
            self._rates.settle(envelope.reserved_tokens, usage)
