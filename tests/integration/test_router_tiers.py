"""Tiers and time: what is kept back for the last tier, and what is answered early."""

from collections.abc import Callable

import anyio
import pytest
from scripted import (
    CHAT,
    Fail,
    Hang,
    Ok,
    ScriptedProvider,
    assert_settled,
    make_router,
)

from engine import (
    ConnectError,
    GatewayError,
    NoProviderAvailableError,
    OverloadedError,
    Router,
    SilentError,
)

Virtual = Callable[..., None]


def tiered(*providers: ScriptedProvider, **settings: object) -> Router:
    """A router with one provider in each tier."""
    targets = [{"provider": each.name, "tier": n} for n, each in enumerate(providers)]
    return make_router(*providers, models=[{"name": "m", "targets": targets}], **settings)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("hanging", [1, 2, 3])
@pytest.mark.parametrize("timeout", [2.0, 10.0, 110.0])
def test_hanging_tiers_leave_the_last_one_its_time(
    streamed: bool, hanging: int, timeout: float, virtual_time: Virtual
) -> None:
    """However many tiers hang before it, the last one can still answer within the deadline."""

    async def main() -> None:
        hung = [ScriptedProvider(f"h{n}", then=Hang()) for n in range(hanging)]
        last = ScriptedProvider("last", Ok(after=timeout / 20))
        retries = {"max_attempts": 9, "repeat_maybe_accepted": "always"}
        async with tiered(*hung, last, retries=retries) as router:
            start = anyio.current_time()
            if streamed:
                async with router.stream(CHAT, timeout=timeout) as stream:
                    provider = stream.provider
            else:
                provider = (await router.complete(CHAT, timeout=timeout)).provider
            assert provider == "last"
            assert anyio.current_time() - start < timeout
        assert [len(each.calls) for each in hung] == [1] * hanging

    virtual_time(main)


def test_time_kept_back_is_at_most_what_the_next_tier_would_take(virtual_time: Virtual) -> None:
    """With much time, the first tier keeps all but one attempt's worth of it."""

    async def main() -> None:
        first = ScriptedProvider("first", then=Hang(), timeout=20)
        last = ScriptedProvider("last", timeout=20)
        async with tiered(first, last) as router:
            await router.complete(CHAT)
            # Its own limit is the sooner one here.
            assert last.calls[0].at - first.calls[0].at == pytest.approx(20, abs=0.1)
        first = ScriptedProvider("first", then=Hang(), timeout=60)
        last = ScriptedProvider("last", timeout=60)
        async with tiered(first, last) as router:
            await router.complete(CHAT, timeout=50)
            assert last.calls[0].at - first.calls[0].at == pytest.approx(25, abs=0.1)

    virtual_time(main)


def test_last_tier_may_use_all_that_is_left(virtual_time: Virtual) -> None:
    """Nothing is kept back when nobody stands behind."""

    async def main() -> None:
        first = ScriptedProvider("first", ConnectError)
        last = ScriptedProvider("last", Ok(after=9))
        async with tiered(first, last) as router:
            assert (await router.complete(CHAT, timeout=10)).provider == "last"

    virtual_time(main)


def test_first_tier_that_is_cut_off_is_not_the_callers_deadline(virtual_time: Virtual) -> None:
    """Time that was kept back ends an attempt as silent, which counts against the provider."""

    async def main() -> None:
        first = ScriptedProvider("first", then=Hang())
        last = ScriptedProvider("last", then=ConnectError, max_retries=0)
        async with tiered(first, last) as router:
            with pytest.raises((SilentError, ConnectError)):
                await router.complete(CHAT, timeout=10)
            status = router.status().actors[0]
            assert status.failed == {"silent": 1}

    virtual_time(main)


def test_full_mailbox_of_the_first_tier_leaves_time_as_well(virtual_time: Virtual) -> None:
    """Who waits in the first tier's queue without being served goes on to the second."""

    async def main() -> None:
        first = ScriptedProvider("first", then=Hang(), limits={"concurrency": 1}, timeout=60)
        second = ScriptedProvider("second")
        models = [
            {
                "name": "m",
                "targets": [{"provider": "first"}, {"provider": "second", "tier": 1}],
            },
            {"name": "only-first", "targets": [{"provider": "first"}]},
        ]
        async with make_router(first, second, models=models) as router:
            async with anyio.create_task_group() as group:
                group.start_soon(router.complete, {**CHAT, "model": "only-first"})
                await anyio.sleep(0.01)
                start = anyio.current_time()
                response = await router.complete(CHAT, timeout=10)
                assert (response.provider, response.attempts) == ("second", 1)
                assert anyio.current_time() - start == pytest.approx(5, abs=0.1)
                group.cancel_scope.cancel()
        assert len(first.calls) == 1
        assert_settled(router, completed=1, cancelled=1)

    virtual_time(main)


# ── cannot make it ───────────────────────────────────────────────────────────────


def test_deadline_that_nobody_can_meet_is_answered_early(virtual_time: Virtual) -> None:
    """With less than a fifth of the usual time left, nothing is begun: 504 at once."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Ok(after=5))
        async with make_router(provider) as router:
            await router.complete(CHAT)
            start = anyio.current_time()
            with pytest.raises(NoProviderAvailableError) as caught:
                await router.complete(CHAT, timeout=0.9)
            assert anyio.current_time() == start
            error = caught.value
            assert (error.reason, error.status) == ("deadline_too_short", 504)
            assert (error.type, error.attempts) == ("timeout_error", 0)
            with pytest.raises(GatewayError) as later:
                await router.complete(CHAT, timeout=1.1)
            assert later.value.attempts == 1
        assert len(provider.calls) == 2
        assert_settled(router, completed=1, rejected=1, failed=1)

    virtual_time(main)


def test_short_deadline_goes_to_who_is_quick_enough(virtual_time: Virtual) -> None:
    """A slow provider is passed over by a request that has no time for it."""

    async def main() -> None:
        slow = ScriptedProvider("slow", then=Ok(after=10), weight=1e9)
        quick = ScriptedProvider("quick", then=Ok(after=0.1), weight=1e-9)
        async with make_router(slow, quick) as router:
            await router.complete(CHAT)
            assert (await router.complete(CHAT, timeout=1)).provider == "quick"
        assert len(slow.calls) == 1

    virtual_time(main)


def test_queue_that_is_too_long_is_refused_with_a_true_hint(virtual_time: Virtual) -> None:
    """Who could not be served in time is told so at once, and when it can: then it works."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Ok(after=2), limits={"concurrency": 1, "queue": 50})
        async with make_router(provider) as router:
            await router.complete(CHAT)
            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(router.complete, CHAT)
                await anyio.sleep(0.01)
                start = anyio.current_time()
                with pytest.raises(NoProviderAvailableError) as caught:
                    await router.complete(CHAT, timeout=7)
                assert anyio.current_time() == start
                error = caught.value
                assert (error.reason, error.status) == ("queue_too_long", 503)
                assert error.retry_after is not None
                # Ten of two seconds stand before it, of which seven seconds are its own.
                assert 12 <= error.retry_after <= 18
                await anyio.sleep(error.retry_after + 0.01)
                start = anyio.current_time()
                await router.complete(CHAT, timeout=7)
                assert anyio.current_time() - start <= 7
        assert_settled(router, completed=12, rejected=1)

    virtual_time(main)


def test_refused_for_lack_of_time_goes_to_the_next_tier(virtual_time: Virtual) -> None:
    """A queue that is too long makes room for a lower tier, not for an error."""

    async def main() -> None:
        first = ScriptedProvider("first", then=Ok(after=2), limits={"concurrency": 1})
        second = ScriptedProvider("second")
        async with tiered(first, second) as router:
            await router.complete(CHAT)
            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(router.complete, CHAT)
                await anyio.sleep(0.01)
                assert (await router.complete(CHAT, timeout=7)).provider == "second"

    virtual_time(main)


def test_time_is_kept_back_over_a_pause(virtual_time: Virtual) -> None:
    """A provider's hint is not waited for into the time of the next tier."""

    async def main() -> None:
        first = ScriptedProvider("first", Fail(OverloadedError("busy", retry_after=4)))
        second = ScriptedProvider("second", ConnectError, ConnectError, then=Ok())
        async with tiered(first, second) as router:
            start = anyio.current_time()
            assert (await router.complete(CHAT, timeout=10)).provider == "second"
            assert anyio.current_time() - start < 1

    virtual_time(main)
