"""One actor on its own: workers, mailbox, state; seen through the router elsewhere."""

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from scripted import CHAT, Fail, Hang, Ok, ScriptedProvider, until

from engine import (
    ActorCrashedError,
    ActorState,
    ChatRequest,
    ConnectError,
    MailboxFullError,
    Operation,
    OverloadedError,
    Response,
    RouterClosedError,
)
from engine.actor import IDLE_WORKERS, ProviderActor
from engine.envelope import Envelope
from engine.resilience.deadline import DeadlineWheel
from engine.telemetry import Telemetry


class Bench:
    """An actor with its wheel, and envelopes for it."""

    def __init__(self, provider: ScriptedProvider) -> None:
        self.wheel = DeadlineWheel(anyio.current_time)
        self.actor = ProviderActor(
            provider, clock=anyio.current_time, rng=random.Random(1), wheel=self.wheel,
            telemetry=Telemetry(),
        )  # fmt: skip

    def offer(self, *, repeats: int = 0) -> Envelope:
        """Give the actor a request."""
        now = anyio.current_time()
        envelope = Envelope(
            ChatRequest.from_body(CHAT), "m", "id", config=self.actor.config, wheel=self.wheel,
            deadline=now + 100, now=now, repeats=repeats,
        )  # fmt: skip
        self.actor.offer(envelope)
        return envelope


@asynccontextmanager
async def running(provider: ScriptedProvider) -> AsyncGenerator[Bench, None]:
    """An actor that serves."""
    bench = Bench(provider)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.wheel.run)
        group.start_soon(bench.actor.run)
        await until(lambda: bench.actor.state is ActorState.SERVING)
        yield bench
        group.cancel_scope.cancel()


async def test_offer_before_start_is_refused() -> None:
    """An actor that does not serve takes nothing, and says what it is doing."""
    bench = Bench(ScriptedProvider())
    assert bench.actor.unavailable(Operation.CHAT) == "starting"
    with pytest.raises(RouterClosedError, match="starting"):
        bench.offer()


async def test_offer_is_answered() -> None:
    """A worker is made for the first request, and stays for the next."""
    provider = ScriptedProvider()
    async with running(provider) as bench:
        for _ in range(3):
            envelope = bench.offer()
            assert bench.actor.in_flight == 1
            await envelope.replied.wait()
            assert isinstance(envelope.result, Response)
            await until(lambda: bench.actor.in_flight == 0)
        status = bench.actor.status(anyio.current_time(), 6)
    assert (status.workers, status.picked, status.completed, status.share) == (1, 3, 3, 0.5)


async def test_workers_are_made_up_to_the_concurrency() -> None:
    """Beyond it requests wait, and beyond the queue they are refused."""
    limits = {"concurrency": 2, "queue": 1}
    async with running(ScriptedProvider("a", then=Hang(), limits=limits)) as bench:
        for _ in range(3):
            assert bench.actor.unavailable(Operation.CHAT) is None
            bench.offer()
        assert bench.actor.unavailable(Operation.CHAT) == "mailbox_full"
        with pytest.raises(MailboxFullError):
            bench.offer()
        assert (bench.actor.in_flight, len(bench.actor.mailbox)) == (2, 1)


async def test_load_is_seen_in_the_turn_of_the_offer() -> None:
    """A burst of requests counts at once, before any worker has had its turn."""
    async with running(ScriptedProvider("a", then=Hang())) as bench:
        for count in range(1, 6):
            bench.offer()
            assert bench.actor.in_flight == count


async def test_few_idle_workers_stay() -> None:
    """After a burst most workers end; the parked ones are bounded."""
    limits = {"concurrency": 100}
    async with running(ScriptedProvider("a", limits=limits)) as bench:
        envelopes = [bench.offer() for _ in range(100)]
        for envelope in envelopes:
            await envelope.replied.wait()
        await until(lambda: bench.actor.in_flight == 0)
        assert bench.actor.status(0, 1).workers == IDLE_WORKERS


async def test_stopping_answers_the_mailbox() -> None:
    """Stopping closes first and answers then, so nobody waits for ever."""
    limits = {"concurrency": 1, "queue": 3}
    async with running(ScriptedProvider("a", then=Hang(), limits=limits)) as bench:
        envelopes = [bench.offer() for _ in range(4)]
        bench.actor.stop(ActorState.STOPPED)
        for envelope in envelopes[1:]:
            assert isinstance(envelope.error, RouterClosedError)
        assert bench.actor.unavailable(Operation.CHAT) == "stopped"
        with pytest.raises(RouterClosedError):
            bench.offer()


async def test_taken_down_actor_fails_its_mailbox_by_name() -> None:
    """What waits at an actor that crashed ends with `ActorCrashedError`."""
    limits = {"concurrency": 1, "queue": 3}
    async with running(ScriptedProvider("a", then=Hang(), limits=limits)) as bench:
        envelopes = [bench.offer() for _ in range(2)]
        bench.actor.stop(ActorState.DOWN)
        assert isinstance(envelopes[1].error, ActorCrashedError)


async def test_crash_is_seen_at_once() -> None:
    """Whoever hears of the crash finds the actor closed already, not dying."""

    class Crash(BaseException):
        pass

    bench = Bench(ScriptedProvider("a", Crash))
    heard: list[str | None] = []

    async def ask() -> None:
        await until(lambda: bench.actor.state is ActorState.SERVING)
        envelope = bench.offer()
        await envelope.replied.wait()
        assert isinstance(envelope.error, ActorCrashedError)
        heard.append(bench.actor.unavailable(Operation.CHAT))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group around it
            await bench.actor.run()
    assert isinstance(caught.value, (Crash, BaseExceptionGroup))
    assert heard == ["restarting"]


def test_pause_closes_the_actor(virtual_time: Callable[..., None]) -> None:
    """A provider's hint makes it unavailable until its instant, but for those who will wait."""

    async def main() -> None:
        failure = OverloadedError("busy", retry_after=9)
        async with running(ScriptedProvider("a", Fail(failure))) as bench:
            await bench.offer().replied.wait()
            assert bench.actor.unavailable(Operation.CHAT) == "overloaded"
            assert bench.actor.unavailable(Operation.CHAT, despite_pause=True) is None
            assert bench.actor.available_in() == pytest.approx(9)
            assert bench.actor.status(anyio.current_time(), 1).ejected_until == pytest.approx(9)
            await anyio.sleep(9.1)
            assert bench.actor.unavailable(Operation.CHAT) is None

    virtual_time(main)


def test_repeats_stay_in_the_worker(virtual_time: Callable[..., None]) -> None:
    """An envelope with repeats is answered once, after all of them."""

    async def main() -> None:
        provider = ScriptedProvider("a", ConnectError, ConnectError, Ok("third"))
        async with running(provider) as bench:
            envelope = bench.offer(repeats=2)
            await envelope.replied.wait()
            assert isinstance(envelope.result, Response)
            assert envelope.number == 3
            assert len(envelope.failures or ()) == 2

    virtual_time(main)
