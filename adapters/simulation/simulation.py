"""`simulate`: one scenario, run with the real router on a virtual clock."""

from __future__ import annotations

# asyncio by nature: what is left of the tasks of an event loop can be asked only there.
import asyncio
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from adapters.simulation.callers import Callers
from adapters.simulation.changes import Operator
from adapters.simulation.faults import SimulatedCrash
from adapters.simulation.invariants import Referee
from adapters.simulation.observer import Observer
from adapters.simulation.requests import Asked, arrivals
from adapters.simulation.result import Result, make_result
from adapters.simulation.scenario import DEFAULT_BEHAVIOUR, EVERYBODY, Scenario
from adapters.simulation.scripted_provider import ScriptedProvider
from adapters.simulation.terms import Terms
from adapters.simulation.upstream import Upstream
from adapters.simulation.virtual_loop import (
    MAX_CALLBACKS,
    RunawayError,
    StuckError,
    VirtualLoop,
)
from engine.config import GatewayConfig
from engine.registry import ProviderRegistry
from engine.router import Router

SETTLE = 2.0
"""Seconds after the last ending in which everything must have come to rest."""

ALLOCATIONS = 50_000
"""Container objects made, less those freed, before the young ones are looked through: a
simulation makes few cycles, and they all end with it."""

Progress = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Simulation:
    """Everything that a run depends on.

    Attributes:
        config: The configuration of the router.
        scenario: What happens.
        name: What the run is called in reports.
        seed: Seed of all chance; None takes the scenario's.
        recorded: Requests that are played instead of the scenario's phases.
        reloads: Configurations of the scenario's reloads, by place in `changes`.
        inspect_every: Seconds between two inspections; None for one a step.
        max_callbacks: Callbacks of the event loop after which a run is given up.
    """

    config: GatewayConfig
    scenario: Scenario
    name: str = "simulation"
    seed: int | None = None
    recorded: Sequence[Asked] | None = None
    reloads: Mapping[int, GatewayConfig] = field(default_factory=dict)
    inspect_every: float | None = None
    max_callbacks: int = MAX_CALLBACKS


def simulate(simulation: Simulation, *, progress: Progress | None = None) -> Result:
    """Run a simulation to its end.

    Args:
        simulation: What is run.
        progress: Told the part that is done, between 0 and 1, at each step.

    Raises:
        RuntimeError: If an event loop runs in this thread already.
    """
    loop = VirtualLoop.make(max_callbacks=simulation.max_callbacks)
    run = _Run(simulation, loop, progress)
    with _quiet_log():
        try:
            loop.run(run.main())
        except (StuckError, RunawayError) as error:
            run.referee.report("I11", str(error))
        except (Exception, BaseExceptionGroup, SimulatedCrash) as error:  # noqa: BLE001
            # The border: whatever comes out of the router here has taken it down.
            run.referee.report("I10", f"the router fell over: {innermost(error)!r}")
        run.inspect_the_end()
    loop.close()
    return make_result(
        simulation.name,
        run.seed,
        simulation.scenario.duration,
        observer=run.observer,
        referee=run.referee,
        upstreams=run.upstreams.values(),
        refused=run.refused,
    )


def watched_limits(router: Router) -> int | None:
    """How many limits a running router watches; None if it cannot be found out.

    It is no part of the status, which is for people: at rest it is 0, or a request that has
    ended was not taken off the wheel.
    """
    wheel = getattr(getattr(router, "_running", None), "_wheel", None)
    return None if wheel is None else len(wheel)


def innermost(error: BaseException) -> BaseException:
    """The first exception that is no group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Run:
    """One run and its parts."""

    def __init__(
        self, simulation: Simulation, loop: VirtualLoop, progress: Progress | None
    ) -> None:
        scenario = simulation.scenario
        self.seed = scenario.seed if simulation.seed is None else simulation.seed
        self.config = _adapted(simulation.config, self.seed)
        self.referee = Referee(loop, Terms.of(self.config))
        self.observer = Observer(scenario.duration)
        self.upstreams: dict[str, Upstream] = {}
        self.refused: list[str] = []
        self._simulation = simulation
        self._scenario = scenario
        self._loop = loop
        self._progress = progress
        self._origin = loop.time()
        self._steps = 0
        self._ended = False
        self._router: Router | None = None

    async def main(self) -> None:
        """Run the router, its callers and its operator."""
        registry = ProviderRegistry()
        for provider in self.config.providers:
            upstream = self.upstreams[provider.name] = self._make_upstream(provider.name)
            registry.register_provider(provider.name, ScriptedProvider(provider, upstream))
        router = self._router = Router(self.config, registry=registry)
        async with router:
            callers = Callers(
                router,
                self._requests(),
                loop=self._loop,
                referee=self.referee,
                observer=self.observer,
            )
            operator = Operator(
                router,
                registry,
                upstreams=self.upstreams,
                make_upstream=self._make_upstream,
                configs={
                    number: _adapted(config, self.seed)
                    for number, config in self._simulation.reloads.items()
                },
                callers=callers,
                referee=self.referee,
                loop=self._loop,
            )
            self.refused = operator.refused
            self._watch()
            async with anyio.create_task_group() as group:
                for number, change in enumerate(self._scenario.changes):
                    group.start_soon(operator.carry_out, number, change)
                callers.begin()
                await callers.finish()
            await self._loop.pause(SETTLE)
            self._ended = True
            self._inspect_rest(router)

    def _requests(self) -> Iterator[Asked]:
        if self._simulation.recorded is not None:
            return iter(self._simulation.recorded)
        return arrivals(self._scenario, self.config, self.seed)

    def _make_upstream(self, name: str) -> Upstream:
        scenario = self._scenario
        others = scenario.providers.get(EVERYBODY, DEFAULT_BEHAVIOUR)
        return Upstream(
            name,
            loop=self._loop,
            watcher=self.referee,
            behaviour=scenario.providers.get(name, others),
            plagues=tuple(
                fault
                for fault in scenario.faults
                if name in fault.names or EVERYBODY in fault.names
            ),
            seed=self.seed,
            origin=self._origin,
        )

    # ── looking on ───────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        self._loop.call_at(self._origin + self.observer.step_seconds, self._step)
        if self._simulation.inspect_every is not None:
            self._loop.call_later(self._simulation.inspect_every, self._inspect)

    def _step(self) -> None:
        """Draw a line under a step, and look whether all promises are kept."""
        if self._ended:
            return
        assert self._router is not None
        self._steps += 1
        status, upstreams = self._router.status(), self.upstreams.values()
        self.observer.step(status, upstreams, attempts=self.referee.attempts)
        self.referee.inspect(status, upstreams)
        done = self._steps * self.observer.step_seconds
        if self._progress is not None:
            self._progress(min(1.0, done / self._scenario.duration))
        self._loop.call_at(self._origin + done + self.observer.step_seconds, self._step)

    def _inspect(self) -> None:
        if self._ended:
            return
        assert self._router is not None
        assert self._simulation.inspect_every is not None
        self.referee.inspect(self._router.status(), self.upstreams.values())
        self._loop.call_later(self._simulation.inspect_every, self._inspect)

    def _inspect_rest(self, router: Router) -> None:
        """Look at what is left once nobody waits any more, while the router still runs."""
        status, upstreams = router.status(), self.upstreams.values()
        if self.observer.outcomes.total() or not self._steps:
            self.observer.step(status, upstreams, attempts=self.referee.attempts)
        self.referee.inspect_rest(status, upstreams)
        if watched := watched_limits(router):
            self.referee.report("I4", f"{watched} limits are still watched")

    def inspect_the_end(self) -> None:
        """Look at what is left of the event loop after the router has closed."""
        left = [task for task in asyncio.all_tasks(self._loop) if not task.done()]
        if left:
            names = ", ".join(sorted(task.get_name() for task in left)[:5])
            self.referee.report("I4", f"{len(left)} tasks are left: {names}")
        for words in self._loop.unhandled:
            self.referee.report("I4", f"nobody handled: {words}")


def _adapted(config: GatewayConfig, seed: int) -> GatewayConfig:
    """The configuration with our seed, and without the stories of requests that nobody reads."""
    return config.model_copy(update={"seed": seed, "history": 0})


@contextmanager
def _quiet_log() -> Iterator[None]:
    """The engine's warnings of simulated faults are no news for who simulates them."""
    logger = logging.getLogger("engine")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def tuned_for_simulating() -> Iterator[None]:
    """Let the garbage collector look more rarely, and not at what was there before.

    For the process of a command: it is a setting of the whole process.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
