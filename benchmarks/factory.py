"""The benchmark `factory`: what making providers and importing the engine cost."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from benchmarks.creation import (
    TYPES,
    CreationTimes,
    MemoryCost,
    creation_times,
    memory_cost,
    threaded_seconds,
)
from benchmarks.imports import ImportCost, import_cost
from benchmarks.machine import Conditions
from benchmarks.progress import Steps
from benchmarks.report import Goal, Section, Table
from benchmarks.spread import MICROSECONDS, MILLISECONDS, Spread, figure

KIB = 1024


@dataclass(frozen=True, slots=True)
class FactorySettings:
    """How much is measured.

    Attributes:
        counts: Numbers of providers made.
        rounds: Rounds of each measurement.
        imports: Fresh interpreters that import the engine.
        threads: Threads that make providers at once.
    """

    counts: tuple[int, ...] = (1, 100, 10_000)
    rounds: int = 5
    imports: int = 7
    threads: int = 8

    @property
    def steps(self) -> int:
        """How many steps are told."""
        return len(TYPES) * (len(self.counts) + 2) + 1


@dataclass(slots=True)
class FactoryResults:
    """What was measured.

    Attributes:
        times: Rounds by type and count.
        threaded: Seconds for the largest count in several threads, by type.
        memory: By type.
        importing: The cost of `import engine`.
    """

    times: dict[tuple[str, int], list[CreationTimes]]
    threaded: dict[str, Spread]
    memory: dict[str, MemoryCost]
    importing: ImportCost


def run(settings: FactorySettings, steps: Steps) -> Section:
    """Measure, and write the section."""
    section = Section("factory", "factory: making providers")
    before = Conditions.now()
    results = _measure(settings, steps)
    section.conditions = before.until(Conditions.now())
    largest = settings.counts[-1]
    section.settings = {
        "settings": f"{settings.rounds} rounds, {settings.imports} fresh interpreters for the "
        f"import, {settings.threads} threads, garbage collection on",
    }
    section.goals = _goals(results, largest)
    section.tables = [
        _times_table(results, settings),
        _threads_table(results, settings),
        _memory_table(results, largest),
        _import_table(results.importing),
    ]
    section.notes = [
        (
            "Time is wall-clock time; configurations are made before the clock starts, and the "
            "module of a provider type is loaded before its first call is timed."
        ),
        "Every provider has a base URL of its own: nothing that is kept by URL helps.",
        "p99 of 1 and of 100 calls is the slowest of them.",
        (
            f"Memory is that of a fresh process with {largest:,} providers; `allocated` is counted "
            "by tracemalloc, `resident` is what the operating system says, configuration included."
        ),
        (
            "Threads share one interpreter lock: they show that making providers at once is safe "
            "and costs no more, not that it is faster."
        ),
    ]
    return section


def _measure(settings: FactorySettings, steps: Steps) -> FactoryResults:
    largest = settings.counts[-1]
    times: dict[tuple[str, int], list[CreationTimes]] = {}
    threaded: dict[str, Spread] = {}
    memory: dict[str, MemoryCost] = {}
    for type_name in TYPES:
        for count in settings.counts:
            steps.begin(f"{count:,} of type {type_name}")
            rounds = range(settings.rounds)
            times[type_name, count] = [creation_times(type_name, count) for _ in rounds]
        steps.begin(f"{type_name} in {settings.threads} threads")
        threaded[type_name] = Spread.of(
            [threaded_seconds(type_name, largest, settings.threads) for _ in range(settings.rounds)]
        )
        steps.begin(f"memory of type {type_name}")
        memory[type_name] = memory_cost(type_name, largest)
    steps.begin("import engine")
    return FactoryResults(times, threaded, memory, import_cost(settings.imports))


def _goals(results: FactoryResults, largest: int) -> list[Goal]:
    most = [results.times[type_name, largest] for type_name in TYPES]
    slowest = max(Spread.of([t.median for t in rounds]).median for rounds in most)
    longest = max(Spread.of([t.total for t in rounds]).median for rounds in most)
    dearest = max(cost.allocated for cost in results.memory.values())
    importing = results.importing
    return [
        Goal("`create_provider`, median, slowest type", 30, slowest * MICROSECONDS, "µs"),
        Goal(f"{largest:,} providers, slowest type", 1, longest, "s"),
        Goal("each further provider, dearest type", 20, dearest / KIB, "KiB"),
        Goal("`import engine`", 150, importing.seconds.median * MILLISECONDS, "ms"),
        Goal(
            "of httpx, aiohttp and starlette, loaded by it",
            0,
            len({"httpx", "aiohttp", "starlette"} & set(importing.heavy)),
            "",
        ),
    ]


def _times_table(results: FactoryResults, settings: FactorySettings) -> Table:
    rows = []
    for type_name in TYPES:
        for count in settings.counts:
            rounds = results.times[type_name, count]
            median = Spread.of([times.median for times in rounds]).scaled(MICROSECONDS)
            p99 = Spread.of([times.p99 for times in rounds]).scaled(MICROSECONDS)
            total = Spread.of([times.total for times in rounds]).scaled(MILLISECONDS)
            rows.append([type_name, f"{count:,}", str(median), str(p99), str(total)])
    columns = ("type", "providers", "one call, median, µs", "one call, p99, µs", "all, ms")
    return Table("`ProviderFactory.create_provider`", columns, rows)


def _threads_table(results: FactoryResults, settings: FactorySettings) -> Table:
    count = settings.counts[-1]
    rows = [
        [
            type_name,
            str(seconds.scaled(MILLISECONDS)),
            figure(seconds.median / count * MICROSECONDS),
        ]
        for type_name, seconds in results.threaded.items()
    ]
    title = f"{count:,} providers made by {settings.threads} threads at once"
    return Table(title, ("type", "all, ms", "each, µs"), rows)


def _memory_table(results: FactoryResults, largest: int) -> Table:
    rows = [
        [
            type_name,
            figure(cost.allocated / KIB),
            figure(cost.configuration / KIB),
            figure(cost.resident / KIB),
        ]
        for type_name, cost in results.memory.items()
    ]
    columns = ("type", "allocated, KiB", "its configuration, KiB", "both, resident, KiB")
    return Table(f"Memory of each further provider, of {largest:,}", columns, rows)


def _import_table(cost: ImportCost) -> Table:
    loaded = ", ".join(cost.heavy) or "none"
    traced = sum(seconds for _, seconds in cost.parts)
    rows = [
        ["`import engine`, fresh interpreter, ms", str(cost.seconds.scaled(MILLISECONDS))],
        ["with all public names, ms", str(cost.everything.scaled(MILLISECONDS))],
        ["heavy modules that it loads", loaded],
        *([f"share of {name}", f"{seconds / traced:.0%}"] for name, seconds in cost.parts[:6]),
    ]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Table(f"Import, Python {version}", ("what", "value"), rows)
