"""The benchmark `dispatch`: what the engine adds to a provider that answers at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, TypeVar

import anyio

from benchmarks.calls import CallCost, complete_cost, hop_cost, provider_cost, stream_cost
from benchmarks.machine import Conditions
from benchmarks.picks import BALANCERS, PickCost, pick_cost
from benchmarks.progress import Steps
from benchmarks.report import Goal, Section, Table
from benchmarks.spread import MICROSECONDS, figure
from benchmarks.wire import EVENTS

ResultT = TypeVar("ResultT")

LOOPS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "uvloop": ("uvloop", "asyncio", {"use_uvloop": True}),
    "asyncio": ("asyncio", "asyncio", {"use_uvloop": False}),
    "trio": ("trio", "trio", {}),
}
"""The module that must be there, anyio's name of the event loop, and its options."""

Case = tuple[str, int, bool, int]
"""Event loop, callers, whether spans are recorded, providers."""


def available_loops() -> tuple[str, ...]:
    """The event loops that are installed."""
    return tuple(name for name, (module, _, _) in LOOPS.items() if find_spec(module) is not None)


@dataclass(frozen=True, slots=True)
class DispatchSettings:
    """How much is measured.

    Attributes:
        calls: Calls in a round of the engine.
        picks: Picks in a round; balancers that look at every target make fewer.
        rounds: Rounds of each measurement.
        providers: Numbers of providers.
        callers: Numbers of concurrent callers.
        loops: Names of `LOOPS`.
    """

    calls: int = 2_500
    picks: int = 100_000
    rounds: int = 5
    providers: tuple[int, ...] = (2, 10, 100, 1_000)
    callers: tuple[int, ...] = (1, 64)
    loops: tuple[str, ...] = field(default_factory=available_loops)

    @property
    def cases(self) -> list[Case]:
        """All cases of `router.complete()`."""
        return [
            (loop, callers, recorded, providers)
            for loop in self.loops
            for callers in self.callers
            for recorded in (False, True)
            for providers in self.providers
        ]

    @property
    def steps(self) -> int:
        """How many steps are told."""
        return len(BALANCERS) * len(self.providers) + len(self.cases) + 3 * len(self.loops)


@dataclass(slots=True)
class DispatchResults:
    """What was measured.

    Attributes:
        picks: By balancer and number of targets.
        direct: The provider without the engine, by event loop.
        hops: The actor hop, by event loop.
        completes: `router.complete()`, by case.
        streams: `router.stream()`, by event loop and whether spans are recorded.
    """

    picks: dict[tuple[str, int], PickCost] = field(default_factory=dict)
    direct: dict[str, CallCost] = field(default_factory=dict)
    hops: dict[str, CallCost] = field(default_factory=dict)
    completes: dict[Case, CallCost] = field(default_factory=dict)
    streams: dict[tuple[str, bool], CallCost] = field(default_factory=dict)


def run(settings: DispatchSettings, steps: Steps) -> Section:
    """Measure, and write the section."""
    section = Section("dispatch", "dispatch: what the engine adds")
    before = Conditions.now()
    results = _measure(settings, steps)
    section.conditions = before.until(Conditions.now())
    section.settings = {
        "settings": f"{settings.rounds} rounds of {settings.calls:,} calls and up to "
        f"{settings.picks:,} picks, one uncounted round before; garbage collection on; "
        "weights of 1 to 4, weighted random",
    }
    section.goals = _goals(results, settings)
    section.tables = [
        _picks_table(results, settings),
        _parts_table(results, settings),
        *(_complete_table(results, settings, loop) for loop in settings.loops),
        _streams_table(results, settings),
    ]
    section.notes = _notes(results, settings)
    return section


def _measure(settings: DispatchSettings, steps: Steps) -> DispatchResults:
    results = DispatchResults()
    calls, rounds = settings.calls, settings.rounds
    for balancer in BALANCERS:
        for targets in settings.providers:
            steps.begin(f"pick, {balancer}, {targets:,} targets")
            measure = partial(pick_cost, balancer, targets, picks=settings.picks, rounds=rounds)
            results.picks[balancer, targets] = _on(settings.loops[0], measure)
    for loop in settings.loops:
        steps.begin(f"actor hop, {loop}")
        results.direct[loop] = _on(loop, partial(provider_cost, calls=calls, rounds=rounds))
        results.hops[loop] = _on(loop, partial(hop_cost, calls=calls, rounds=rounds))
        for recorded in (False, True):
            steps.begin(f"streams, {loop}, spans {_on_or_off(recorded)}")
            results.streams[loop, recorded] = _on(
                loop,
                partial(
                    stream_cost,
                    callers=1,
                    recorded=recorded,
                    calls=max(1, calls // 4),
                    rounds=rounds,
                ),
            )
    for case in settings.cases:
        loop, callers, recorded, providers = case
        steps.begin(f"{loop}, {callers} callers, spans {_on_or_off(recorded)}, {providers:,}")
        results.completes[case] = _on(
            loop,
            partial(
                complete_cost,
                providers,
                callers=callers,
                recorded=recorded,
                calls=calls,
                rounds=rounds,
            ),
        )
    return results


def _on(loop: str, measure: Callable[[], Awaitable[ResultT]]) -> ResultT:
    _, backend, options = LOOPS[loop]
    return anyio.run(measure, backend=backend, backend_options=options)


def _on_or_off(recorded: bool) -> str:
    return "on" if recorded else "off"


def _goals(results: DispatchResults, settings: DispatchSettings) -> list[Goal]:
    goals = []
    for recorded, wanted in ((False, 45), (True, 130)):
        case = ("uvloop", 1, recorded, settings.providers[0])
        if case in results.completes:
            cost = results.completes[case].seconds.median - results.direct["uvloop"].seconds.median
            what = (
                f"`router.complete()`, added CPU, uvloop, one caller, spans {_on_or_off(recorded)}"
            )
            goals.append(Goal(what, wanted, cost * MICROSECONDS, "µs"))
    for targets, wanted in ((10, 1), (1_000, 2)):
        if ("weighted_random", targets) in results.picks:
            cost = results.picks["weighted_random", targets].balancer.median
            what = f"the pick alone, weighted random, {targets:,} targets"
            goals.append(Goal(what, wanted, cost * MICROSECONDS, "µs"))
    return goals


def _picks_table(results: DispatchResults, settings: DispatchSettings) -> Table:
    rows = [
        [
            balancer,
            f"{targets:,}",
            str(results.picks[balancer, targets].balancer.scaled(MICROSECONDS)),
            str(results.picks[balancer, targets].dispatcher.scaled(MICROSECONDS)),
        ]
        for balancer in BALANCERS
        for targets in settings.providers
    ]
    columns = ("balancer", "targets", "`Balancer.pick`, µs", "`Dispatcher.choose`, µs")
    return Table("The pick alone, CPU", columns, rows)


def _parts_table(results: DispatchResults, settings: DispatchSettings) -> Table:
    rows = [
        [
            loop,
            str(results.direct[loop].seconds.scaled(MICROSECONDS)),
            str(results.hops[loop].seconds.scaled(MICROSECONDS)),
        ]
        for loop in settings.loops
    ]
    columns = ("event loop", "the provider asked directly, µs", "through its actor, µs")
    return Table("The actor hop, one caller, CPU", columns, rows)


def _complete_table(results: DispatchResults, settings: DispatchSettings, loop: str) -> Table:
    rows = [
        [
            str(callers),
            _on_or_off(recorded),
            *(
                str(results.completes[loop, callers, recorded, providers].seconds.scaled(1e6))
                for providers in settings.providers
            ),
        ]
        for callers in settings.callers
        for recorded in (False, True)
    ]
    columns = ("callers", "spans", *(f"{count:,} providers, µs" for count in settings.providers))
    return Table(f"`router.complete()` on {loop}, CPU a call", columns, rows)


def _streams_table(results: DispatchResults, settings: DispatchSettings) -> Table:
    rows = []
    for loop in settings.loops:
        for recorded in (False, True):
            cost = results.streams[loop, recorded].seconds.scaled(MICROSECONDS)
            rows.append([loop, _on_or_off(recorded), str(cost), figure(cost.median / EVENTS)])
    columns = ("event loop", "spans", "a stream, µs", "a chunk, µs")
    return Table(f"`router.stream()` of {EVENTS} chunks, one caller, CPU", columns, rows)


def _notes(results: DispatchResults, settings: DispatchSettings) -> list[str]:
    recorded = [cost.spans for case, cost in results.completes.items() if case[2]]
    missing = [name for name in LOOPS if name not in settings.loops]
    return [
        "CPU is processor time of the whole process, the thread that batches spans included.",
        (
            "`Balancer.pick` finds every target eligible; `Dispatcher.choose` asks the actors of "
            "those it looks at, which weighted random does for the one that it draws."
        ),
        (
            "Spans on: the OpenTelemetry SDK with a batch processor and an exporter that drops; "
            f"the exporter got {min(recorded):.2f} to {max(recorded):.2f} spans a request of two "
            "recorded; what is missing did not fit the batch processor's queue."
        ),
        *([f"Not installed, so not measured: {', '.join(missing)}."] if missing else []),
    ]
