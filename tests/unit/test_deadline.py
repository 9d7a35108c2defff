"""The deadline wheel on every event loop; its exact bounds are in tests/property."""

import anyio
import pytest

from engine.resilience.deadline import TICK, DeadlineWheel


class Item:
    """Sets an event when its instant has passed."""

    def __init__(self) -> None:
        self.tick: int | None = None
        self.due = anyio.Event()

    def on_due(self, now: float) -> None:
        self.due.set()


async def test_item_fires_on_a_real_clock() -> None:
    """An item that is filed while the wheel sleeps for a later one fires first."""
    wheel = DeadlineWheel(anyio.current_time)
    late, soon = Item(), Item()
    async with anyio.create_task_group() as group:
        group.start_soon(wheel.run)
        start = anyio.current_time()
        wheel.add(late, start + 60)
        await anyio.wait_all_tasks_blocked()
        wheel.add(soon, start + 0.03)
        with anyio.fail_after(10):
            await soon.due.wait()
        # uvloop's clock counts whole milliseconds.
        assert anyio.current_time() - start >= 0.03 - 0.002
        assert not late.due.is_set()
        assert len(wheel) == 1
        wheel.discard(late)
        group.cancel_scope.cancel()


async def test_moving_to_the_same_tick_costs_nothing() -> None:
    """An item that stays in its tick is left where it is."""
    wheel = DeadlineWheel(lambda: 0.0)
    item = Item()
    wheel.move(item, TICK * 5.25)
    tick = item.tick
    wheel.move(item, TICK * 5.75)
    assert item.tick == tick
    wheel.move(item, TICK * 7.5)
    assert item.tick != tick
    assert len(wheel) == 1


async def test_discarding_what_is_not_filed_is_nothing() -> None:
    """An item that is on no wheel can be discarded."""
    wheel = DeadlineWheel(lambda: 0.0)
    item = Item()
    wheel.discard(item)
    wheel.add(item, 1.0)
    wheel.discard(item)
    wheel.discard(item)
    assert len(wheel) == 0


@pytest.mark.parametrize("count", [1, 500])
async def test_many_items_of_one_instant_all_fire(count: int) -> None:
    """Items that share a tick are all told."""
    wheel = DeadlineWheel(anyio.current_time)
    items = [Item() for _ in range(count)]
    async with anyio.create_task_group() as group:
        group.start_soon(wheel.run)
        for item in items:
            wheel.add(item, anyio.current_time() + 0.01)
        with anyio.fail_after(10):
            for item in items:
                await item.due.wait()
        group.cancel_scope.cancel()
