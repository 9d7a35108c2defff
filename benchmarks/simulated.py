"""The promises that are measured on the virtual clock, and the time that this takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from adapters.simulation.search import search
from adapters.simulation.simulation import tuned_for_simulating
from benchmarks import outages
from benchmarks.progress import Steps
from benchmarks.report import Bound, Findings, Goal, Table
from benchmarks.spread import figure

PROCESSES = 2
HOUR_WALL = 90.0
SEARCH_WALL = 300.0
SEARCH_SEEDS = 10_000
SLOW_START = 30.0

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class SimulatedSettings:
    """How much is simulated. Times in simulated seconds.

    Attributes:
        outage: Length of the total outage.
        failures: Length of the run with random failures.
        overload: Length of each overload.
        hanging: Length of the run with a hanging provider.
        outages: Lengths of the outages from which a provider comes back.
        minutes: Simulated minutes of the long run.
        scenarios: Random scenarios.
    """

    outage: float = 60.0
    failures: float = 600.0
    overload: float = 60.0
    hanging: float = 600.0
    outages: tuple[float, ...] = (20.0, 60.0, 180.0)
    minutes: float = 60.0
    scenarios: int = SEARCH_SEEDS

    @property
    def steps(self) -> int:
        """How many steps are told."""
        return 7 + len(self.outages)


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds that something took.

    Attributes:
        wall: By the clock on the wall.
        cpu: Of the processor, processes that ended meanwhile included.
    """

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{figure(self.wall)} ({figure(self.cpu)})"


class _Measured:
    """Runs simulations one after the other and keeps what they took."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self.rows: list[list[str]] = []

    def run(
        self, step: str, measure: Callable[[], ResultT], words: Callable[[ResultT], str]
    ) -> tuple[ResultT, Timed]:
        """Measure, and note a row about it."""
        self._steps.begin(step)
        wall, cpu = time.perf_counter(), _cpu()
        result = measure()
        timed = Timed(time.perf_counter() - wall, _cpu() - cpu)
        self.rows.append([step, words(result), str(timed)])
        return result, timed


def _cpu() -> float:
    """Processor time of this process and of its children that have ended, seconds."""
    return sum(os.times()[:4])


def measure(settings: SimulatedSettings, steps: Steps) -> Findings:
    """Run all of it; the random scenarios on `PROCESSES` processes, the rest in this one."""
    measured = _Measured(steps)
    findings = Findings()
    with tuned_for_simulating():
        findings.goals += _failing(settings, measured)
        findings.goals += _overloaded(settings, measured)
        findings.goals += _one_of_five(settings, measured)
        findings.goals += _long_run(settings, measured)
    findings.goals += _searched(settings, measured)
    columns = ("simulated", "result", "wall time, s (CPU, s)")
    findings.tables.append(Table("Virtual time, scripted providers", columns, measured.rows))
    findings.notes.append(
        "Virtual time: the same engine, on a clock that jumps to the next timer; the results "
        "depend on the seed and not on the machine, only the time that they take does."
    )
    return findings


def _failing(settings: SimulatedSettings, measured: _Measured) -> list[Goal]:
    attempts, _ = measured.run(
        f"total outage, 100 requests a second for {settings.outage:g} s",
        lambda: outages.total_outage(settings.outage),
        lambda value: f"{value:.4f} attempts a request",
    )
    success, _ = measured.run(
        f"10 % random failures of every provider for {settings.failures:g} s",
        lambda: outages.random_failures(settings.failures),
        lambda value: f"{value:.3%} answered",
    )
    return [
        Goal("upstream attempts a request in a total outage", 1.1, attempts, ""),
        Goal("success with 10 % random failures", 99.5, success * 100, "%", Bound.AT_LEAST),
    ]


def _overloaded(settings: SimulatedSettings, measured: _Measured) -> list[Goal]:
    goals = []
    for times in (2, 10):
        overload, _ = measured.run(
            f"{times} times the capacity for {settings.overload:g} s",
            lambda times=times: outages.overload(times, settings.overload),  # type: ignore[misc]
            _overload_words,
        )
        what = f"at {times} times the capacity"
        goals += [
            Goal(f"goodput {what}, of capacity", 95, overload.goodput * 100, "%", Bound.AT_LEAST),
            Goal(f"back to normal after it, {what}", 10, overload.recovery, "s"),
            Goal(f"accepted and answered after the deadline, {what}", 0, overload.late, ""),
        ]
    return goals


def _overload_words(overload: outages.Overload) -> str:
    return (
        f"goodput {overload.goodput:.1%} of capacity, normal again after "
        f"{overload.recovery:g} s, {overload.late} answers after their deadline"
    )


def _one_of_five(settings: SimulatedSettings, measured: _Measured) -> list[Goal]:
    hanging, _ = measured.run(
        f"one of five hangs, {settings.hanging:g} s",
        lambda: outages.one_hanging(settings.hanging),
        lambda it: f"{it.met:.3%} met it; p99 {it.p99:.2f} s, {it.p99_without:.2f} s without it",
    )
    healings = [
        measured.run(
            f"one of five refuses for {outage:g} s, and is then well",
            lambda outage=outage: outages.healed(outage),  # type: ignore[misc]
            lambda it: f"serves again after {it.first:g} s, has its share after {it.full:g} s",
        )[0]
        for outage in settings.outages
    ]
    return [
        Goal("requests that meet the hanging one of five", 0.1, hanging.met * 100, "%"),
        Goal("p99 with it, compared to without", 5,
             (hanging.p99 / hanging.p99_without - 1) * 100, "% more"),
        Goal("a healed provider serves again", 30, max(it.first for it in healings), "s"),
        Goal("a healed provider has its full share", 30 + SLOW_START,
             max(it.full for it in healings), "s"),
    ]  # fmt: skip


def _long_run(settings: SimulatedSettings, measured: _Measured) -> list[Goal]:
    minutes = settings.minutes
    _, timed = measured.run(
        f"{minutes:g} minutes at 200 requests a second, five providers",
        lambda: outages.one_hour(minutes),
        lambda requests: f"{requests:,} requests, no invariant broken",
    )
    return [
        Goal(f"wall time of {minutes:g} simulated minutes at 200 requests a second",
             HOUR_WALL * minutes / 60, timed.wall, "s"),
    ]  # fmt: skip


def _searched(settings: SimulatedSettings, measured: _Measured) -> list[Goal]:
    count = settings.scenarios
    found, timed = measured.run(
        f"{count:,} random scenarios, {PROCESSES} processes",
        lambda: search(range(count), processes=PROCESSES),
        lambda it: (
            f"{it.requests:,} requests, {it.checks:,} checks, "
            f"broken by seeds: {', '.join(str(f.seed) for f in it.findings[:10]) or 'none'}"
        ),
    )
    return [
        Goal(f"scenarios of {count:,} in which an invariant broke", 0, len(found.findings), ""),
        Goal(f"wall time of {count:,} scenarios",
             SEARCH_WALL * count / SEARCH_SEEDS, timed.wall, "s"),
    ]  # fmt: skip
