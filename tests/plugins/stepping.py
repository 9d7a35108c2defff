"""Event loops in virtual time that count their steps and do something after one of them.

A step is one callback of an asyncio loop, or one turn of a trio task. Whatever can happen
between two lines of the engine can happen only between two steps, so doing it after each
step in turn is doing it everywhere.
"""

from __future__ import annotations

import asyncio  # to cancel a task the way that asyncio's own users do
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import trio
import trio.testing

from adapters.simulation.virtual_loop import VirtualLoop


class Steps:
    """Counts steps while armed, and acts once, after `at` of them.

    Args:
        at: After how many; None never acts.

    Attributes:
        count: Steps since it was armed.
        acted: Whether it has acted.
    """

    def __init__(self, at: int | None = None) -> None:
        self.count = 0
        self.acted = False
        self._at = at
        self._act: Callable[[], object] | None = None

    def arm(self, act: Callable[[], object]) -> None:
        """Count from here on."""
        self._act = act

    def disarm(self) -> None:
        """Count no more."""
        self._act = None

    def step(self) -> None:
        """A step is about to be made."""
        if self._act is None:
            return
        if self.count == self._at:
            self.acted = True
            act, self._act = self._act, None
            act()
            return
        self.count += 1


class _Counted(deque[Any]):
    """The ready callbacks of a loop, counted as they are taken out."""

    steps: Steps

    def popleft(self) -> Any:
        self.steps.step()
        return super().popleft()


class SteppingLoop(VirtualLoop):
    """An asyncio loop in virtual time whose steps are counted."""

    def count_with(self, steps: Steps) -> None:
        """Tell these of each step; before anything is run."""
        ready = _Counted()
        ready.steps = steps
        self._ready = ready


class _Watch(trio.abc.Instrument):
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps.step()


def run_on_asyncio(main: Callable[[], Awaitable[None]], steps: Steps) -> None:
    """Run in virtual time on an asyncio loop; nothing may be left of it, nor unhandled."""
    loop = SteppingLoop.make()
    assert isinstance(loop, SteppingLoop)
    loop.count_with(steps)

    async def body() -> None:
        await main()

    loop.run(body())
    left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    loop.close()
    assert not left
    assert not loop.unhandled


def run_on_trio(main: Callable[[], Awaitable[None]], steps: Steps) -> None:
    """Run in virtual time on trio, whose order of tasks is drawn from a fixed seed."""
    # Trio draws it from a generator of its own, so that nobody relies on it.
    trio._core._run._r.seed(1)
    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(main, clock=clock, instruments=[_Watch(steps)])


Run = Callable[[Callable[[], Awaitable[None]], Steps], None]


async def cancellable(call: Callable[[], Awaitable[str]], steps: Steps, *, native: bool) -> str:
    """Make a call that is cancelled when the steps say so, and tell how it ended.

    Returns:
        What the call returned, "cancelled", or "never began".
    """
    heard = "never began"

    async def victim() -> None:
        nonlocal heard
        heard = "cancelled"
        try:
            heard = await call()
        finally:
            steps.disarm()

    if native:
        task = asyncio.get_running_loop().create_task(victim())
        steps.arm(task.cancel)
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None
    else:
        with anyio.CancelScope() as scope:
            steps.arm(scope.cancel)
            await victim()
    return heard
