"""Cancellation at every step: whenever a caller leaves, nothing is lost and nothing leaks.

Each scenario is run once to count the steps that the event loop makes for it, and then once
for each of them with the caller leaving right there. What must hold after each: the caller
and the ledger tell the same story (I1, I2), nothing was sent after the ending or after the
deadline (I3), and tasks, places, probes, timers and repeats are all given back (I4).
"""

from __future__ import annotations

import asyncio  # tasks are counted, and cancelled as asyncio's own users do it
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import sniffio
import trio.lowlevel
from fault_table import Row, shows
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from scripted import CHAT, Events, Fail, Hang, Ok, Scripted, ScriptedProvider, make_router
from stepping import Run, Steps, cancellable, run_on_asyncio, run_on_trio

from engine import (
    ConnectError,
    ContextLengthError,
    GatewayError,
    Router,
    TransientError,
)
from engine.operations import Operation

WAYS: dict[str, tuple[Run, bool]] = {
    "asyncio scope": (run_on_asyncio, False),
    "asyncio task": (run_on_asyncio, True),
    "trio scope": (run_on_trio, False),
}

Ask = Callable[[Router], Coroutine[Any, Any, str]]

STREAMED = Events(0.05, "one", 0.05, "two", 0.05, "three")


class Crash(BaseException):
    """What no adapter should raise."""


def whole(model: str = "m", **arguments: Any) -> Ask:
    """A caller who wants a whole answer."""

    async def ask(router: Router) -> str:
        try:
            await router.complete({**CHAT, "model": model}, **arguments)
        except GatewayError:
            return "failed"
        return "completed"

    return ask


def streamed(model: str = "m", **arguments: Any) -> Ask:
    """A caller who reads a stream to its end."""

    async def ask(router: Router) -> str:
        try:
            async with router.stream({**CHAT, "model": model}, **arguments) as stream:
                async for _ in stream:
                    pass
        except GatewayError:
            return "failed"
        return "completed"

    return ask


@dataclass(frozen=True)
class Scenario:
    """One way that a request may take.

    Attributes:
        victim: The caller who leaves at some step.
        scripts: What each provider plays, the one that is asked first in front.
        settings: Of the configuration; by default each provider stands in a tier of its own.
        provider: Settings of every provider.
        model: Further settings of the model.
        beside: A caller who came before and stays.
        before: What is done before anybody calls.
        heard: How it ends when nobody leaves.
        shared: Whether both callers share one request, by their key.
        failed_before: Requests that have failed before.
        breaks: Whether it may have broken before the caller leaves, who has not read so far.
    """

    victim: Ask
    scripts: tuple[tuple[Scripted, ...], ...]
    settings: dict[str, Any] = field(default_factory=dict)
    provider: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    beside: Ask | None = None
    before: Callable[[Router], Awaitable[None]] | None = None
    heard: str = "completed"
    shared: bool = False
    failed_before: int = 0
    breaks: bool = False


async def until_half_open(router: Router) -> None:
    """Fail once, and wait until the provider is to be tried out."""
    assert await whole()(router) == "failed"
    await anyio.sleep(2)


ONE_PLACE = {"limits": {"concurrency": 1, "queue": 8}}
KEYED = {"idempotency_key": "k"}

SCENARIOS = {
    "queued": Scenario(whole(), ((Ok(after=0.1), Ok(after=0.1)),), provider=ONE_PLACE,
                       beside=whole()),
    "running": Scenario(whole(), ((Ok(after=0.1),),)),
    "running_with_a_slow_clean_up": Scenario(
        whole(timeout=0.3), ((Hang(clean_up=0.2),),), heard="failed"),
    "past_its_deadline": Scenario(whole(timeout=0.2), ((Hang(),),), heard="failed"),
    "failing_over": Scenario(whole(), ((ConnectError("no"),), (Ok(after=0.1),))),
    "queued_as_a_repeat": Scenario(
        whole(), ((ConnectError("no"),), (Ok(after=0.1), Ok(after=0.1))), provider=ONE_PLACE,
        beside=whole("n"),
        settings={"models": [
            {"name": "m", "targets": [{"provider": "a"}, {"provider": "b", "tier": 1}]},
            {"name": "n", "targets": [{"provider": "b"}]},
        ]}),
    "failing_over_from_a_crash": Scenario(whole(), ((Fail(Crash, after=0.1),), (Ok(after=0.1),))),
    "backing_off": Scenario(whole(), ((TransientError("no"), ConnectError("no"), Ok(after=0.1)),)),
    "falling_back": Scenario(
        whole(), ((ContextLengthError("long"),), (Ok(after=0.1),)),
        settings={"models": [
            {"name": "m", "targets": [{"provider": "a"}], "fallbacks": {"context_length": ["n"]}},
            {"name": "n", "targets": [{"provider": "b"}]},
        ]}),
    "hedged": Scenario(whole(), ((Ok(after=2),), (Ok(after=0.3),)),
                       model={"hedging": {"delay": 0.1, "max_share": 1}}),
    "hedged_stream": Scenario(streamed(), ((Events(2, "slow"),), (STREAMED,)),
                              model={"hedging": {"delay": 0.1, "max_share": 1}}),
    "streaming": Scenario(streamed(), ((STREAMED,),)),
    "streaming_after_a_failure": Scenario(streamed(), ((ConnectError("no"),), (STREAMED,))),
    "stream_that_breaks": Scenario(
        streamed(), ((Events("one", 0.1, TransientError("cut")),),), heard="failed",
        breaks=True),
    "assembling_a_stream": Scenario(whole(), ((STREAMED,),), model={"upstream_streaming": "auto"}),
    "probing": Scenario(
        whole(), ((ConnectError("no"), Ok(after=0.1)),),
        provider={"ejection": {"consecutive_failures": 1, "base": 1, "max": 1}, "max_retries": 0},
        before=until_half_open, failed_before=1),
    "first_of_a_key": Scenario(whole(**KEYED), ((Ok(after=0.1),),), shared=True),
    "joining_a_key": Scenario(whole(**KEYED), ((Ok(after=0.1),),), beside=whole(**KEYED),
                              shared=True),
    "first_stream_of_a_key": Scenario(streamed(**KEYED), ((STREAMED,),), shared=True),
    "joining_a_stream_of_a_key": Scenario(streamed(**KEYED), ((STREAMED,),),
                                          beside=streamed(**KEYED), shared=True),
}  # fmt: skip


def living_tasks(router: Router) -> int:
    """Tasks of the event loop, less the workers, of which some stay for the next request."""
    workers = sum(actor.workers for actor in router.status().actors)
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_statistics().tasks_living - workers
    return len(asyncio.all_tasks()) - workers


class Sweep:
    """One run of a scenario.

    Args:
        scenario: What is played.
        steps: When the caller leaves.
        native: Whether its task is cancelled, and not a scope around it.

    Attributes:
        heard: How it ended for the caller who may leave.
    """

    def __init__(self, scenario: Scenario, steps: Steps, *, native: bool) -> None:
        self.heard = ""
        self._scenario = scenario
        self._steps = steps
        self._native = native
        self._others: list[str] = []
        self._providers = [
            ScriptedProvider(name, *script, **scenario.provider)
            for name, script in zip("abc", scenario.scripts, strict=False)
        ]

    async def play(self) -> None:
        """Run it and check what is left of it."""
        scenario, names = self._scenario, [provider.name for provider in self._providers]
        targets = [{"provider": name, "tier": tier} for tier, name in enumerate(names)]
        if "hedging" in scenario.model:
            # Side by side, and yet the first one is asked first.
            targets = [
                {"provider": n, "weight": w} for n, w in zip(names, (1e9, 1e-9), strict=True)
            ]
        models = [{"name": "m", "targets": targets, **scenario.model}]
        async with make_router(*self._providers, **({"models": models} | scenario.settings)) as r:
            if scenario.before is not None:
                await scenario.before(r)
            tasks = living_tasks(r)
            async with anyio.create_task_group() as group:
                if scenario.beside is not None:
                    group.start_soon(self._stay, r)
                    await anyio.sleep(0.02)
                self.heard = await cancellable(
                    lambda: scenario.victim(r), self._steps, native=self._native
                )
                ended = anyio.current_time()
            # A caller who leaves is let go at once, and the call made for it within a second.
            await anyio.sleep(1)
            self._check(r, ended)
            assert living_tasks(r) == tasks
            await self._check_that_it_serves(r)
        for actor in r.status().actors:
            assert (actor.workers, actor.in_flight) == (0, 0)

    async def _stay(self, router: Router) -> None:
        assert self._scenario.beside is not None
        self._others.append(await self._scenario.beside(router))

    def _check(self, router: Router, ended: float) -> None:
        status = router.status()
        assert (status.ledger.conservation_error, status.ledger.in_flight) == (0, 0)
        told = Counter({str(o.value): n for o, n in status.ledger.outcomes.items() if n})
        told["failed"] += told.pop("truncated", 0)
        heard = Counter([self.heard, *self._others, *["failed"] * self._scenario.failed_before])
        heard.pop("never began", None)
        if self._scenario.breaks and told["failed"]:
            heard = Counter(["failed"])
        if not self._scenario.shared:
            assert +told == +heard
        # One request for both, which goes on while anybody wants its answer.
        assert self._others == ["completed"] * (self._scenario.beside is not None)
        for provider in self._providers:
            assert provider.running == 0
            for call in provider.calls:
                assert not call.streamed or call.closed
                if not self._scenario.shared and self._scenario.beside is None:
                    assert call.at <= ended
        running: Any = router._running
        assert running.idempotency.status().running == 0
        assert len(running.acceptance._engine.wheel) == 0
        assert running._permits.shared.repeats == 0
        for actor in running.reloader.current.actors.values():
            assert (actor.in_flight, actor.queued, actor.budget.repeats) == (0, 0, 0)
            mailbox = actor.mailbox.status(anyio.current_time())
            assert mailbox.offered == mailbox.taken + mailbox.withdrawn

    async def _check_that_it_serves(self, router: Router) -> None:
        """No place was lost: everybody can be asked again, once the worst is over."""
        await anyio.sleep(30)
        running: Any = router._running
        for actor in running.reloader.current.actors.values():
            assert actor.unavailable(Operation.CHAT) is None
        for provider in self._providers:
            provider._script.clear()
        with anyio.fail_after(1):
            assert (await router.complete(CHAT)).text == "hello"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SCENARIOS)
@shows(Row(
    "N9", "the caller leaves at any step of a request's way", "nothing: it has left", "nothing",
    "maybe, if a call was under way", "not at all",
    "Tried at every step of the event loop: queued, running, failing over, backing off, hedged, "
    "falling back, streaming, sharing a key. Whoever shares the answer gets it.",
))  # fmt: skip
def test_n9_cancelled_at_every_step(name: str, way: str) -> None:
    """N9: wherever a request is cancelled, it ends once, and everything is given back."""
    run, native = WAYS[way]
    scenario = SCENARIOS[name]
    steps = Steps()
    sweep = Sweep(scenario, steps, native=native)
    run(sweep.play, steps)
    assert sweep.heard == scenario.heard
    total = steps.count
    endings = []
    for at in range(total):
        steps = Steps(at)
        sweep = Sweep(scenario, steps, native=native)
        try:
            run(sweep.play, steps)
        except BaseException as error:
            error.add_note(f"{name} cancelled after {at} of {total} steps ({way})")
            raise
        # The order of trio's tasks is not quite the same each time, nor is their number.
        assert steps.acted or run is run_on_trio
        endings.append(sweep.heard)
    assert set(endings) <= {"cancelled", "never began", scenario.heard}
    assert endings[1] == "cancelled"
    # Only near its end may a cancellation come too late.
    assert endings.count("cancelled") >= total / 2


# ── the one who serves is gone, and not the one who asked ─────────────────────────


class Handover:
    """A request whose actor is retired at some step, with all its workers.

    Args:
        steps: When.
        streamed: Whether it is a stream.

    Attributes:
        heard: How it ended for its caller.
    """

    def __init__(self, steps: Steps, *, streamed: bool) -> None:
        self.heard = ""
        self._steps = steps
        self._streamed = streamed

    async def play(self) -> None:
        """Run it and check that nothing is lost."""
        first = ScriptedProvider("a", then=STREAMED if self._streamed else Ok(after=0.1))
        second = ScriptedProvider("b")
        targets = [{"provider": "a"}, {"provider": "b", "tier": 1}]
        async with (
            make_router(first, second, models=[{"name": "m", "targets": targets}]) as router,
            anyio.create_task_group() as group,
        ):
            # A worker that waits, so that the envelope is handed to it and not to a new one.
            async with router.stream(CHAT) as stream:
                async for _ in stream:
                    pass
            running: Any = router._running
            actor = running.reloader.current.actors["a"]
            gone = anyio.Event()

            async def retire() -> None:
                await gone.wait()
                await running.supervisor.retire(actor)

            group.start_soon(retire)
            await anyio.sleep(0.01)
            self._steps.arm(gone.set)
            self.heard = await (streamed() if self._streamed else whole())(router)
            self._steps.disarm()
            group.cancel_scope.cancel()
        status = router.status()
        assert (status.ledger.conservation_error, status.ledger.in_flight) == (0, 0)
        assert (first.running, second.running) == (0, 0)
        assert actor.in_flight == actor.queued == 0


@pytest.mark.parametrize("loop", [run_on_asyncio, run_on_trio])
@pytest.mark.parametrize("streamed", [False, True])
@shows(Row(
    "N7", "a worker is cancelled as a request is handed to it", "the answer of another provider",
    "elsewhere; where repeating is allowed if a call was under way", "maybe, if a call was under "
    "way", "not at all",
))  # fmt: skip
def test_n7_handed_over_as_the_consumer_is_cancelled(loop: Run, *, streamed: bool) -> None:
    """N7: an envelope in the hands of a worker that is cancelled is answered all the same."""
    steps = Steps()
    handover = Handover(steps, streamed=streamed)
    loop(handover.play, steps)
    assert handover.heard == "completed"
    heard = Counter[str]()
    for at in range(steps.count):
        steps = Steps(at)
        handover = Handover(steps, streamed=streamed)
        loop(handover.play, steps)
        heard[handover.heard] += 1
    # A stream is not asked for twice once it may have been executed, nor after its commit.
    assert heard["completed"] >= 2
    assert set(heard) <= ({"completed", "failed"} if streamed else {"completed"})


LOOPS = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True}), ("trio", {})],
    ids=["asyncio", "uvloop", "trio"],
)


@LOOPS
@shows(Row(
    "N8", "the caller is cancelled as its request is queued", "nothing: it has left", "nothing",
    "nothing", "not at all", "Offering never waits: a request is in the mailbox, or it is not.",
))  # fmt: skip
async def test_n8_producer_cancelled_during_the_offer() -> None:
    """N8: a caller that is cancelled before it asks leaves no trace in mailbox and provider."""
    provider = ScriptedProvider("a", Hang(), limits={"concurrency": 1, "queue": 1})
    async with make_router(provider) as router, anyio.create_task_group() as group:
        group.start_soon(whole("any"), router)
        await anyio.wait_all_tasks_blocked()
        for _ in range(20):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await router.complete(CHAT)
            assert scope.cancelled_caught
        mailbox = router.status().actors[0].mailbox
        # Each of the twenty had found the one place of the mailbox free.
        assert (mailbox.depth, mailbox.refused, mailbox.taken) == (0, 0, 0)
        assert mailbox.offered == mailbox.withdrawn == 20
        group.cancel_scope.cancel()
    assert len(provider.calls) == 1
    assert router.status().ledger.conservation_error == 0


@LOOPS
@shows(Row(
    "N27", "places and repeats held by callers who leave", "nothing: they have left", "nothing",
    "maybe", "not at all", "All are given back: afterwards as many can be served as before.",
))  # fmt: skip
async def test_n27_permits_return() -> None:
    """N27: after three hundred callers have left, every place is free and none is double."""
    limits = {"concurrency": 4, "queue": 4}
    provider = ScriptedProvider("a", then=Hang(), limits=limits)
    async with make_router(provider) as router:
        for number in range(300):
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    for _ in range(8):
                        group.start_soon(whole("any"), router)
                    for _ in range(number % 5):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
        await anyio.wait_all_tasks_blocked()
        actor = router.status().actors[0]
        assert (actor.in_flight, actor.mailbox.depth, provider.running) == (0, 0, 0)
        provider._then = Ok(after=0.01)
        async with anyio.create_task_group() as group:
            for _ in range(8):
                group.start_soon(whole("any"), router)
        assert provider.peak == 4
        assert router.status().ledger.conservation_error == 0


@pytest.mark.parametrize("loop", [run_on_asyncio, run_on_trio])
@shows(Row(
    "N29", "a stream that is neither read on nor closed", "nothing: nobody reads", "nothing",
    "yes", "not at all", "It is cut when its deadline has passed, and counts as truncated.",
))  # fmt: skip
def test_n29_abandoned_stream(
    loop: Run, tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """N29: a stream that is dropped on the floor is closed by its worker, with one ending."""
    endless = Events(*["word"] * 100_000)

    async def main() -> None:
        provider = ScriptedProvider("a", endless)
        async with make_router(provider, tracer_provider=tracer_provider) as router:
            opening = router.stream(CHAT, timeout=10)
            stream = await opening.__aenter__()
            assert (await anext(stream)).text == "word"
            del stream, opening
            await anyio.sleep(9)
            # What is read ahead is bounded, and nobody takes it.
            assert (provider.running, router.status().ledger.in_flight) == (1, 1)
            await anyio.sleep(1.2)
            assert (provider.running, router.status().ledger.in_flight) == (0, 0)
            assert provider.calls[0].closed
            outcomes = router.status().ledger.outcomes
            assert {str(k.value): n for k, n in outcomes.items() if n} == {"truncated": 1}

    loop(main, Steps())
    assert sorted(span.name for span in spans.get_finished_spans()) == ["attempt a", "chat m"]
