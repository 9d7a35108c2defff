"""The benchmark `resilience`: what the project promises for the case that things go wrong."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import anyio

from benchmarks import departures, failover, reloads, simulated, soak
from benchmarks.gateway import UnsupportedSystemError
from benchmarks.machine import Conditions
from benchmarks.progress import Steps
from benchmarks.report import Findings, Section
from benchmarks.simulated import SimulatedSettings


@dataclass(frozen=True, slots=True)
class ResilienceSettings:
    """How much is measured.

    Attributes:
        simulated: What is run in virtual time.
        calls: Calls for each fault of the chosen provider, whole and streamed each.
        departures: Callers that leave in each case.
        reloads: Reloads under load.
        ends: Gateways that get SIGTERM under load.
        soak_seconds: Length of the soak.
    """

    simulated: SimulatedSettings = field(default_factory=SimulatedSettings)
    calls: int = 50
    departures: int = 100
    reloads: int = 50
    ends: int = 3
    soak_seconds: float = 600.0

    @property
    def steps(self) -> int:
        """How many steps are told."""
        return self.simulated.steps + 5


def run(settings: ResilienceSettings, steps: Steps) -> Section:
    """Measure, and write the section.

    Raises:
        UnsupportedSystemError: If the system is not Linux.
        ChildError: If a process of the benchmark fails.
    """
    if not sys.platform.startswith("linux"):
        raise UnsupportedSystemError(
            "the benchmark `resilience` needs Linux: it reads memory and descriptors from /proc"
        )
    section = Section("resilience", "resilience: what happens when things go wrong")
    before = Conditions.now()
    section.add(simulated.measure(settings.simulated, steps))
    found = anyio.run(
        _measure_processes, settings, steps, backend="asyncio", backend_options={"use_uvloop": True}
    )
    for findings in found:
        section.add(findings)
    section.settings = _settings_told(settings)
    section.conditions = before.until(Conditions.now())
    return section


async def _measure_processes(settings: ResilienceSettings, steps: Steps) -> list[Findings]:
    """What needs a real process, real sockets and real time."""
    found = []
    steps.begin("the chosen provider fails")
    found.append(await failover.measure(settings.calls))
    steps.begin("callers leave")
    found.append(await departures.measure(settings.departures))
    steps.begin("reloads under load")
    found.append(await reloads.measure_reloads(settings.reloads))
    steps.begin("SIGTERM under load")
    found.append(await reloads.measure_end(settings.ends))
    steps.begin(f"soak of {settings.soak_seconds:g} s")
    found.append(await soak.measure(settings.soak_seconds))
    return found


def _settings_told(settings: ResilienceSettings) -> dict[str, str]:
    return {
        "settings": f"{settings.calls} calls a fault, {settings.departures} departures a case, "
        f"{settings.reloads} reloads, {settings.ends} ends, soak of {settings.soak_seconds:g} s",
        "processes": "the gateway in one process on uvloop, as `inference-gateway serve` runs it; "
        "callers and providers together in another one; nothing is pinned to a core",
    }
