"""`Observer`: what a simulation looks like from outside, second by second; bounded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from adapters.simulation.histogram import Histogram
from engine.errors import GatewayError, ProviderError
from engine.ledger import Outcome
from engine.resilience.health_status import HealthReason
from engine.status import ActorState

if TYPE_CHECKING:
    from adapters.simulation.requests import Asked
    from adapters.simulation.upstream import Upstream
    from engine.status import ActorStatus, RouterStatus

MAX_POINTS = 3_600
"""Points of a curve; a longer scenario gets longer steps."""

MAX_WORDS = 50
"""Different error codes that are counted; they are few unless somebody makes them up."""

PERCENTILES = (0.5, 0.95, 0.99)

# A provider that is unproven or starts slowly gets requests; one that is half open gets one.
_OUT = {*(reason.value for reason in HealthReason), "half_open"} - {HealthReason.UNPROVEN.value}

Curve = list[float]


class ProviderCurves:
    """One provider over time.

    Attributes:
        attempts: Calls that began, for each step.
        in_flight: Calls that were open at the end of each step.
        queue: Requests in the mailbox at the end of each step.
        out: 1 where it could not be picked at the end of a step, else 0.
        weight: Its weight at the end of each step.
        times_out: How often it was taken out.
        steps_out: Steps in which it was out, by reason.
        peak: Most calls that were open at the end of a step.
    """

    def __init__(self, steps: int) -> None:
        self.attempts: Curve = [0.0] * steps
        self.in_flight: Curve = [0.0] * steps
        self.queue: Curve = [0.0] * steps
        self.out: Curve = [0.0] * steps
        self.weight: Curve = [0.0] * steps
        self.times_out = 0
        self.steps_out: Counter[str] = Counter()
        self.peak = 0
        self._started = 0
        self._was_out = False

    def step(self, upstream: Upstream, actor: ActorStatus | None) -> None:
        """Note how it stands at the end of a step."""
        self.attempts.append(upstream.started - self._started)
        self._started = upstream.started
        self.in_flight.append(upstream.running)
        self.peak = max(self.peak, upstream.running)
        self.queue.append(0 if actor is None else actor.mailbox.depth)
        self.weight.append(0.0 if actor is None else actor.weight)
        reason = "removed" if actor is None else _reason(actor)
        self.out.append(1 if reason else 0)
        if reason:
            self.steps_out[reason] += 1
            if not self._was_out:
                self.times_out += 1
        self._was_out = bool(reason)

    def as_dict(self) -> dict[str, Any]:
        """The curves as plain JSON types."""
        return {
            "attempts": self.attempts,
            "in_flight": self.in_flight,
            "queue": self.queue,
            "out": self.out,
            "weight": self.weight,
        }


def _reason(actor: ActorStatus) -> str | None:
    """Why a provider gets no share of the requests, in one word; None if it gets one."""
    if actor.state is not ActorState.SERVING:
        return actor.state.value
    return actor.health.state if actor.health.state in _OUT else None


class Observer:
    """Counts endings as they come, and draws a line under them at each step.

    Args:
        duration: How long requests arrive, seconds.
    """

    def __init__(self, duration: float) -> None:
        self.step_seconds = float(max(1, math.ceil(duration / MAX_POINTS)))
        self.outcomes: Counter[Outcome] = Counter()
        self.turned_away = 0
        self.shed: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latency = Histogram()
        self.first_events = Histogram()
        self.attempts_needed: Counter[int] = Counter()
        self.curves: dict[str, Curve] = {
            name: []
            for name in ("arrivals", *Outcome, "attempts", "in_flight", "p50", "p95", "p99")
        }
        self.providers: dict[str, ProviderCurves] = {}
        self._before: Counter[str] = Counter()
        self._latencies: list[float] = []

    # ── as it happens ────────────────────────────────────────────────────────────

    def ended(self, asked: Asked, outcome: Outcome | None, error: GatewayError | None) -> None:
        """A request has ended; None if the router had closed its door."""
        if outcome is None:
            self.turned_away += 1
            return
        self.outcomes[outcome] += 1
        self.attempts_needed[asked.attempts] += 1
        if outcome is Outcome.COMPLETED:
            assert asked.ended is not None
            seconds = asked.ended - asked.begun
            self.latency.add(seconds)
            self._latencies.append(seconds)
        elif error is not None:
            words = self.shed if outcome is Outcome.REJECTED else self.errors
            word = _word(error)
            if word in words or len(words) < MAX_WORDS:
                words[word] += 1

    def first_event(self, seconds: float) -> None:
        """A stream has given its first event."""
        self.first_events.add(seconds)

    # ── at each step ─────────────────────────────────────────────────────────────

    def step(self, status: RouterStatus, upstreams: Iterable[Upstream], *, attempts: int) -> None:
        """Draw a line."""
        curves, before = self.curves, self._before
        totals = {"arrivals": status.ledger.accepted, "attempts": attempts}
        totals.update({outcome: self.outcomes[outcome] for outcome in Outcome})
        for name, total in totals.items():
            curves[name].append(total - before[name])
        self._before = Counter(totals)
        curves["in_flight"].append(status.ledger.in_flight)
        self._latencies.sort()
        for share in PERCENTILES:
            curves[f"p{share * 100:.0f}"].append(_percentile(self._latencies, share))
        self._latencies.clear()
        actors = {actor.name: actor for actor in status.actors}
        done = len(curves["arrivals"]) - 1
        for upstream in upstreams:
            provider = self.providers.get(upstream.name)
            if provider is None:
                provider = self.providers[upstream.name] = ProviderCurves(done)
            provider.step(upstream, actors.get(upstream.name))

    def series(self) -> dict[str, Any]:
        """All curves as plain JSON types."""
        return {
            "step_seconds": self.step_seconds,
            **{str(name): curve for name, curve in self.curves.items()},
            "providers": {name: curves.as_dict() for name, curves in self.providers.items()},
        }


def _percentile(ordered: list[float], share: float) -> float:
    if not ordered:
        return 0.0
    return round(ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)], 6)


def _word(error: GatewayError) -> str:
    if isinstance(error, ProviderError):
        return str(error.error_class.value)
    return error.code or type(error).__name__
