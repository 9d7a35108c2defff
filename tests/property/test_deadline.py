"""The deadline wheel: nothing late, nothing early, nothing that was taken off."""

import anyio
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from engine.resilience.deadline import TICK, DeadlineWheel

TOLERANCE = TICK * 2e-6
"""The wheel counts an instant as reached a millionth of a tick before it, to be safe
against rounding."""


class Item:
    """Notes when it was told that its instant has passed."""

    def __init__(self, when: float) -> None:
        self.when = when
        self.tick: int | None = None
        self.fired: list[float] = []
        self.discarded = False

    def on_due(self, now: float) -> None:
        self.fired.append(now)


# Most of them close together, so that neighbouring ticks are filled.
instants = st.one_of(
    st.floats(0, 0.1, allow_subnormal=False),
    st.integers(0, 6).map(lambda count: count * TICK),
    st.floats(0, 5, allow_subnormal=False),
)
actions = st.one_of(
    st.tuples(st.just("add"), instants),
    st.tuples(st.just("discard"), st.integers(0, 30)),
    st.tuples(st.just("move"), st.integers(0, 30), instants),
    st.tuples(st.just("wait"), st.floats(0, 2)),
)


async def play(script: list[tuple[str, *tuple[float, ...]]], start: float) -> list[Item]:
    """Do what the script says on a running wheel, then let all instants pass."""
    items: list[Item] = []
    await anyio.sleep(start)
    wheel = DeadlineWheel(anyio.current_time)
    async with anyio.create_task_group() as group:
        group.start_soon(wheel.run)
        for action, *numbers in script:
            now = anyio.current_time()
            if action == "add":
                item = Item(now + numbers[0])
                items.append(item)
                wheel.add(item, item.when)
            elif action == "wait":
                await anyio.sleep(numbers[0])
            elif items:
                chosen = items[int(numbers[0]) % len(items)]
                if chosen.fired or chosen.discarded:
                    continue
                if action == "discard":
                    wheel.discard(chosen)
                    wheel.discard(chosen)
                    chosen.discarded = True
                else:
                    chosen.when = now + numbers[1]
                    wheel.move(chosen, chosen.when)
            assert len(wheel) == sum(not (i.fired or i.discarded) for i in items)
        await anyio.sleep(20)
        assert len(wheel) == 0
        group.cancel_scope.cancel()
    return items


@given(st.lists(actions, max_size=40), st.sampled_from([0.0, 1e-3, 1234.5678, 1e6 + 0.01]))
def test_every_item_fires_once_within_a_tick(
    script: list[tuple[str, *tuple[float, ...]]], start: float
) -> None:
    """Items fire between their instant and one tick later; those taken off never fire."""
    items: list[Item] = []

    async def main() -> None:
        items.extend(await play(script, start))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    for item in items:
        if item.discarded:
            assert item.fired == []
        else:
            (fired,) = item.fired
            assert item.when - TOLERANCE <= fired <= item.when + TICK + TOLERANCE
            assert item.tick is None


class Again(Item):
    """Files itself again until its own idea of the instant has come, as a stream does."""

    def __init__(self, when: float, wheel: DeadlineWheel) -> None:
        super().__init__(when)
        self.wheel = wheel
        self.turns = 0

    def on_due(self, now: float) -> None:
        self.turns += 1
        if now >= self.when:
            self.fired.append(now)
        elif self.turns < 1_000:
            self.wheel.add(self, self.when)


@given(st.floats(0, 100), st.integers(1, 5_000))
def test_item_that_files_itself_again_does_not_stop_the_world(start: float, ticks: int) -> None:
    """Around the edge of a tick an item is asked a few times at most, and then it has fired."""

    async def main() -> None:
        await anyio.sleep(start)
        wheel = DeadlineWheel(anyio.current_time)
        item = Again(ticks * TICK + start, wheel)
        async with anyio.create_task_group() as group:
            group.start_soon(wheel.run)
            wheel.add(item, item.when)
            await anyio.sleep(ticks * TICK + 1)
            group.cancel_scope.cancel()
        assert item.turns <= 5
        assert len(item.fired) == 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_clock_that_runs_slow_does_not_stop_the_world() -> None:
    """A wake-up that comes a billionth too early asks an item again, not for ever at once."""

    def slow_clock() -> float:
        return anyio.current_time() * (1 - 1e-9)

    async def main() -> None:
        wheel = DeadlineWheel(slow_clock)
        item = Again(1 - 1e-10, wheel)
        async with anyio.create_task_group() as group:
            group.start_soon(wheel.run)
            wheel.add(item, item.when)
            await anyio.sleep(2)
            group.cancel_scope.cancel()
        assert item.turns <= 5
        assert len(item.fired) == 1

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
