"""The metrics of a router, as an exporter reads them, and its snapshot as JSON."""

import json
import pathlib
import random
import re
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.to_thread
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from scripted import CHAT, Events, Fail, Hang, Ok, ScriptedProvider, make_router, until

from engine import (
    ActorState,
    BrokenError,
    ConnectError,
    ExhaustedError,
    GatewayError,
    MisconfiguredError,
    OverloadedError,
    Router,
    SilentError,
    TransientError,
)
from engine.ledger import LedgerStatus, Outcome
from engine.metrics import METRICS, Snapshots, observe_router
from engine.resilience.health import HealthReason
from engine.status import RouterStatus

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "TELEMETRY.md"

STATES = {*HealthReason, *ActorState, "healthy", "half_open", "slow_start", "disabled"}


class Meter:
    """Reads the metrics of one router."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader])

    def observe(self, router: Router) -> None:
        observe_router(router.status, self.provider)

    def read(self) -> dict[str, dict[tuple[Any, ...], float]]:
        """All metrics by name; each maps the values of its labels to its value."""
        data = self.reader.get_metrics_data()
        assert data is not None
        found: dict[str, dict[tuple[Any, ...], float]] = {}
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points: Any = metric.data.data_points
                    found[metric.name] = {
                        tuple(point.attributes.values()): point.value for point in points
                    }
        return found


@pytest.fixture
def meter() -> Iterator[Meter]:
    """A meter of its own for each test."""
    made = Meter()
    yield made
    made.provider.shutdown()


async def ask(router: Router, times: int = 1, **settings: Any) -> None:
    """Make some calls, whatever becomes of them."""
    for _ in range(times):
        try:
            await router.complete(CHAT, **settings)
        except GatewayError:
            continue


@pytest.mark.parametrize("thread", [False, True], ids=["loop", "thread"])
async def test_metrics_of_a_router(thread: bool, meter: Meter) -> None:
    """Every instrument is read when collected, also from the thread of a periodic exporter."""
    provider = ScriptedProvider(
        "a", Ok(tokens=(3, 5)), ConnectError, SilentError, then=Hang(), max_retries=0,
        limits={"concurrency": 1},
    )  # fmt: skip
    async with make_router(provider) as router, anyio.create_task_group() as group:
        meter.observe(router)
        await ask(router, 3)
        group.start_soon(ask, router)
        group.start_soon(ask, router)
        await until(lambda: router.status().actors[0].mailbox.depth == 1)
        await anyio.sleep(0.01)
        found = await anyio.to_thread.run_sync(meter.read) if thread else meter.read()
        group.cancel_scope.cancel()
    age = found.pop("gateway.mailbox.oldest_age")[("a",)]
    # In another thread trio tells no time: the latest known instant stands in.
    assert (0 if thread else 0.005) <= age < 10
    assert found == {
        "gateway.requests": {
            ("completed",): 1, ("failed",): 2, ("truncated",): 0, ("cancelled",): 0,
            ("rejected",): 0,
        },
        "gateway.requests.in_flight": {(): 2},
        "gateway.conservation.error": {(): 0},
        "gateway.attempts": {(): 3},
        "gateway.attempts.wasted": {(): 1},
        "gateway.tokens": {("input",): 3, ("output",): 5},
        "gateway.provider.picks": {("a",): 5},
        "gateway.provider.in_flight": {("a",): 1},
        "gateway.mailbox.depth": {("a",): 1},
        "gateway.provider.concurrency.limit": {("a",): 1},
        "gateway.provider.completed": {("a",): 1},
        "gateway.provider.failures": {("a", "connect"): 1, ("a", "silent"): 1},
        "gateway.provider.ejected": {("a", "healthy"): 0},
        "gateway.provider.seconds_left": {("a",): 0},
        "gateway.provider.ejections": {("a",): 0},
        "gateway.provider.share": {("a",): 1},
        "gateway.provider.restarts": {("a",): 0},
        "gateway.provider.retries_denied": {("a",): 0},
        "gateway.configuration.generation": {(): 1},
        "gateway.configuration.reloads": {(): 0},
    }  # fmt: skip


async def test_conservation_stays_zero_under_a_failing_run(meter: Meter) -> None:
    """At every reading, requests in are requests out and in flight, and labels are words."""
    chance = random.Random(3)
    steps: list[Any] = [
        Ok(after=0.001), Ok(), ConnectError, TransientError, SilentError, BrokenError,
        OverloadedError, Fail(RuntimeError("canary"), after=0.001), Fail(KeyError("canary")),
        ExhaustedError("canary", retry_after=0.05), MisconfiguredError, Events("one"), Hang(),
    ]  # fmt: skip
    providers = [
        ScriptedProvider(name, then=lambda: chance.choice(steps), timeout=0.02,
                         limits={"concurrency": 3, "queue": 3},
                         ejection={"base": 0.02, "max": 0.05})
        for name in ("a", "b", "c")
    ]  # fmt: skip
    readings: list[dict[str, dict[tuple[Any, ...], float]]] = []
    async with make_router(*providers) as router:
        meter.observe(router)

        async def stream() -> None:
            with anyio.move_on_after(chance.uniform(0, 0.05)):
                try:
                    async with router.stream(CHAT) as answer:
                        async for _ in answer:
                            pass
                except GatewayError:
                    return

        async def call() -> None:
            with anyio.move_on_after(chance.uniform(0, 0.1)):
                await ask(router, timeout=0.05)

        async with anyio.create_task_group() as group:
            for _ in range(60):
                for _ in range(3):
                    group.start_soon(call)
                    group.start_soon(stream)
                await anyio.sleep(0.002)
                readings.append(await anyio.to_thread.run_sync(meter.read))
                router_status = router.status().ledger
                assert router_status.conservation_error == 0
        readings.append(meter.read())
    for reading in readings:
        assert reading["gateway.conservation.error"] == {(): 0}
    last = readings[-1]
    assert sum(last["gateway.requests"].values()) == 360
    assert last["gateway.requests.in_flight"] == {(): 0}
    assert last["gateway.requests"]["failed",] > 0
    assert last["gateway.requests"]["completed",] > 0
    states = {state for reading in readings for _, state in reading["gateway.provider.ejected"]}
    assert states <= STATES
    assert len(states) > 2
    assert "canary" not in repr(readings)


async def test_a_provider_that_is_out_is_seen(meter: Meter) -> None:
    """The state, whether it is out, the seconds that are left, and why."""
    bad = ScriptedProvider("bad", then=ConnectError, max_retries=0)
    good, hand = ScriptedProvider("good"), ScriptedProvider("hand")
    async with make_router(bad, good, hand) as router:
        meter.observe(router)
        router.eject("hand")
        while router.status().actors[0].health.state != "ejected":
            await ask(router)
        found = meter.read()
        status = router.status().as_dict()
    assert found["gateway.provider.ejected"] == {
        ("bad", "ejected"): 1, ("good", "healthy"): 0, ("hand", "ejected_by_hand"): 1,
    }  # fmt: skip
    assert found["gateway.provider.ejections"] == {("bad",): 1, ("good",): 0, ("hand",): 0}
    assert 0 < found["gateway.provider.seconds_left"]["bad",] <= 6
    assert found["gateway.provider.seconds_left"]["hand",] == 0
    shown = {actor["name"]: actor for actor in json.loads(json.dumps(status))["actors"]}
    health = shown["bad"]["health"]
    assert (shown["bad"]["state"], shown["bad"]["reason"]) == ("serving", health["reason"])
    assert health["state"] == "ejected"
    assert health["reason"] == "5 failures in a row, the last: connect"
    assert 0 < health["seconds_left"] <= 6
    assert shown["hand"]["health"]["reason"] == "by hand"
    assert shown["hand"]["health"]["seconds_left"] is None
    assert shown["good"]["health"] | {"share": 1.0, "state": "healthy"} == shown["good"]["health"]


async def test_disabled_and_reloaded_are_seen(meter: Meter) -> None:
    """A provider that was switched off says so, and each change counts."""
    async with make_router(ScriptedProvider("a"), ScriptedProvider("b")) as router:
        meter.observe(router)
        await router.set_enabled("a", False)
        found = meter.read()
    assert found["gateway.provider.ejected"] == {("a", "disabled"): 0, ("b", "healthy"): 0}
    assert found["gateway.configuration.generation"] == {(): 2}
    assert found["gateway.configuration.reloads"] == {(): 1}


def ledger(accepted: int, settled_twice: int = 0) -> RouterStatus:
    """A snapshot with so many requests accepted and none that ended."""
    counts = LedgerStatus(accepted, 0, dict.fromkeys(Outcome, 0), settled_twice)
    return RouterStatus(True, counts, (), 1)


def test_one_snapshot_serves_a_whole_collection() -> None:
    """All instruments of a collection see one instant, and the next collection another."""
    taken: list[int] = []

    def take() -> RouterStatus:
        taken.append(1)
        return ledger(0)

    snapshots = Snapshots(take)
    for collection in range(3):
        first = [snapshots.of(metric.name) for metric in METRICS]
        assert len({id(status) for status in first}) == 1
        assert len(taken) == collection + 1


def test_ledger_that_was_read_in_the_middle_is_read_again() -> None:
    """A request that is just being counted is no error."""
    looks = iter([ledger(1), ledger(0)])
    assert Snapshots(lambda: next(looks)).of("x").ledger.conservation_error == 0


def test_real_conservation_error_is_told() -> None:
    """What stays wrong is shown."""
    assert Snapshots(lambda: ledger(0, settled_twice=2)).of("x").ledger.conservation_error == 2


def test_every_instrument_is_documented() -> None:
    """The table of the documentation has each instrument with its unit and no other."""
    rows = re.findall(
        r"^\| `(gateway\.[a-z_.]+)` \| (\w+) \| `?([^`|]+?)`? \|",
        DOCUMENT.read_text(),
        re.MULTILINE,
    )
    kinds = {"counter": "counter", "up_down_counter": "updown", "gauge": "gauge"}
    assert rows == [(metric.name, kinds[metric.kind], metric.unit) for metric in METRICS]
