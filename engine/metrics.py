"""The metrics of a router: observable instruments, which cost nothing until they are read.

Every label comes from a closed set: the names in the configuration and words of this
project. Nothing that a caller or a provider writes becomes one. `docs/TELEMETRY.md` lists
them all; a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from engine.resilience.health_status import HealthReason
from engine.running_router import DISABLED
from engine.status import ActorState, ActorStatus, RouterStatus
from engine.telemetry import INSTRUMENTATION

PROVIDER = "gateway.provider.name"

OUT: frozenset[str] = frozenset({
    HealthReason.EJECTED, HealthReason.EJECTED_BY_HAND, HealthReason.PROBING,
    HealthReason.MISCONFIGURED, HealthReason.EXHAUSTED, "half_open",
    ActorState.RESTARTING, ActorState.DOWN,
})  # fmt: skip
"""States in which a provider is out of rotation: it gets a probe, or what nobody else can
take. A pause of seconds that a busy provider asks for (`overloaded`) is none of them."""

LOOKS = 3
"""How often the ledger is read before it is believed that it does not add up."""


class Reading(NamedTuple):
    """One value of an instrument, with its labels."""

    value: float
    labels: dict[str, str]


class Metric(NamedTuple):
    """One instrument.

    Attributes:
        name: Its name.
        kind: `counter`, `up_down_counter` or `gauge`.
        unit: Its unit, in the notation of OpenTelemetry (UCUM).
        read: The values in a snapshot.
        description: What it counts, for people.
    """

    name: str
    kind: str
    unit: str
    read: Callable[[RouterStatus], Iterable[Reading]]
    description: str


def provider_state(actor: ActorStatus) -> str:
    """The one word for a provider's state: the actor's, unless it serves; then its health's.

    One of `ActorState` but `serving`, `disabled`, `HealthReason`, `healthy`, `half_open`,
    `slow_start`.
    """
    if actor.reason == DISABLED:
        return DISABLED
    return actor.health.state if actor.state is ActorState.SERVING else actor.state.value


def _whole(value: Callable[[RouterStatus], float]) -> Callable[[RouterStatus], Iterator[Reading]]:
    def read(status: RouterStatus) -> Iterator[Reading]:
        yield Reading(value(status), {})

    return read


def _each(value: Callable[[ActorStatus], float]) -> Callable[[RouterStatus], Iterator[Reading]]:
    def read(status: RouterStatus) -> Iterator[Reading]:
        for actor in status.actors:
            yield Reading(value(actor), {PROVIDER: actor.name})

    return read


def _outcomes(status: RouterStatus) -> Iterator[Reading]:
    for outcome, count in status.ledger.outcomes.items():
        yield Reading(count, {"gateway.outcome": outcome.value})


def _tokens(status: RouterStatus) -> Iterator[Reading]:
    yield Reading(status.ledger.input_tokens, {"gen_ai.token.type": "input"})
    yield Reading(status.ledger.output_tokens, {"gen_ai.token.type": "output"})


def _failures(status: RouterStatus) -> Iterator[Reading]:
    for actor in status.actors:
        for kind, count in actor.failed.items():
            yield Reading(count, {PROVIDER: actor.name, "error.type": kind})


def _ejected(status: RouterStatus) -> Iterator[Reading]:
    for actor in status.actors:
        state = provider_state(actor)
        yield Reading(int(state in OUT), {PROVIDER: actor.name, "gateway.provider.state": state})


def _seconds_left(status: RouterStatus) -> Iterator[Reading]:
    for actor in status.actors:
        yield Reading(actor.health.seconds_left or 0.0, {PROVIDER: actor.name})


METRICS: tuple[Metric, ...] = (
    Metric(
        "gateway.requests", "counter", "{request}", _outcomes,
        "Requests that have ended, by outcome",
    ),
    Metric(
        "gateway.requests.in_flight", "up_down_counter", "{request}",
        _whole(lambda status: status.ledger.in_flight),
        "Requests that were accepted and have not ended",
    ),
    Metric(
        "gateway.conservation.error", "gauge", "{request}",
        _whole(lambda status: status.ledger.conservation_error),
        "Requests that were lost or settled twice; anything but 0 is a bug",
    ),
    Metric(
        "gateway.attempts", "counter", "{attempt}", _whole(lambda status: status.ledger.attempts),
        "Upstream calls of the requests that have ended",
    ),
    Metric(
        "gateway.attempts.wasted", "counter", "{attempt}",
        _whole(lambda status: status.ledger.wasted),
        "Of those, the ones of no use to the caller that may have been billed",
    ),
    Metric(
        "gateway.tokens", "counter", "{token}", _tokens,
        "Tokens as the providers counted them, by direction",
    ),
    Metric(
        "gateway.provider.picks", "counter", "{request}", _each(lambda actor: actor.picked),
        "How often the provider was picked",
    ),
    Metric(
        "gateway.provider.in_flight", "up_down_counter", "{attempt}",
        _each(lambda actor: actor.in_flight),
        "Attempts that run at the provider, streams included",
    ),
    Metric(
        "gateway.mailbox.depth", "up_down_counter", "{request}",
        _each(lambda actor: actor.mailbox.depth),
        "Requests that wait for the provider",
    ),
    Metric(
        "gateway.mailbox.oldest_age", "gauge", "s", _each(lambda actor: actor.mailbox.oldest_age),
        "How long the oldest of them has waited",
    ),
    Metric(
        "gateway.provider.concurrency.limit", "gauge", "{attempt}",
        _each(lambda actor: actor.concurrency),
        "Attempts that may run at the same time now",
    ),
    Metric(
        "gateway.provider.completed", "counter", "{attempt}", _each(lambda actor: actor.completed),
        "Attempts that succeeded",
    ),
    Metric(
        "gateway.provider.failures", "counter", "{attempt}", _failures,
        "Attempts that failed, by error class",
    ),
    Metric(
        "gateway.provider.ejected", "gauge", "1", _ejected,
        "1 while the provider is out of rotation, else 0; the state says why",
    ),
    Metric(
        "gateway.provider.seconds_left", "gauge", "s", _seconds_left,
        "Seconds until that state ends by itself; 0 if it has no such end",
    ),
    Metric(
        "gateway.provider.ejections", "counter", "{ejection}",
        _each(lambda actor: actor.health.ejections),
        "How often failures ejected the provider",
    ),
    Metric(
        "gateway.provider.share", "gauge", "1", _each(lambda actor: actor.health.share),
        "The part of its weight that counts now: below 1 in slow start",
    ),
    Metric(
        "gateway.provider.restarts", "counter", "{restart}", _each(lambda actor: actor.restarts),
        "How often its actor crashed and was restarted",
    ),
    Metric(
        "gateway.provider.retries_denied", "counter", "{attempt}",
        _each(lambda actor: actor.retries_denied),
        "Further attempts that the retry budget did not allow",
    ),
    Metric(
        "gateway.configuration.generation", "gauge", "{generation}",
        _whole(lambda status: status.generation),
        "Number of the configuration that serves",
    ),
    Metric(
        "gateway.configuration.reloads", "counter", "{reload}",
        _whole(lambda status: status.reloads),
        "Configurations that were applied while running",
    ),
)  # fmt: skip
"""All instruments of a router."""


class Snapshots:
    """One snapshot of the router for all instruments of one collection.

    A snapshot looks at every provider, and is too dear to be taken for each of twenty
    instruments; besides, figures of one instant add up. Nobody says where a collection
    begins: it is where an instrument asks that has seen the snapshot already.

    Args:
        status: Takes a snapshot.
    """

    def __init__(self, status: Callable[[], RouterStatus]) -> None:
        self._take = status
        self._current: RouterStatus | None = None
        self._seen: set[str] = set()

    def of(self, instrument: str) -> RouterStatus:
        """The snapshot for an instrument, which it has not seen yet."""
        if self._current is None or instrument in self._seen:
            self._current = self._settled()
            self._seen = set()
        self._seen.add(instrument)
        return self._current

    def _settled(self) -> RouterStatus:
        """A snapshot that was not taken in the middle of a request's end.

        Exporters read in a thread of their own, while the event loop goes on counting. A
        real error does not go away, so who looks again still sees it.
        """
        status = self._take()
        for _ in range(LOOKS - 1):
            if status.ledger.conservation_error == 0:
                break
            status = self._take()
        return status


def observe_router(
    status: Callable[[], RouterStatus], meter_provider: metrics.MeterProvider | None = None
) -> None:
    """Export what a router tells about itself, read only when it is collected.

    `gateway.conservation.error` is 0 unless a request was lost or settled twice.

    Args:
        status: `Router.status`.
        meter_provider: Where the metrics go; None takes the process's provider.
    """
    meter = metrics.get_meter(INSTRUMENTATION, meter_provider=meter_provider)
    makers = {
        "counter": meter.create_observable_counter,
        "up_down_counter": meter.create_observable_up_down_counter,
        "gauge": meter.create_observable_gauge,
    }
    snapshots = Snapshots(status)
    for metric in METRICS:
        callback = _callback(metric, snapshots)
        makers[metric.kind](metric.name, [callback], metric.unit, metric.description)


def _callback(
    metric: Metric, snapshots: Snapshots
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for value, labels in metric.read(snapshots.of(metric.name)):
            yield Observation(value, labels)

    return observe
