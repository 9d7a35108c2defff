"""`RunningRouter`: what a router has only while it runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import anyio
import anyio.lowlevel

from engine.acceptance import Acceptance
from engine.actor import ProviderActor
from engine.config import GatewayConfig
from engine.dispatcher import Dispatcher
from engine.event_loop import native_event
from engine.generation import Generation, make_generation
from engine.idempotency_store import IdempotencyStore
from engine.ledger import Ledger
from engine.model_catalogue import ModelCatalogue
from engine.provider import BaseProvider
from engine.provider_lifetime import ProviderPool
from engine.reloader import Reloader
from engine.repeat_permits import RepeatPermits
from engine.request_attempts import RunningEngine
from engine.request_history import RequestHistory
from engine.resilience.deadline import DeadlineWheel
from engine.resilience.limits import rate_limits
from engine.resilience.retry_budget import RetryBudget
from engine.retirement import Retirement
from engine.status import ActorState, ActorStatus
from engine.supervisor import Supervisor
from engine.telemetry import Telemetry

DISABLED = "disabled"


class RunningRouter:
    """The parts of a router on its event loop, put together; made inside of the loop.

    Args:
        config: The first configuration.
        providers: Its providers, by name.
        pool: Gives and closes providers.
        catalogue: Lists models.
        ledger: Counts requests.
        telemetry: Makes spans.
        clock: The router's clock.
        rng: Source of all random choices.
        start: Starts a task that the router owns.

    Attributes:
        acceptance: Takes requests in.
        reloader: Holds the generation that serves, and replaces it.
        supervisor: Runs the actors.
        history: Keeps the stories of the latest requests.
        idempotency: Keeps what is asked for with an idempotency key.

    Raises:
        ConfigurationError: If a provider cannot run on this event loop as configured.
    """

    def __init__(
        self,
        config: GatewayConfig,
        providers: Mapping[str, BaseProvider],
        *,
        pool: ProviderPool,
        catalogue: ModelCatalogue,
        ledger: Ledger,
        telemetry: Telemetry,
        clock: Callable[[], float],
        rng: random.Random,
        start: Callable[..., object],
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._telemetry = telemetry
        self._wheel = DeadlineWheel(clock)
        self._event = native_event()
        self._catalogue = catalogue
        self.history = RequestHistory(config.history)
        self.idempotency = IdempotencyStore(
            config.idempotency, clock=clock, start=start, event=self._event
        )
        self._permits = RepeatPermits(
            RetryBudget(config.retry_budget, clock), in_flight=lambda: ledger.in_flight
        )
        actors = {name: self._make_actor(each, config) for name, each in providers.items()}
        self.supervisor = Supervisor(actors.values(), clock=clock, rng=rng)
        self._retirement = Retirement(
            supervisor=self.supervisor, pool=pool, catalogue=catalogue, clock=clock, ledger=ledger
        )
        self.reloader = Reloader(
            make_generation(1, config, actors, rng),
            pool=pool,
            make_actor=self._make_actor,
            supervisor=self.supervisor,
            retirement=self._retirement,
            on_change=self._changed,
            clock=clock,
            rng=rng,
        )
        engine = RunningEngine(
            clock=clock,
            event=self._event,
            dispatcher=Dispatcher(),
            wheel=self._wheel,
            ledger=ledger,
            telemetry=telemetry,
            permits=self._permits,
            history=self.history,
        )
        self.acceptance = Acceptance(engine, self.reloader)

    async def run(self) -> None:
        """Keep everything going until cancelled."""
        async with anyio.create_task_group() as group:
            # The limits are watched until the last actor has ended, or a caller whose
            # adapter hangs in its clean-up would wait for it beyond its deadline.
            watch = anyio.CancelScope(shield=True)

            async def watch_limits() -> None:
                with watch:
                    await self._wheel.run()

            group.start_soon(watch_limits)
            try:
                async with anyio.create_task_group() as changing:
                    changing.start_soon(self._retirement.run)
                    await self.supervisor.run()
            finally:
                watch.cancel()

    async def started(self) -> None:
        """Wait until every actor serves, or has told that it cannot."""
        actors = self.reloader.current.actors.values()
        while any(actor.state is ActorState.STARTING for actor in actors):
            await anyio.lowlevel.checkpoint()

    @property
    def can_serve(self) -> bool:
        """Whether there is an actor that serves and has a weight."""
        return any(
            actor.state is ActorState.SERVING and actor.config.weight > 0
            for actor in self.reloader.current.actors.values()
        )

    def now(self) -> float:
        """The current instant, or the latest known one in a foreign thread."""
        try:
            self.acceptance.seen = self._clock()
        except RuntimeError:
            # Trio tells the time in its own thread only; metrics are read in another.
            return self.acceptance.seen
        return self.acceptance.seen

    def actor_statuses(self, now: float) -> tuple[ActorStatus, ...]:
        """A snapshot of each actor of the current generation."""
        generation = self.reloader.current
        picks = sum(actor.picked for actor in generation.living.values())
        statuses = []
        for name, actor in generation.living.items():
            status = actor.status(now, picks)
            off = name in generation.disabled
            statuses.append(replace(status, reason=DISABLED) if off else status)
        return tuple(statuses)

    def _changed(self, generation: Generation) -> None:
        providers = {name: actor.provider for name, actor in generation.actors.items()}
        self._catalogue.apply(generation.config, providers)
        self.history.resize(generation.config.history)
        self.idempotency.apply(generation.config.idempotency)

    def _make_actor(self, provider: BaseProvider, config: GatewayConfig) -> ProviderActor:
        return ProviderActor(
            provider,
            clock=self._clock,
            rng=self._rng,
            wheel=self._wheel,
            telemetry=self._telemetry,
            event=self._event,
            rate_limits=rate_limits(provider.name, provider.config.limits, self._clock),
            retry_budget=config.retry_budget,
            permits=self._permits,
        )
