"""The event loop whose clock jumps."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import pytest

from adapters.simulation.virtual_loop import (
    MAX_CANCELLED,
    START,
    RunawayError,
    StuckError,
    VirtualLoop,
    current_loop,
)


def run(main: Any, **options: Any) -> Any:
    """Run a coroutine function on a new loop."""
    loop = VirtualLoop.make(**options)
    try:
        return loop.run(main())
    finally:
        loop.close()


def test_an_hour_passes_at_once() -> None:
    """Sleeping costs no wall time, and the clock tells what was slept."""

    async def main() -> float:
        await anyio.sleep(3600)
        return anyio.current_time()

    begun = time.perf_counter()
    assert run(main) == START + 3600
    assert time.perf_counter() - begun < 5


def test_timers_come_in_the_order_of_their_instants() -> None:
    """Whoever is due first is called first; those of one instant in the order of their making."""
    seen: list[str] = []

    async def main() -> None:
        loop = current_loop()
        loop.call_later(2, seen.append, "late")
        loop.call_later(1, seen.append, "first")
        loop.call_later(1, seen.append, "second")
        loop.call_later(1.5, seen.append, "never").cancel()
        await loop.pause(3)

    run(main)
    assert seen == ["first", "second", "late"]


def test_a_cancelled_timer_does_not_hurry_the_next_one() -> None:
    """One that was cancelled between two others leaves each of them at its instant."""
    seen: list[float] = []

    async def main() -> None:
        loop = current_loop()
        loop.call_later(1, lambda: seen.append(loop.time()))
        loop.call_later(1, seen.append, 0).cancel()
        loop.call_later(2, lambda: seen.append(loop.time()))
        await loop.pause(3)

    run(main)
    assert seen == [START + 1, START + 2]


def test_anyio_scopes_and_groups_work() -> None:
    """Cancel scopes, task groups, events and shields behave as on any other loop."""

    async def main() -> list[str]:
        seen: list[str] = []
        event = anyio.Event()

        async def wait() -> None:
            await event.wait()
            seen.append("woken")

        async def hang() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)
                seen.append("cleaned up")

        with anyio.move_on_after(10) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                group.start_soon(hang)
                await anyio.sleep(1)
                event.set()
        assert scope.cancelled_caught
        assert anyio.current_time() >= START + 15
        return seen

    assert run(main) == ["woken", "cleaned up"]


def test_a_cancelled_pause_is_over_at_once() -> None:
    """A scope's deadline ends a pause of the loop's own."""

    async def main() -> float:
        with anyio.move_on_after(1):
            await current_loop().pause(50)
        return anyio.current_time()

    assert run(main) == START + 1


def test_time_goes_on_under_a_cancellation_that_is_repeated() -> None:
    """A task that needs time to obey does not stop the clock while anyio keeps cancelling it."""

    async def main() -> float:
        async def stubborn() -> None:
            end = anyio.current_time() + 0.5
            while anyio.current_time() < end:
                try:
                    await anyio.sleep(1)
                except anyio.get_cancelled_exc_class():
                    continue

        async with anyio.create_task_group() as group:
            group.start_soon(stubborn)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        return anyio.current_time()

    assert START + 0.5 <= run(main) < START + 1


def test_waiting_for_nothing_is_told() -> None:
    """A task that nothing will ever wake ends the run with an error, and not never."""

    async def main() -> None:
        await anyio.sleep_forever()

    with pytest.raises(StuckError):
        run(main)


def test_going_in_circles_is_told() -> None:
    """A run that never comes to an end is given up after so many callbacks."""

    async def main() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    with pytest.raises(RunawayError):
        run(main, max_callbacks=10_000)


def test_an_exception_comes_out() -> None:
    """What the main coroutine raises is raised by the run."""

    async def main() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run(main)


def test_what_nobody_handles_is_kept() -> None:
    """An exception in a callback goes to nobody, but it is not lost."""
    loop = VirtualLoop.make()

    async def main() -> None:
        loop.call_soon(int, "no number")
        await loop.pause(1)

    loop.run(main())
    loop.close()
    assert len(loop.unhandled) == 1
    assert "ValueError" in loop.unhandled[0]


def test_cancelled_timers_are_swept_out() -> None:
    """Timers that were cancelled long before their instant do not pile up."""
    loop = VirtualLoop.make()

    async def main() -> int:
        for _ in range(10 * MAX_CANCELLED):
            loop.call_later(1e6, print).cancel()
        return len(loop._timers)

    assert loop.run(main()) <= MAX_CANCELLED + 1
    assert loop.timers == 0
    loop.close()


def test_it_does_not_run_inside_another_loop() -> None:
    """The mistake is told, and the coroutine is not left behind."""

    async def main() -> None:
        await anyio.lowlevel.checkpoint()

    async def outer() -> None:
        with pytest.raises(RuntimeError, match="inside of another"):
            VirtualLoop.make().run(main())

    asyncio.run(outer())


def test_elsewhere_there_is_no_virtual_loop() -> None:
    """Code for virtual time says so on a real loop."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="virtual"):
            current_loop()

    asyncio.run(main())


def test_an_async_generator_that_is_left_is_closed() -> None:
    """A generator that is dropped in the middle is finalized by a task of the loop."""
    closed: list[bool] = []

    async def numbers() -> Any:
        try:
            while True:
                yield 1
        finally:
            await anyio.lowlevel.checkpoint()
            closed.append(True)

    async def main() -> None:
        async for _ in numbers():
            break
        await anyio.sleep(1)

    run(main)
    assert closed == [True]
