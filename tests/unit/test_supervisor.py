"""Restarts: one for one, limited, jittered; without a router around it."""

import random
from collections.abc import Callable
from typing import cast

import anyio
import pytest

from engine import ActorState
from engine.actor import ProviderActor
from engine.supervisor import DOWN_FOR, FIRST_PAUSE, INTENSITY, Supervisor


class Crash(BaseException):
    """A bug."""


class CrashingActor:
    """Crashes after a time, as often as it is told."""

    def __init__(self, name: str, crashes: int, after: float = 0.0) -> None:
        self.name, self.crashes, self.after = name, crashes, after
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
        await anyio.sleep_forever()

    def stop(self, state: ActorState) -> None:
        self.state = state
        self.stops.append(state)


async def supervise(*actors: CrashingActor, seconds: float) -> None:
    """Run a supervisor over these actors for some time."""
    supervisor = Supervisor(
        cast("list[ProviderActor]", list(actors)), clock=anyio.current_time, rng=random.Random(1)
    )
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
