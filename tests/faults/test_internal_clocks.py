"""The world around the engine: its clock, its event loop, its process, its chance, its labels."""

from __future__ import annotations

import asyncio  # event loops that end, one after the other
import itertools
import json
import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from fault_table import Row, shows
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from scripted import CHAT, Instant, Ok, ScriptedProvider, make_router

from adapters.providers.retry_after import MAX_RETRY_AFTER, parse_retry_after
from adapters.simulation.random_scenarios import random_simulation
from adapters.simulation.result import to_json
from adapters.simulation.simulation import simulate
from engine import GatewayError, ModelNotFoundError, Router, RouterClosedError
from engine.metrics import observe_router

NOW = datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC)
"""A second before the clocks of Europe go forward."""


@shows(Row(
    "N12", "the wall clock jumps", "the answer", "not needed", "the answer", "a success",
    "Only `Retry-After` dates are compared with it, against the answer's own `Date` where there is "
    "one; they close a provider for 300 s at most.",
))  # fmt: skip
def test_n12_wall_clock_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """N12: with a wall clock that jumps by days, all decisions are the same, byte for byte."""
    calm = to_json([simulate(random_simulation(seed)) for seed in range(3)])
    jumps = itertools.cycle([0.0, 3_600.0, -3_600.0, 86_400.0, -86_400.0, 1.0])
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int((true() + next(jumps)) * 1e9))
    assert to_json([simulate(random_simulation(seed)) for seed in range(3)]) == calm


@pytest.mark.parametrize("jump", [timedelta(hours=h) for h in (0, 1, -1, 24, -24, 10_000)])
def test_n12_dates_are_clamped(jump: timedelta) -> None:
    """N12: a date means the same by a wrong clock, and alone it never closes for long."""
    until = (NOW + timedelta(seconds=20)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    since = NOW.strftime("%a, %d %b %Y %H:%M:%S GMT")
    with_date = {"retry-after": until, "date": since}
    assert parse_retry_after(with_date, now=lambda: NOW + jump) == 20
    alone = parse_retry_after({"retry-after": until}, now=lambda: NOW + jump)
    assert alone is not None
    assert 0 <= alone <= MAX_RETRY_AFTER


def in_a_child(work: Callable[[], Any]) -> Any:
    """What a function returns in a process that is forked from this one, as JSON."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(writer, json.dumps(work()).encode())
            code = 0
        finally:
            # Without the clean-up of the test run, which is the parent's.
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(text)


def picks_of(router: Router) -> list[str]:
    """Enter a router, and whom it picks; then the ids that it gives."""

    async def main() -> list[str]:
        async with router:
            answers = [await router.complete(CHAT) for _ in range(64)]
        return [each.provider for each in answers] + [answers[0].request_id]

    return asyncio.run(main())


@shows(Row(
    "N24", "the process is forked after the router was made", "the answer", "not needed",
    "the answer", "a success", "A router that was made before the fork is entered in each child, "
    "with tasks, connections, ids and chance of its own. One that was entered already serves "
    "only where it was entered; `serve` itself never forks.",
))  # fmt: skip
def test_n24_fork_after_start() -> None:
    """N24: children that were forked from one process serve, each with ids of its own."""
    router = make_router(*[ScriptedProvider(name, then=Instant()) for name in "ab"], seed=None)
    children = [in_a_child(lambda: picks_of(router)) for _ in range(3)]
    assert all(set(child[:64]) == {"a", "b"} for child in children)
    assert len({child[64] for child in children}) == 3
    assert set(picks_of(router)[:64]) == {"a", "b"}


@shows(Row(
    "N25", "many processes with one configuration", "the answer", "not needed", "the answer",
    "a success", "Without a `seed` each draws its own when it starts, forked or not.",
))  # fmt: skip
def test_n25_seeds_differ() -> None:
    """N25: processes that share everything, even the forked memory, choose independently."""
    router = make_router(*[ScriptedProvider(name, then=Instant()) for name in "ab"], seed=None)
    children = [tuple(in_a_child(lambda: picks_of(router))[:64]) for _ in range(3)]
    assert len(set(children)) == 3
    seeded = [
        make_router(*[ScriptedProvider(name, then=Instant()) for name in "ab"], seed=5)
        for _ in range(2)
    ]
    assert picks_of(seeded[0])[:64] == picks_of(seeded[1])[:64]


@shows(Row(
    "N26", "a router is used on another event loop", "an error at once", "nothing", "nothing",
    "not at all", "A router belongs to the loop it was entered "
    "on; make one for each.",
))  # fmt: skip
def test_n26_event_loop_changed() -> None:
    """N26: after its loop has ended, a router answers with an error, and does not hang."""
    router = make_router(ScriptedProvider("a", then=Ok(after=0.01)))

    async def enter() -> str | None:
        await router.__aenter__()
        return (await router.complete(CHAT)).text

    async def ask() -> None:
        with anyio.fail_after(5):
            await router.complete(CHAT)

    # The first loop ends, and with it all tasks of a router that nobody has left.
    assert asyncio.run(enter()) == "hello"
    with pytest.raises(GatewayError):
        asyncio.run(ask())


async def test_n26_entered_once() -> None:
    """N26: a router that was left cannot be entered again, on this loop or another."""
    router = make_router(ScriptedProvider("a"))
    async with router:
        await router.complete(CHAT)
    with pytest.raises(RouterClosedError):
        await router.complete(CHAT)
    with pytest.raises(RuntimeError, match="once only"):
        await router.__aenter__()


@pytest.mark.parametrize("configured", [False, True])
@shows(Row(
    "N30", "callers make up model names", "404 `model_not_found` where models are configured, else "
    "whatever the provider says", "nothing", "nothing", "not at all",
    "No metric has a label that a caller chooses, and nothing is kept by such a name.",
))  # fmt: skip
async def test_n30_label_explosion(*, configured: bool) -> None:
    """N30: a thousand model names make no time series, and no memory of them is kept."""
    provider = ScriptedProvider("a", then=Instant())
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    models = [{"name": "known", "targets": [{"provider": "a"}]}] if configured else []
    async with make_router(provider, models=models) as router:
        observe_router(router.status, meters)
        await ask_for(router, "known")
        before = series(reader)
        running: Any = router._running
        plans = len(running.reloader.current.plans)
        for number in range(1_000):
            await ask_for(router, f"made-up-{number}-{random.Random(number).random()}")
        after = series(reader)
        assert len(running.reloader.current.plans) == plans
    meters.shutdown()
    # The outcome `rejected` may be new; names of models are not.
    assert len(after) <= len(before) + 1
    assert "made-up" not in str(after)


async def ask_for(router: Router, model: str) -> None:
    """Ask, and take whatever comes."""
    try:
        await router.complete({**CHAT, "model": model})
    except ModelNotFoundError:
        return


def series(reader: InMemoryMetricReader) -> set[tuple[str, str]]:
    """Name and labels of each time series."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        (metric.name, str(sorted((point.attributes or {}).items())))
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
