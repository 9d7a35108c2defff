"""Outages on the virtual clock: the same engine, scripted providers, seconds that cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapters.simulation.result import Result
from adapters.simulation.scenario import Scenario
from adapters.simulation.simulation import Simulation, simulate
from engine.config import GatewayConfig

PROVIDERS = 5
SERVICE = {"kind": "lognormal", "median": 0.73, "p95": 2.7}
"""Seconds of service with a mean of about 1 (sigma 0.8): as in the reliability notes."""

SLOTS = 20
CAPACITY = PROVIDERS * SLOTS
"""Requests a second that five providers with 20 slots each can serve at a mean of 1 s."""

DEADLINE = 5.0
SETTLED = 0.95
"""Part of what arrives that must be answered for an overload to count as over."""

CALM = 20.0
"""Seconds after an overload in which it is watched whether it is over."""

AFTER = 100.0
"""Seconds for which a provider that is well again is watched: more than it may take."""


@dataclass(frozen=True, slots=True)
class Overload:
    """What became of more requests than there is capacity for.

    Attributes:
        goodput: Answers in time, as a part of capacity, once the overload has settled in.
        recovery: Seconds after its end until what arrives is answered again.
        late: Answers that came after their caller's deadline.
    """

    goodput: float
    recovery: float
    late: int


def _config(*, limits: Mapping[str, int] | None = None) -> GatewayConfig:
    few = {"concurrency": SLOTS, "queue": 128}
    providers = [
        {"name": f"p{number}", "type": "mock", "limits": few if limits is None else limits}
        for number in range(1, PROVIDERS + 1)
    ]
    return GatewayConfig.model_validate({"providers": providers, "history": 0})


def _run(config: GatewayConfig, scenario: Mapping[str, Any]) -> Result:
    return simulate(Simulation(config, Scenario.model_validate(scenario), inspect_every=1.0))


def total_outage(seconds: float) -> float:
    """Upstream attempts a request while every provider fails, 100 requests a second."""
    result = _run(
        _config(),
        {
            "duration": seconds,
            "seed": 11,
            "phases": [{"rate": 100, "deadline": DEADLINE}],
            "faults": [{"kind": "status", "providers": "*", "status": 500}],
        },
    )
    return float(result.summary["attempts"]["per_request"])


def random_failures(seconds: float) -> float:
    """Part of the requests that are answered while one call in ten fails, at every provider."""
    result = _run(
        _config(),
        {
            "duration": seconds,
            "seed": 12,
            "phases": [{"rate": 50, "deadline": 30}],
            "providers": {"*": {"latency": SERVICE, "errors": {"transient": 0.1}}},
        },
    )
    return float(result.summary["success"])


def overload(times: float, seconds: float) -> Overload:
    """Offer so many times the capacity for a while, and then half of it."""
    result = _run(
        _config(),
        {
            "duration": 10 + seconds + CALM,
            "seed": 13,
            "phases": [
                {"rate": CAPACITY / 2, "until": 10, "deadline": DEADLINE},
                {"rate": CAPACITY * times, "at": 10, "until": 10 + seconds, "deadline": DEADLINE},
                {"rate": CAPACITY / 2, "at": 10 + seconds, "deadline": DEADLINE},
            ],
            "providers": {"*": {"latency": SERVICE, "concurrency": SLOTS, "when_full": "queue"}},
        },
    )
    completed = result.series["completed"]
    arrived = result.series["arrivals"]
    # The first seconds of the overload fill what was free; they would flatter the mean.
    steady = completed[15 : int(10 + seconds)]
    end = int(10 + seconds)
    recovery = next(
        (
            second - end
            for second in range(end, int(end + CALM) - 5)
            if sum(completed[second : second + 5]) >= SETTLED * sum(arrived[second : second + 5])
        ),
        CALM,
    )
    late = sum(1 for broken in result.broken if broken.invariant == "I3")
    return Overload(sum(steady) / len(steady) / CAPACITY, float(recovery), late)


@dataclass(frozen=True, slots=True)
class Hanging:
    """What one provider of five that accepts and never answers costs.

    Attributes:
        met: Part of the requests that were sent to it.
        p99: Seconds, of all requests, with it.
        p99_without: Seconds, of all requests, when all are well.
    """

    met: float
    p99: float
    p99_without: float


def one_hanging(seconds: float) -> Hanging:
    """One of five hangs from second 30 on; default limits, 200 requests a second."""
    rate, start = 200, 30
    scenario = {
        "duration": seconds,
        "seed": 14,
        "phases": [{"rate": rate, "deadline": 60}],
        "providers": {"*": {"latency": SERVICE}},
    }
    fault = {"kind": "hang", "providers": "p1", "at": start}
    well = _run(_config(limits={}), scenario)
    ill = _run(_config(limits={}), {**scenario, "faults": [fault]})
    calls = ill.series["providers"]["p1"]["attempts"]
    met = sum(calls[start:]) / (rate * (seconds - start))
    return Hanging(met, ill.summary["latency"]["p99"], well.summary["latency"]["p99"])


@dataclass(frozen=True, slots=True)
class Healing:
    """How a provider comes back.

    Attributes:
        first: Seconds after it is well until it serves again.
        full: Seconds after it is well until it has 90 % of its share.
    """

    first: float
    full: float


def healed(outage: float) -> Healing:
    """One of five refuses for a while, and is then well."""
    result = _run(
        _config(),
        {
            "duration": 30 + outage + AFTER,
            "seed": 15,
            "phases": [{"rate": 50, "deadline": 30}],
            "providers": {"*": {"latency": SERVICE}},
            "faults": [{"kind": "refuse", "providers": "p1", "at": 30, "until": 30 + outage}],
        },
    )
    back = int(30 + outage)
    out = result.series["providers"]["p1"]["out"]
    calls = result.series["providers"]["p1"]["attempts"]
    every = result.series["attempts"]
    end = len(calls)
    first = next((s - back for s in range(back, end) if not out[s] and calls[s]), int(AFTER))
    window = 10
    full = next(
        (
            s - back
            for s in range(back, end - window)
            if sum(calls[s : s + window]) >= 0.9 * sum(every[s : s + window]) / PROVIDERS
        ),
        int(AFTER),
    )
    return Healing(float(first), float(full))


def one_hour(minutes: float) -> int:
    """Requests of so many simulated minutes at 200 a second over five providers."""
    result = _run(
        _config(),
        {
            "duration": minutes * 60,
            "seed": 16,
            "phases": [{"rate": 200, "deadline": 30, "streamed": 0.2}],
            "providers": {"*": {"latency": {"kind": "lognormal", "median": 0.3, "p95": 1.0}}},
        },
    )
    assert result.ok, result.broken
    return int(result.summary["requests"])
