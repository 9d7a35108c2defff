"""Restarts: one for one, limited, jittered; without a router around it."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import anyio
import pytest

from engine import ActorState
from engine.actor import ProviderActor
from engine.supervisor import DOWN_FOR, FIRST_PAUSE, INTENSITY, PERIOD, Supervisor


class Crash(BaseException):
    """A bug."""


class CrashingActor:
    """Crashes after a time, as often as it is told; then runs on until it is ended."""

    def __init__(self, name: str, crashes: int, after: float = 0.0) -> None:
        self.name, self.crashes, self.after = name, crashes, after
        self.ended = False
        self.state = ActorState.STARTING
        self.restarts = 0
        self.starts: list[float] = []
        self.stops: list[ActorState] = []

    async def run(self) -> None:
        self.starts.append(anyio.current_time())
        self.state = ActorState.SERVING
        await anyio.sleep(self.after)
        if self.crashes:
            self.crashes -= 1
            raise Crash
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.ended = True

    def stop(self, state: ActorState) -> None:
        self.state = state
        self.stops.append(state)

    def does(self) -> ActorState:
        """What it is doing; a call, so that the type checker expects it to change."""
        return self.state


def supervisor_of(*actors: CrashingActor) -> Supervisor:
    """A supervisor over these actors."""
    return Supervisor(
        cast("list[ProviderActor]", list(actors)), clock=anyio.current_time, rng=random.Random(1)
    )


async def supervise(*actors: CrashingActor, seconds: float) -> None:
    """Run a supervisor over these actors for some time."""
    supervisor = supervisor_of(*actors)
    with anyio.move_on_after(seconds):
        await supervisor.run()


def test_crash_concerns_no_other_actor(virtual_time: Callable[..., None]) -> None:
    """One actor is restarted, the others run on."""

    async def main() -> None:
        bad, good = CrashingActor("bad", 3), CrashingActor("good", 0)
        await supervise(bad, good, seconds=20)
        assert (bad.restarts, good.restarts) == (3, 0)
        assert len(good.starts) == 1
        assert bad.stops == [ActorState.RESTARTING] * 3 + [ActorState.STOPPED]
        assert good.stops == [ActorState.STOPPED]

    virtual_time(main)


def test_pauses_grow_with_jitter(virtual_time: Callable[..., None]) -> None:
    """Each restart waits longer, between half of the pause and all of it."""

    async def main() -> None:
        actor = CrashingActor("bad", INTENSITY)
        await supervise(actor, seconds=20)
        pauses = [b - a for a, b in zip(actor.starts, actor.starts[1:], strict=False)]
        for number, pause in enumerate(pauses):
            assert FIRST_PAUSE * 2**number / 2 <= pause <= FIRST_PAUSE * 2**number

    virtual_time(main)


def test_too_many_crashes_take_the_actor_down(virtual_time: Callable[..., None]) -> None:
    """The sixth crash within the period is followed by a long pause, then by a trial."""

    async def main() -> None:
        actor = CrashingActor("bad", INTENSITY + 1)
        await supervise(actor, seconds=200)
        assert actor.stops[:-1] == [ActorState.RESTARTING] * INTENSITY + [ActorState.DOWN]
        assert actor.starts[-1] - actor.starts[-2] == pytest.approx(DOWN_FOR)
        assert actor.restarts == INTENSITY + 1

    virtual_time(main)


def test_crashes_far_apart_are_forgotten(virtual_time: Callable[..., None]) -> None:
    """An actor that crashes now and then never goes down."""

    async def main() -> None:
        actor = CrashingActor("bad", 40, after=8)
        await supervise(actor, seconds=500)
        assert ActorState.DOWN not in actor.stops

    virtual_time(main)


async def test_stop_reaches_every_actor() -> None:
    """Whatever ends the supervisor, all actors are told."""
    actors = [CrashingActor(str(number), 0) for number in range(3)]
    await supervise(*actors, seconds=0.01)
    assert [actor.state for actor in actors] == [ActorState.STOPPED] * 3


def test_crash_at_the_trial_takes_the_actor_down_again(
    virtual_time: Callable[..., None],
) -> None:
    """After the long pause there is one chance, not a whole new budget of restarts."""

    async def main() -> None:
        actor = CrashingActor("bad", INTENSITY + 4)
        await supervise(actor, seconds=5 * DOWN_FOR + 60)
        assert actor.stops[:-1] == [ActorState.RESTARTING] * INTENSITY + [ActorState.DOWN] * 4
        trials = actor.starts[INTENSITY:]
        pauses = [b - a for a, b in pairwise(trials)]
        assert pauses == pytest.approx([DOWN_FOR] * 4)

    virtual_time(main)


def test_trial_ends_when_the_actor_has_served(virtual_time: Callable[..., None]) -> None:
    """An actor that served for a whole period is restarted at its next crash, as at first."""

    async def main() -> None:
        actor = CrashingActor("bad", INTENSITY + 1)
        supervisor = supervisor_of(actor)
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run)
            await anyio.sleep(30)
            actor.crashes, actor.after = 1, PERIOD
            await anyio.sleep(DOWN_FOR + PERIOD + 10)
            group.cancel_scope.cancel()
        assert actor.stops[INTENSITY:] == [
            ActorState.DOWN, ActorState.RESTARTING, ActorState.STOPPED,
        ]  # fmt: skip

    virtual_time(main)


def test_actor_that_always_crashes_disturbs_nobody(virtual_time: Callable[..., None]) -> None:
    """An hour of crashes at each start: the other actor runs, and restarts stay rare."""

    async def main() -> None:
        bad, good = CrashingActor("bad", 10_000), CrashingActor("good", 0)
        await supervise(bad, good, seconds=3_600)
        assert len(good.starts) == 1
        assert bad.restarts <= INTENSITY + 3_600 / DOWN_FOR

    virtual_time(main)


async def test_added_actor_runs_until_it_is_retired() -> None:
    """An actor comes and goes while the others run; retiring waits for its end."""
    first, second = CrashingActor("first", 0), CrashingActor("second", 0)
    supervisor = supervisor_of(first)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await anyio.sleep(0.01)
        supervisor.add(cast("ProviderActor", second))
        await anyio.sleep(0.01)
        assert second.does() is ActorState.SERVING
        await supervisor.retire(cast("ProviderActor", second))
        assert second.ended
        assert second.does() is ActorState.RETIRED
        assert not first.ended
        await supervisor.retire(cast("ProviderActor", second))
        group.cancel_scope.cancel()
    assert (first.state, second.state) == (ActorState.STOPPED, ActorState.RETIRED)


async def test_actor_that_waits_for_its_restart_can_be_retired() -> None:
    """Retiring ends the pause, too."""
    actor = CrashingActor("bad", INTENSITY + 1)
    supervisor = supervisor_of(actor)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await anyio.sleep(0.01)
        assert actor.does() is ActorState.RESTARTING
        with anyio.fail_after(2):
            await supervisor.retire(cast("ProviderActor", actor))
        assert actor.does() is ActorState.RETIRED
        group.cancel_scope.cancel()


async def test_actor_retired_before_it_ran_does_not_serve() -> None:
    """Added and retired in the same turn, it ends retired."""
    actor = CrashingActor("new", 0)
    supervisor = supervisor_of()
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run)
        await anyio.sleep(0.01)
        supervisor.add(cast("ProviderActor", actor))
        await supervisor.retire(cast("ProviderActor", actor))
        assert actor.state is ActorState.RETIRED
        group.cancel_scope.cancel()


async def test_actor_added_after_the_end_is_stopped() -> None:
    """Nobody is left to run it, and it says so."""
    supervisor = supervisor_of()
    with anyio.move_on_after(0.01):
        await supervisor.run()
    actor = CrashingActor("late", 0)
    supervisor.add(cast("ProviderActor", actor))
    assert actor.state is ActorState.STOPPED
    assert actor.starts == []
