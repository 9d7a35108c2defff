"""Too much at once, providers that hang or stall, and who is served then."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import (
    CHAT,
    Events,
    Fail,
    Hang,
    Ok,
    Scripted,
    ScriptedProvider,
    assert_settled,
    make_router,
    until,
)

from engine import (
    ConnectError,
    GatewayError,
    NoProviderAvailableError,
    OverloadedError,
    Priority,
    Router,
)

Virtual = Callable[..., None]


# ── priorities ───────────────────────────────────────────────────────────────────


async def fill(router: Router, priority: Priority, group: Any, *, streamed: bool) -> int:
    """Send requests of a class until one is refused; how many were taken."""
    refused: list[str] = []

    async def ask() -> None:
        try:
            if streamed:
                async with router.stream(CHAT, priority=priority):
                    pass
            else:
                await router.complete(CHAT, priority=priority)
        except NoProviderAvailableError as error:
            refused.append(error.reason)

    taken = -1
    while not refused:
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        taken += 1
    assert refused == ["mailbox_full"]
    return taken


@pytest.mark.parametrize("streamed", [False, True])
async def test_full_mailbox_has_room_for_what_matters_more(streamed: bool) -> None:
    """Each class finds the mailbox full at its own part of the capacity."""
    provider = ScriptedProvider("a", then=Hang(), limits={"concurrency": 1, "queue": 10})
    async with make_router(provider) as router, anyio.create_task_group() as group:
        taken = {
            priority.word: await fill(router, priority, group, streamed=streamed)
            for priority in reversed(Priority)
        }
        # One more than its half: the worker has taken the first one.
        assert taken == {"sheddable": 6, "sheddable_plus": 2, "critical": 2, "critical_plus": 1}
        assert router.status().actors[0].mailbox.depths["critical_plus"] == 1
        group.cancel_scope.cancel()
    assert_settled(router, cancelled=11, rejected=4)


async def test_more_important_requests_are_served_first() -> None:
    """What waits is handed out by its class, and within a class in its order."""
    provider = ScriptedProvider("a", limits={"concurrency": 1, "queue": 100})
    order: list[str] = []
    async with make_router(provider) as router, anyio.create_task_group() as group:

        async def ask(priority: Priority) -> None:
            await router.complete(CHAT, priority=priority)
            order.append(priority.word)

        async with anyio.create_task_group() as asking:
            for priority in (*reversed(Priority), *reversed(Priority)):
                asking.start_soon(ask, priority)
        group.cancel_scope.cancel()
    # Whoever is first finds an idle worker, whatever its class.
    rest = sorted(order[1:], key=[p.word for p in Priority].index)
    assert order[1:] == rest


async def test_request_without_a_class_is_critical() -> None:
    """Nobody has to say how much a request matters."""
    async with make_router(ScriptedProvider()) as router:
        response = await router.complete(CHAT)
        story = router.explain(response.request_id)
    assert story is not None
    assert story["priority"] == "critical"


# ── adaptive concurrency ─────────────────────────────────────────────────────────


class Limited(ScriptedProvider):
    """Refuses what is more than it can do at a time."""

    def __init__(self, name: str, capacity: int, **settings: Any) -> None:
        super().__init__(name, then=self._by_load, **settings)
        self.capacity = capacity
        self.refused = 0

    def _by_load(self) -> Scripted:
        if self.running > self.capacity:
            self.refused += 1
            return Fail(OverloadedError("too much", retry_after=0.05))
        return Ok(after=0.2)


async def flood(router: Router, seconds: float, per_second: float) -> None:
    """Ask at a rate, and take what comes."""

    async def ask() -> None:
        try:
            await router.complete(CHAT, timeout=5)
        except GatewayError:
            return

    async with anyio.create_task_group() as group:
        for _ in range(int(seconds * per_second)):
            group.start_soon(ask)
            await anyio.sleep(1 / per_second)


def test_limit_follows_what_the_provider_can_take(virtual_time: Virtual) -> None:
    """Refusals shrink the limit to the provider's capacity; with more capacity it grows again."""

    async def main() -> None:
        limits = {"concurrency": 40, "queue": 100, "adaptive": {"initial": 20, "min": 2}}
        provider = Limited("a", 8, limits=limits)
        async with make_router(provider, history=0) as router:
            assert router.status().actors[0].concurrency == 20
            await flood(router, 60, 60)
            found = router.status().actors[0].concurrency
            early, provider.refused = provider.refused, 0
            await flood(router, 60, 60)
            late = provider.refused
            provider.capacity = 100
            await flood(router, 20, 200)
            grown = router.status().actors[0].concurrency
        print(f"adaptive concurrency at a capacity of 8: {found}, refusals in the first minute "
              f"{early}, in the second {late}; at 100: {grown} of 40")  # fmt: skip
        # One look at a saw-tooth that swings around the capacity.
        assert 4 <= found <= 13
        assert late <= early
        assert grown > 20

    virtual_time(main)


def test_shrunken_limit_holds_back_what_waits(virtual_time: Virtual) -> None:
    """After a refusal no more run than the new limit says, and nobody is forgotten."""

    async def main() -> None:
        limits = {"concurrency": 40, "queue": 100, "adaptive": {"initial": 4, "min": 2}}
        provider = Limited("a", 2, limits=limits)
        async with make_router(provider, ScriptedProvider("b", weight=1e-9)) as router:
            async with anyio.create_task_group() as group:
                for _ in range(30):
                    group.start_soon(router.complete, CHAT)
            assert router.status().actors[0].concurrency < 4
        assert_settled(router, completed=30)

    virtual_time(main)


# ── ejection and the last resort ─────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 3])
def test_when_all_are_ejected_somebody_is_asked_anyway(count: int, virtual_time: Virtual) -> None:
    """A small chance beats none: the first answer brings the provider back."""

    async def main() -> None:
        providers = [
            ScriptedProvider(f"p{n}", *[ConnectError] * 5, max_retries=0) for n in range(count)
        ]
        async with make_router(*providers, retries={"max_attempts": 1}) as router:
            for _ in range(5 * count):
                with pytest.raises(ConnectError):
                    await router.complete(CHAT)
            assert {a.health.state for a in router.status().actors} <= {"ejected", "probing"}
            response = await router.complete(CHAT)
            story = router.explain(response.request_id)
            assert story is not None
            assert story["steps"][0]["resort"] == "last_resort"
            states = [actor.health.state for actor in router.status().actors]
            assert states.count("slow_start") == 1

    virtual_time(main)


def test_last_resort_is_bounded(virtual_time: Virtual) -> None:
    """An ejected provider gets ten requests at a time at most, the others are refused."""

    async def main() -> None:
        provider = ScriptedProvider("a", *[ConnectError] * 5, then=Hang(), max_retries=0)
        refused: list[str] = []
        async with make_router(provider) as router, anyio.create_task_group() as group:
            for _ in range(5):
                with pytest.raises(ConnectError):
                    await router.complete(CHAT)

            async def ask() -> None:
                try:
                    await router.complete(CHAT)
                except NoProviderAvailableError as error:
                    refused.append(error.reason)

            for _ in range(25):
                group.start_soon(ask)
            await anyio.sleep(0.1)
            assert provider.running == 10
            assert len(refused) == 15
            assert set(refused) <= {"ejected", "probing"}
            group.cancel_scope.cancel()

    virtual_time(main)


def test_callers_with_little_patience_eject_nobody(virtual_time: Virtual) -> None:
    """That a request's own time was over says nothing of the provider."""

    async def main() -> None:
        for streamed in (False, True):
            provider = ScriptedProvider("a", then=Ok(after=0.9))
            async with make_router(provider) as router:
                for _ in range(50):
                    with anyio.move_on_after(5), pytest.raises(GatewayError) as caught:
                        if streamed:
                            async with router.stream(CHAT, timeout=0.3):
                                pass
                        await router.complete(CHAT, timeout=0.3)
                    assert caught.value.status == 504
                assert router.status().actors[0].health.state == "healthy"

    virtual_time(main)


def test_streams_cut_by_their_callers_deadline_eject_nobody(virtual_time: Virtual) -> None:
    """A provider that is in the middle of its answer has done nothing wrong."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Events(*["x", 0.3] * 20))
        async with make_router(provider) as router:
            for _ in range(20):
                with pytest.raises(GatewayError):
                    async with router.stream(CHAT, timeout=2) as stream:
                        async for _ in stream:
                            pass
            health = router.status().actors[0].health
            assert (health.state, health.consecutive_failures) == ("healthy", 0)
        assert_settled(router, truncated=20)

    virtual_time(main)


# ── hanging and stalling ─────────────────────────────────────────────────────────


def test_one_hanging_provider_of_five_is_met_by_few(virtual_time: Virtual) -> None:
    """At most one request in a thousand is sent to it, and the others take as long as ever."""

    async def main() -> None:
        sane = [ScriptedProvider(f"p{n}", then=Ok(after=0.2)) for n in range(4)]
        hung = ScriptedProvider("hung", *[Ok(after=0.2)] * 100, then=Hang())
        times: list[float] = []
        failed: list[str] = []

        async def ask() -> None:
            start = anyio.current_time()
            try:
                await router.complete(CHAT)
            except GatewayError as error:
                failed.append(type(error).__name__)
            times.append(anyio.current_time() - start)

        async with make_router(*sane, hung, history=0) as router:
            async with anyio.create_task_group() as group:
                for _ in range(40_000):
                    group.start_soon(ask)
                    await anyio.sleep(0.01)
        met, times = len(hung.calls) - 100, sorted(times)
        p99 = times[int(0.99 * len(times))]
        print(f"one hanging provider of five: {met} of 40,000 requests ({met / 40_000:.4%}) met it,"
              f" p99 {p99:.4f} s, failed {len(failed)}")  # fmt: skip
        assert met / 40_000 <= 0.001
        assert p99 <= 0.2 * 1.05
        assert failed == []

    virtual_time(main)


def test_provider_that_stalls_gets_no_more_than_a_few(virtual_time: Virtual) -> None:
    """Silence of a busy provider is noticed long before any of its calls has timed out."""

    async def main() -> None:
        stalled = anyio.Event()

        def step() -> Scripted:
            return Hang() if stalled.is_set() else Ok(after=0.1)

        stalling, other = ScriptedProvider("stalling", then=step), ScriptedProvider("other")
        async with make_router(stalling, other, history=0) as router:
            async with anyio.create_task_group() as group:
                for _ in range(400):
                    group.start_soon(router.complete, CHAT)
                    await anyio.sleep(0.005)
                stalled.set()
                before = len(stalling.calls)
                for _ in range(400):
                    group.start_soon(router.complete, CHAT)
                    await anyio.sleep(0.005)
                assert router.status().actors[0].failed == {}
                sent = len(stalling.calls) - before
                print(f"a provider that stalls: {sent} of 400 requests in 2 s were sent there")
                assert sent <= 60
                group.cancel_scope.cancel()

    virtual_time(main)


async def test_burst_at_a_cold_provider_is_no_stall() -> None:
    """A provider that has not answered yet is not silent because many ask at once."""
    provider = ScriptedProvider("a", then=Ok(after=0.05), limits={"concurrency": 100})
    async with make_router(provider) as router, anyio.create_task_group() as group:
        for _ in range(100):
            group.start_soon(router.complete, CHAT)
        await until(lambda: provider.peak == 100)
    assert_settled(router, completed=100)
