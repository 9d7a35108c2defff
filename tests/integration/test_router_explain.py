"""Each request can tell its story, and each choice in it can be made again from the record."""

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import (
    CHAT,
    Fail,
    Hang,
    Ok,
    Scripted,
    ScriptedProvider,
    make_router,
    until,
)

from engine import (
    BrokenError,
    ConnectError,
    GatewayError,
    OverloadedError,
    Priority,
    Router,
    SilentError,
    TransientError,
)
from engine.choice_replay import repeat_choice
from engine.request_record import Pick, RequestRecord

Virtual = Callable[..., None]


def told(router: Router, request_id: str) -> dict[str, Any]:
    """A story that must be there, in the form in which it leaves the process."""
    story = router.explain(request_id)
    assert story is not None
    plain: dict[str, Any] = json.loads(json.dumps(story))
    return plain


def latest(router: Router, count: int = 1) -> list[RequestRecord]:
    """The newest records."""
    assert router._running is not None
    return router._running.history.latest(count)


async def test_story_of_a_request_that_went_well() -> None:
    """Who could have served, who was picked with which odds, and what it took."""
    provider = ScriptedProvider("a", Ok(tokens=(3, 5)), weight=3)
    other = ScriptedProvider("b", Ok(tokens=(3, 5)), weight=1)
    async with make_router(provider, other) as router:
        response = await router.complete(CHAT, timeout=9, request_id="my-id")
        story = told(router, "my-id")
    assert story["request_id"] == "my-id"
    assert (story["model"], story["operation"], story["streamed"]) == ("m", "chat", False)
    assert (story["outcome"], story["error"], story["attempts"]) == ("completed", None, 1)
    assert (story["generation"], story["seed"], story["priority"]) == (1, 7, "critical")
    assert (story["deadline"], story["provider"]) == (9, response.provider)
    assert story["usage"] == {"input": 3, "output": 5}
    pick, attempts = story["steps"]
    assert (pick["step"], pick["balancer"], pick["resort"]) == ("pick", "WeightedRandom", "healthy")
    assert pick["candidates"] == [
        {"target": "a", "model": None, "weight": 3, "tier": 0},
        {"target": "b", "model": None, "weight": 1, "tier": 0},
    ]
    assert pick["picked"] == response.provider
    assert pick["odds"] == (0.75 if response.provider == "a" else 0.25)
    assert (attempts["step"], attempts["result"], attempts["calls"]) == ("attempts", "answered", 1)
    assert attempts["failures"] == []


def test_story_of_a_failover(virtual_time: Virtual) -> None:
    """Each failed call stands there with class, replay mark and time; so does the next pick."""

    async def main() -> None:
        bad = ScriptedProvider("bad", Fail(SilentError, after=2), weight=1e9)
        good = ScriptedProvider("good", Ok(after=1), weight=1e-9)
        async with make_router(bad, good) as router:
            response = await router.complete(CHAT)
            story = told(router, response.request_id)
        first, failed, second, answered = story["steps"]
        assert (first["picked"], second["picked"]) == ("bad", "good")
        assert failed["failures"] == [
            {"attempt": 1, "class": "silent", "replay": "maybe_accepted", "seconds": 2}
            | {"wasted": True}
        ]
        assert second["passed_over"] in ({"bad": "tried"}, {})
        assert second["at"] == 2
        assert (answered["first"], answered["calls"], answered["upstream_seconds"]) == (2, 1, 1)
        assert (story["attempts"], story["seconds"]) == (2, 3)

    virtual_time(main)


def test_story_tells_the_time_in_the_queue(virtual_time: Virtual) -> None:
    """Waiting in a mailbox is told apart from waiting for the provider."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Ok(after=3), limits={"concurrency": 1})
        async with make_router(provider) as router, anyio.create_task_group() as group:
            group.start_soon(router.complete, CHAT)
            await anyio.sleep(1)
            response = await router.complete(CHAT, priority=Priority.SHEDDABLE)
            story = told(router, response.request_id)
        (_, attempts) = story["steps"]
        assert (attempts["queue_seconds"], attempts["upstream_seconds"]) == (2, 3)
        assert (story["priority"], story["seconds"]) == ("sheddable", 5)

    virtual_time(main)


async def test_story_of_a_failure_names_it_by_its_class() -> None:
    """The error is a word, never a text that may hold what somebody wrote."""
    provider = ScriptedProvider("a", BrokenError("canary-4711"))
    async with make_router(provider) as router:
        with pytest.raises(BrokenError):
            await router.complete(CHAT, request_id="x")
        story = told(router, "x")
    assert (story["outcome"], story["error"]) == ("failed", "broken")
    assert "canary" not in json.dumps(story)


async def test_story_of_a_refusal_names_its_reason() -> None:
    """Also a request that was never sent has a story."""
    provider = ScriptedProvider("a", OverloadedError("no", retry_after=60), max_retries=0)
    async with make_router(provider) as router:
        with pytest.raises(OverloadedError):
            await router.complete(CHAT)
        with pytest.raises(GatewayError):
            await router.complete(CHAT, request_id="x")
        story = told(router, "x")
    assert (story["outcome"], story["error"], story["attempts"]) == ("rejected", "overloaded", 0)


async def test_story_holds_no_prompt() -> None:
    """Nothing that a caller wrote is in it, but the model's name, cut to a length."""
    body = {"model": "m" * 10_000, "messages": [{"role": "user", "content": "canary-4711"}]}
    async with make_router(ScriptedProvider()) as router:
        await router.complete({**body, "user": "canary-4711"}, request_id="x")
        story = told(router, "x")
    assert "canary" not in json.dumps(story)
    assert story["model"] == "m" * 256


async def test_running_request_can_be_explained() -> None:
    """Whoever hangs can be asked for what it waits for."""
    provider = ScriptedProvider("a", then=Hang())
    async with make_router(provider) as router, anyio.create_task_group() as group:

        async def ask() -> None:
            await router.complete(CHAT, request_id="hangs")

        group.start_soon(ask)
        await until(lambda: provider.running == 1)
        story = told(router, "hangs")
        group.cancel_scope.cancel()
    assert story["outcome"] is None
    assert [step["step"] for step in story["steps"]] == ["pick"]
    assert told(router, "hangs")["outcome"] == "cancelled"


async def test_stream_is_explained_when_it_has_ended() -> None:
    """The story of a stream ends with the stream."""
    async with make_router(ScriptedProvider("a", Ok(tokens=(1, 2)))) as router:
        async with router.stream(CHAT, request_id="s") as stream:
            assert told(router, "s")["outcome"] is None
            assert [chunk async for chunk in stream]
        story = told(router, "s")
    assert (story["outcome"], story["streamed"]) == ("completed", True)
    assert story["usage"] == {"input": 1, "output": 2}


async def test_only_the_latest_are_kept() -> None:
    """The ring holds as many as configured; the oldest make room."""
    async with make_router(ScriptedProvider(), history=5) as router:
        for number in range(12):
            await router.complete(CHAT, request_id=str(number))
        kept = [story["request_id"] for story in router.recent_requests(100)]
        assert kept == ["11", "10", "9", "8", "7"]
        assert [story["request_id"] for story in router.recent_requests(2)] == ["11", "10"]
        assert router.explain("6") is None


async def test_no_history_keeps_nothing() -> None:
    """With `history: 0` no record is made at all."""
    async with make_router(ScriptedProvider(), history=0) as router:
        response = await router.complete(CHAT)
        assert router.explain(response.request_id) is None
        assert router.recent_requests(10) == []


# ── the same choice again ────────────────────────────────────────────────────────


def random_step(rng: random.Random) -> Scripted:
    """Mostly answers, and a failure of each kind that leads to another choice."""
    after = rng.choice([0, 0.05, 0.3, 2])
    roll = rng.random()
    if roll < 0.6:
        return Ok(after=after)
    if roll < 0.7:
        hint = rng.choice([None, 0.5, 3])
        return Fail(OverloadedError("busy", retry_after=hint), after=after)
    if roll < 0.73:
        return Hang()
    return Fail(rng.choice([ConnectError, TransientError, SilentError]), after=after)


def random_router(seed: int, rng: random.Random) -> Router:
    """Providers of all kinds, a second tier, hedging, fallbacks and quick ejections."""
    providers = [
        ScriptedProvider(
            name,
            then=lambda: random_step(rng),
            weight=rng.choice([0.5, 1, 1, 3]),
            timeout=3,
            limits={"concurrency": rng.choice([3, 20]), "queue": rng.choice([0, 10])},
            ejection={"base": 0.5, "slow_start": 5, "unproven_concurrency": 2}
            | {"consecutive_failures": 2},
        )
        for name in "abcde"
    ]
    targets = [{"provider": name, "tier": 0 if name < "d" else 1} for name in "abcde"]
    models = [
        {"name": "m", "targets": targets, "hedging": {"delay": 0.1, "max_share": 0.5}}
        | {"fallbacks": {"error": ["n"]}},
        {"name": "n", "targets": [{"provider": "a", "model": x} for x in "xyz"]},
    ]
    return make_router(
        *providers, models=models, seed=seed, history=10_000,
        balancer=["weighted_random", "smooth_weighted", "least_loaded"][seed % 3],
        retries={"max_attempts": 8, "repeat_maybe_accepted": "always"},
    )  # fmt: skip


async def load(router: Router, rng: random.Random) -> None:
    """Some hundred requests over some minutes, in bursts."""

    async def ask() -> None:
        try:
            await router.complete({**CHAT, "model": rng.choice("mmn")}, timeout=10)
        except GatewayError:
            return

    async with router, anyio.create_task_group() as group:
        for _ in range(60):
            for _ in range(rng.choice([1, 2, 10])):
                group.start_soon(ask)
            await anyio.sleep(rng.choice([0, 0.1, 1]))


def picks(router: Router) -> list[Pick]:
    """All recorded choices."""
    return [pick for record in latest(router, 10_000) for pick in record.picks]


def test_each_choice_can_be_made_again_from_its_record(virtual_time: Virtual) -> None:
    """Thousands of choices, under failures, slow starts and all balancers, come out the same."""
    seen: Counter[str] = Counter()
    slow_starts = 0
    for seed in range(12):
        rng = random.Random(seed)
        router = random_router(seed, rng)
        virtual_time(load, router, rng)
        for pick in picks(router):
            assert repeat_choice(pick) == pick.candidates[pick.picked].label
            seen[pick.resort] += 1
            seen[pick.balancer] += 1
            slow_starts += "share" in pick.facts
    print(f"choices made again: {dict(seen)}, with a slow start: {slow_starts}")
    assert min(seen[name] for name in ("WeightedRandom", "SmoothWeighted", "LeastLoaded")) > 500
    assert {"healthy", "unproven", "last_resort", "repeat", "hedge"} <= set(seen)
    assert slow_starts > 100


async def test_choices_on_a_real_clock_can_be_made_again() -> None:
    """The same without virtual time, on every event loop."""
    rng = random.Random(3)
    steps: list[Scripted] = [Ok(), Ok(), Ok(after=0.001), ConnectError]
    ejection = {"base": 0.01, "slow_start": 0.05, "consecutive_failures": 1}
    providers = [
        ScriptedProvider(name, then=lambda: rng.choice(steps), ejection=ejection) for name in "abc"
    ]
    async with make_router(*providers, history=1_000) as router:
        for _ in range(300):
            try:
                await router.complete(CHAT)
            except GatewayError:
                continue
        for pick in picks(router):
            assert repeat_choice(pick) == pick.candidates[pick.picked].label
