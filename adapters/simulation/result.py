"""`Result`: what a simulation came to; the same for the same seed, byte for byte."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.ledger import Outcome

if TYPE_CHECKING:
    from adapters.simulation.invariants import Broken, Referee
    from adapters.simulation.observer import Observer
    from adapters.simulation.upstream import Upstream


@dataclass(frozen=True, slots=True)
class Result:
    """What one run came to.

    Attributes:
        name: What the run is called.
        summary: Counts, shares and percentiles, plain JSON types.
        series: Curves over time, plain JSON types.
        broken: The first promises that were broken.
        broken_count: How many were.
    """

    name: str
    summary: dict[str, Any]
    series: dict[str, Any]
    broken: tuple[Broken, ...]
    broken_count: int

    @property
    def ok(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken_count

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; no wall time, which would differ from run to run."""
        return {
            "name": self.name,
            **self.summary,
            "invariants": {
                "broken": self.broken_count,
                "first": [str(broken) for broken in self.broken],
            },
            "series": self.series,
        }


def to_json(results: Iterable[Result]) -> str:
    """Results as one JSON document."""
    return json.dumps({"runs": [result.as_dict() for result in results]}, indent=1) + "\n"


def make_result(
    name: str,
    seed: int,
    duration: float,
    *,
    observer: Observer,
    referee: Referee,
    upstreams: Iterable[Upstream],
    refused: list[str],
) -> Result:
    """Put together what was observed."""
    accepted = referee.accepted
    completed = observer.outcomes[Outcome.COMPLETED]
    summary = {
        "seed": seed,
        "duration": duration,
        "requests": accepted,
        "turned_away": observer.turned_away,
        "outcomes": {outcome.value: observer.outcomes[outcome] for outcome in Outcome},
        "success": _share(completed, accepted),
        "goodput_per_second": round(completed / duration, 3),
        "latency": observer.latency.summary(),
        "first_event": observer.first_events.summary(),
        "attempts": {
            "total": referee.attempts,
            "per_request": _share(referee.attempts, accepted),
            "requests_by_number": {
                str(number): count for number, count in sorted(observer.attempts_needed.items())
            },
        },
        "shed": dict(sorted(observer.shed.items())),
        "errors": dict(sorted(observer.errors.items())),
        "providers": {up.name: _provider(up, observer, referee.attempts) for up in upstreams},
        "changes_refused": refused,
        "checks": referee.checks,
    }
    return Result(name, summary, observer.series(), tuple(referee.broken), referee.broken_count)


def _provider(upstream: Upstream, observer: Observer, attempts: int) -> dict[str, Any]:
    curves = observer.providers.get(upstream.name)
    return {
        "attempts": upstream.started,
        "share": _share(upstream.started, attempts),
        "peak_in_flight": 0 if curves is None else curves.peak,
        "times_out": 0 if curves is None else curves.times_out,
        "seconds_out": {}
        if curves is None
        else {
            reason: steps * observer.step_seconds
            for reason, steps in sorted(curves.steps_out.items())
        },
    }


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 0.0
