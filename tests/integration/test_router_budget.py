"""Retry budgets: a helping hand in trouble, never a second storm."""

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import CHAT, Fail, Hang, Ok, Scripted, ScriptedProvider, assert_settled, make_router

from engine import (
    BrokenError,
    ConnectError,
    GatewayError,
    OverloadedError,
    ProviderError,
    Router,
    SilentError,
    TransientError,
)

Virtual = Callable[..., None]
NEVER_EJECT = {"consecutive_failures": 0, "failure_rate": 0}


def shared_repeats(router: Router) -> int:
    """Repeats that the router's budget believes to be under way."""
    assert router._running is not None
    return router._running._permits.shared.repeats


async def steady(router: Router, requests: int, per_second: float, heard: list[str]) -> None:
    """Send requests at a steady rate, and note how each ended."""

    async def ask() -> None:
        try:
            heard.append((await router.complete(CHAT)).provider)
        except GatewayError as error:
            heard.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        for _ in range(requests):
            group.start_soon(ask)
            await anyio.sleep(1 / per_second)


OUTAGES: dict[str, Scripted] = {
    "refused": ConnectError,
    "500 after 50 ms": Fail(TransientError, after=0.05),
    "overloaded": OverloadedError,
    "garbled after 1 s": Fail(BrokenError, after=1),
    "silent": Hang(),
}


@pytest.mark.parametrize(
    ("outage", "count", "ejection"),
    [
        ("refused", 1, {}),
        ("refused", 3, NEVER_EJECT),
        ("500 after 50 ms", 3, {}),
        ("overloaded", 3, {}),
        ("garbled after 1 s", 3, NEVER_EJECT),
        ("silent", 3, {}),
    ],
)
def test_total_outage_is_not_amplified(
    outage: str, count: int, ejection: dict[str, Any], virtual_time: Virtual
) -> None:
    """At 100 requests a second for 60 s, nobody is asked more than 1.1 times a request."""

    async def main() -> None:
        step = OUTAGES[outage]
        fresh = (lambda: step("down")) if isinstance(step, type) else step
        providers = [
            ScriptedProvider(
                f"p{n}", then=fresh, timeout=5, ejection=ejection, limits={"concurrency": 1_000}
            )
            for n in range(count)
        ]
        heard: list[str] = []
        async with make_router(*providers, history=0) as router:
            await steady(router, 6_000, 100, heard)
            assert shared_repeats(router) == 0
        calls = sum(len(provider.calls) for provider in providers)
        print(f"total outage ({outage}, {count} providers, {ejection or 'ejecting'}): "
              f"{calls / 6_000:.3f} attempts a request")  # fmt: skip
        assert calls / 6_000 <= 1.1
        assert len(heard) == 6_000

    virtual_time(main)


@pytest.mark.parametrize("count", [2, 3])
def test_random_failures_are_hidden(count: int, virtual_time: Virtual) -> None:
    """With one call in ten failing everywhere, 99.5 % of the requests succeed."""

    async def main() -> None:
        rng = random.Random(5)
        kinds: list[type[ProviderError]] = [ConnectError, TransientError, SilentError, BrokenError]

        def step() -> Scripted:
            if rng.random() < 0.1:
                return Fail(rng.choice(kinds)("random"), after=rng.random() / 10)
            return Ok(after=rng.random() / 5)

        providers = [ScriptedProvider(f"p{n}", then=step) for n in range(count)]
        heard: list[str] = []
        async with make_router(*providers, history=0) as router:
            await steady(router, 6_000, 50, heard)
        good = sum(name.startswith("p") for name in heard) / 6_000
        calls = sum(len(provider.calls) for provider in providers)
        print(f"10 % random failures, {count} providers: {good:.4%} success, "
              f"{calls / 6_000:.3f} attempts a request")  # fmt: skip
        assert good >= 0.995

    virtual_time(main)


@pytest.mark.parametrize("count", [1, 2])
async def test_denied_repeat_is_told_in_the_error(count: int) -> None:
    """The caller gets the failure itself, marked as final for want of budget."""
    budget = {"capacity": 1, "per_success": 0, "per_second": 0, "min_concurrency": 9}
    providers = [
        ScriptedProvider(f"p{n}", then=lambda: TransientError("500"), ejection=NEVER_EJECT)
        for n in range(count)
    ]
    async with make_router(*providers, retry_budget=budget) as router:
        denied = []
        for _ in range(3):
            with pytest.raises(TransientError) as caught:
                await router.complete(CHAT)
            denied.append((caught.value.retry_denied, caught.value.attempts))
        assert shared_repeats(router) == 0
        assert sum(actor.retries_denied for actor in router.status().actors) >= 2
    assert denied == [("budget", 2), ("budget", 1), ("budget", 1)]


async def test_no_budget_allows_first_attempts_only() -> None:
    """Whatever was configured for retries, an empty budget makes them single attempts."""
    budget = {"capacity": 1, "per_success": 0, "per_second": 0, "min_concurrency": 0}
    budget["max_share"] = 0
    provider = ScriptedProvider("a", then=ConnectError)
    async with make_router(provider, ScriptedProvider("b", weight=1e-9), retry_budget=budget) as r:
        with pytest.raises(ConnectError) as caught:
            await r.complete(CHAT)
    assert (caught.value.attempts, caught.value.retry_denied) == (1, "budget")


async def test_first_successes_fill_the_budget() -> None:
    """Traffic that goes well earns the repeats of traffic that does not."""
    budget = {"capacity": 1, "per_success": 0.25, "per_second": 0}
    script: list[Scripted] = [TransientError("1"), *[Ok()] * 4, TransientError("2"), Ok(), Ok()]
    provider = ScriptedProvider("a", *script, TransientError("3"))
    async with make_router(provider, retry_budget=budget) as router:
        assert (await router.complete(CHAT)).attempts == 2
        for _ in range(3):
            assert (await router.complete(CHAT)).attempts == 1
        # Three quarters of a token: too little for the one that fails now.
        with pytest.raises(TransientError) as caught:
            await router.complete(CHAT)
        assert caught.value.retry_denied == "budget"


async def test_success_after_a_repeat_earns_nothing() -> None:
    """Only first successes pay in, or repeats would finance themselves."""
    budget = {"capacity": 2, "per_success": 1, "per_second": 0}

    def odd() -> Scripted:
        return TransientError("odd") if len(provider.calls) % 2 else Ok()

    provider = ScriptedProvider("a", then=odd)
    async with make_router(provider, retry_budget=budget) as router:
        assert (await router.complete(CHAT)).attempts == 2
        assert (await router.complete(CHAT)).attempts == 2
        with pytest.raises(TransientError):
            await router.complete(CHAT)


def test_sleeping_repeats_count(virtual_time: Virtual) -> None:
    """Who waits out a pause holds its slot: not all of a crowd may wait for the same instant."""

    async def main() -> None:
        busy = {"capacity": 1_000, "min_concurrency": 3, "max_share": 0}
        provider = ScriptedProvider(
            "a",
            *[OverloadedError("busy", retry_after=5) for _ in range(10)],
            limits={"concurrency": 20},
        )
        heard: list[str] = []

        async def ask() -> None:
            try:
                heard.append((await router.complete(CHAT)).text)
            except OverloadedError as error:
                heard.append(str(error.retry_denied))

        async with make_router(provider, retry_budget=busy) as router:
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(ask)
                await anyio.sleep(1)
                assert shared_repeats(router) == 3
                assert heard == ["budget"] * 7
            assert shared_repeats(router) == 0
        assert heard[7:] == ["hello"] * 3
        assert_settled(router, completed=3, failed=7)

    virtual_time(main)


def test_one_request_holds_one_slot_at_a_time(virtual_time: Virtual) -> None:
    """A request that is repeated three times is one repeat under way, three times."""

    async def main() -> None:
        provider = ScriptedProvider("a", *[ConnectError] * 3, then=Ok(after=1))
        async with make_router(provider) as router, anyio.create_task_group() as group:
            group.start_soon(router.complete, CHAT)
            await anyio.sleep(1)
            assert len(provider.calls) == 4
            assert shared_repeats(router) == 1

    virtual_time(main)


@pytest.mark.parametrize("when", [0.0, 0.01, 0.5])
def test_caller_who_leaves_gives_the_slot_back(when: float, virtual_time: Virtual) -> None:
    """In a pause, in the mailbox, or in a call."""

    async def main() -> None:
        providers = [
            ScriptedProvider(n, OverloadedError("busy", retry_after=0.2), then=Hang()) for n in "ab"
        ]
        async with make_router(*providers) as router:
            with anyio.move_on_after(when):
                await router.complete(CHAT)
            await anyio.sleep(1)
            assert shared_repeats(router) == 0

    virtual_time(main)


def test_crash_gives_the_slot_back(virtual_time: Virtual) -> None:
    """An actor that dies takes no part of the budget with it."""

    class Crash(BaseException):
        pass

    async def main() -> None:
        provider = ScriptedProvider("a", ConnectError, Crash)
        async with make_router(provider, ScriptedProvider("b", ConnectError)) as router:
            await router.complete(CHAT)
            await anyio.sleep(1)
            assert shared_repeats(router) == 0

    virtual_time(main)


def test_one_providers_budget_is_its_own(virtual_time: Virtual) -> None:
    """Where one provider's budget is used up, others are still asked."""

    async def main() -> None:
        budget = {"capacity": 100, "per_success": 0, "per_second": 0, "min_concurrency": 1}
        budget["max_share"] = 0
        slow = ScriptedProvider("slow", then=Hang())
        models = [
            {"name": "m", "targets": [{"provider": "bad"}, {"provider": "slow", "tier": 1}]},
            {"name": "n", "targets": [{"provider": "bad"}, {"provider": "free", "tier": 1}]},
        ]
        bad = ScriptedProvider("bad", then=lambda: ConnectError("no"), ejection=NEVER_EJECT)
        free = ScriptedProvider("free")
        async with make_router(bad, slow, free, models=models, retry_budget=budget) as router:
            async with anyio.create_task_group() as group:
                group.start_soon(router.complete, CHAT)
                await anyio.sleep(0.1)
                # The repeat under way at `slow` is the router's only one, too.
                with pytest.raises(ConnectError) as caught:
                    await router.complete({**CHAT, "model": "n"})
                assert caught.value.retry_denied == "budget"
                group.cancel_scope.cancel()

    virtual_time(main)
