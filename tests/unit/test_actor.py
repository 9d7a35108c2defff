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
    Priority,
    Response,
    RetryBudgetConfig,
    RouterClosedError,
    TransientError,
)
from engine.actor import ProviderActor
from engine.envelope import Envelope
from engine.repeat_permits import RepeatPermits
from engine.resilience.deadline import DeadlineWheel
from engine.resilience.retry_budget import RetryBudget
from engine.telemetry import Telemetry
from engine.worker_pool import IDLE_WORKERS


class Bench:
    """An actor with its wheel, and envelopes for it."""

    def __init__(self, provider: ScriptedProvider, permits: RepeatPermits | None = None) -> None:
        self.wheel = DeadlineWheel(anyio.current_time)
        self.actor = ProviderActor(
            provider, clock=anyio.current_time, rng=random.Random(1), wheel=self.wheel,
            telemetry=Telemetry(), permits=permits,
        )  # fmt: skip

    def offer(self, *, repeats: int = 0, priority: Priority = Priority.CRITICAL) -> Envelope:
        """Give the actor a request."""
        now = anyio.current_time()
        envelope = Envelope(
            ChatRequest.from_body(CHAT), "m", "id", config=self.actor.config, wheel=self.wheel,
            deadline=now + 100, now=now, repeats=repeats, priority=priority,
        )  # fmt: skip
        self.actor.offer(envelope)
        return envelope


@asynccontextmanager
async def running(
    provider: ScriptedProvider, permits: RepeatPermits | None = None
) -> AsyncGenerator[Bench, None]:
    """An actor that serves."""
    bench = Bench(provider, permits)
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


def test_wait_is_foretold_by_what_others_took(virtual_time: Callable[..., None]) -> None:
    """A request that could not be answered in time is not taken, and is told when it could."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Ok(after=2), limits={"concurrency": 2})
        async with running(provider) as bench:
            await bench.offer().replied.wait()
            await anyio.sleep(0.01)
            for _ in range(8):
                bench.offer()
            actor = bench.actor
            # Six wait, two of two seconds each at a time: the next begins in seven.
            assert actor.expected_wait() == pytest.approx(7, abs=0.1)
            assert actor.unavailable(Operation.CHAT, remaining=9.5) is None
            assert actor.unavailable(Operation.CHAT, remaining=8.5) == "queue_too_long"
            assert actor.available_in(8.5) == pytest.approx(1, abs=0.1)
            assert actor.available_in(5.5) == pytest.approx(4, abs=0.1)
            # Once nobody waits any more, it is taken whatever remains.
            assert actor.available_in(0.1) == pytest.approx(7, abs=0.1)

    virtual_time(main)


def test_less_than_a_fifth_of_the_usual_time_is_too_short(
    virtual_time: Callable[..., None],
) -> None:
    """Nothing is begun that would hardly end; without a known time everything is."""

    async def main() -> None:
        async with running(ScriptedProvider("a", then=Ok(after=5))) as bench:
            assert bench.actor.unavailable(Operation.CHAT, remaining=0.001) is None
            await bench.offer().replied.wait()
            assert bench.actor.unavailable(Operation.CHAT, remaining=0.9) == "deadline_too_short"
            assert bench.actor.unavailable(Operation.CHAT, remaining=1.1) is None

    virtual_time(main)


async def test_room_depends_on_how_much_a_request_matters() -> None:
    """Half of the mailbox is for everybody, the rest for those that matter more."""
    limits = {"concurrency": 1, "queue": 4}
    async with running(ScriptedProvider("a", then=Hang(), limits=limits)) as bench:
        for _ in range(3):
            bench.offer(priority=Priority.SHEDDABLE)
        reasons = {
            priority.word: bench.actor.unavailable(Operation.CHAT, priority)
            for priority in Priority
        }
    assert reasons == {
        "critical_plus": None, "critical": None, "sheddable_plus": None, "sheddable": "mailbox_full"
    }  # fmt: skip


def test_those_who_left_do_not_shorten_the_foretold_wait(
    virtual_time: Callable[..., None],
) -> None:
    """Envelopes that were given up before their turn say nothing of how long one takes."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Ok(after=2), limits={"concurrency": 1})
        async with running(provider) as bench:
            await bench.offer().replied.wait()
            await anyio.sleep(0.01)
            for _ in range(50):
                bench.offer().abandon()
                await anyio.sleep(0.01)
            assert bench.actor.expected_wait() == pytest.approx(2, abs=0.01)

    virtual_time(main)


def test_repeats_pay_and_give_back(virtual_time: Callable[..., None]) -> None:
    """Each repeat costs a token; the slot is one at a time and comes back at the end."""

    async def main() -> None:
        shared = RetryBudget(
            RetryBudgetConfig.model_validate({"capacity": 10, "per_second": 0}), anyio.current_time
        )
        provider = ScriptedProvider(
            "a", *[TransientError("500") for _ in range(3)], then=Ok(after=1)
        )
        async with running(provider, RepeatPermits(shared, lambda: 1)) as bench:
            envelope = bench.offer(repeats=3)
            await anyio.sleep(0.9)
            assert (envelope.number, shared.repeats, bench.actor.budget.repeats) == (4, 1, 1)
            await envelope.replied.wait()
            await anyio.sleep(0.01)
            assert (shared.repeats, bench.actor.budget.repeats) == (0, 0)
            assert shared.level == 7

    virtual_time(main)


def test_denied_repeat_marks_the_failure(virtual_time: Callable[..., None]) -> None:
    """Nobody is asked again, and the failure says why."""

    async def main() -> None:
        config = RetryBudgetConfig.model_validate({"min_concurrency": 0, "max_share": 0})
        shared = RetryBudget(config, anyio.current_time)
        async with running(
            ScriptedProvider("a", ConnectError), RepeatPermits(shared, int)
        ) as bench:
            envelope = bench.offer(repeats=3)
            await envelope.replied.wait()
            assert isinstance(envelope.error, ConnectError)
            assert envelope.error.retry_denied == "budget"
            assert envelope.number == 1

    virtual_time(main)
