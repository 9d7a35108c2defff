"""Hedging: a second provider beside a slow first one, under every guard."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import (
    CHAT,
    Answer,
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
    BrokenError,
    CallerError,
    ConnectError,
    ContextLengthError,
    GatewayError,
    OverloadedError,
    ProviderError,
    Replay,
    Router,
    TransientError,
)

Virtual = Callable[..., None]
Main = Callable[[], Any]

ALL = {"delay": 0.1, "max_share": 1}


FAST = Ok("fast")
SLOW = Ok("slow", after=5)


def slow_and_fast(
    *slow: Scripted, fast: Scripted = FAST, then: Scripted = SLOW
) -> tuple[ScriptedProvider, ScriptedProvider]:
    """The one that is asked first, and the one that may be asked beside it."""
    first = ScriptedProvider("first", *slow, then=then, weight=1e9)
    return first, ScriptedProvider("second", then=fast, weight=1e-9)


def hedged(
    *providers: ScriptedProvider, hedging: dict[str, Any] | None = None, **settings: Any
) -> Router:
    """A router with one model that hedges."""
    model: dict[str, Any] = {
        "name": "m",
        "targets": [{"provider": provider.name} for provider in providers],
        "hedging": hedging or ALL,
        **{key: settings.pop(key) for key in ("retries", "fallbacks") if key in settings},
    }
    return make_router(*providers, models=[model], **settings)


# ── the race ─────────────────────────────────────────────────────────────────────


def test_second_answer_wins_and_the_first_call_is_given_up(virtual_time: Virtual) -> None:
    """The caller gets the quick answer; the slow call is cancelled and booked as wasted."""

    async def main() -> None:
        first, second = slow_and_fast(fast=Ok("fast", after=0.2, tokens=(3, 4)))
        async with hedged(first, second) as router:
            start = anyio.current_time()
            response = await router.complete(CHAT)
            took = anyio.current_time() - start
            assert (response.text, response.provider, response.attempts) == ("fast", "second", 2)
            assert 0.3 <= took < 0.35
            await until(lambda: first.outcomes == ["cancelled"])
            assert anyio.current_time() - start - took < 0.05
        ledger = router.status().ledger
        assert (ledger.attempts, ledger.wasted, ledger.output_tokens) == (2, 1, 4)
        assert_settled(router, completed=1)

    virtual_time(main)


def test_first_answer_wins_and_the_second_call_is_given_up(virtual_time: Virtual) -> None:
    """A hedge that comes too late is cancelled just so."""

    async def main() -> None:
        first, second = slow_and_fast(Ok("first", after=0.5), fast=Hang())
        async with hedged(first, second) as router:
            response = await router.complete(CHAT)
            assert (response.text, response.provider, response.attempts) == ("first", "first", 2)
            await until(lambda: second.outcomes == ["cancelled"])
        assert [call.number for call in first.calls + second.calls] == [1, 2]
        assert router.status().ledger.wasted == 1

    virtual_time(main)


async def test_quick_answer_is_never_hedged() -> None:
    """Nobody else is asked before the delay is over."""
    first, second = slow_and_fast(then=Ok("quick"))
    async with hedged(first, second, hedging={"delay": 60, "max_share": 1}) as router:
        for _ in range(20):
            assert (await router.complete(CHAT)).attempts == 1
    assert second.calls == []
    assert_settled(router, completed=20)


def test_first_fails_while_the_second_runs(virtual_time: Virtual) -> None:
    """The second is waited for; nobody is asked a third time."""

    async def main() -> None:
        third = ScriptedProvider("third", weight=1e-12)
        first, second = slow_and_fast(Fail(TransientError, after=0.3), fast=Ok("late", after=3))
        async with hedged(first, second, third) as router:
            response = await router.complete(CHAT)
            assert (response.provider, response.attempts) == ("second", 2)
        assert third.calls == []

    virtual_time(main)


def test_second_fails_while_the_first_runs(virtual_time: Virtual) -> None:
    """A hedge that fails changes nothing for the first call."""

    async def main() -> None:
        first, second = slow_and_fast(Ok("first", after=3), fast=Fail(ConnectError, after=0.1))
        async with hedged(first, second) as router:
            response = await router.complete(CHAT)
            assert (response.provider, response.attempts) == ("first", 2)
        assert (len(first.calls), len(second.calls)) == (1, 1)
        assert router.status().ledger.wasted == 0

    virtual_time(main)


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (1, 1)])
def test_both_fail_and_somebody_else_answers(order: tuple[int, int], virtual_time: Virtual) -> None:
    """After both have failed the request goes on as any other."""

    async def main() -> None:
        first, second = slow_and_fast(
            Fail(TransientError, after=order[0] + 0.1), fast=Fail(ConnectError, after=order[1])
        )
        third = ScriptedProvider("third", Ok("third"), weight=1e-12)
        async with hedged(first, second, third) as router:
            response = await router.complete(CHAT)
            assert (response.provider, response.attempts) == ("third", 3)
        assert_settled(router, completed=1)

    virtual_time(main)


@pytest.mark.parametrize(("first_after", "last"), [(1, ConnectError), (5, TransientError)])
def test_both_fail_and_nobody_is_left(
    first_after: float, last: type[ProviderError], virtual_time: Virtual
) -> None:
    """The failure that came last is the caller's."""

    async def main() -> None:
        first, second = slow_and_fast(
            Fail(TransientError, after=first_after), fast=Fail(ConnectError, after=3)
        )
        async with hedged(first, second, retries={"max_attempts": 2}) as router:
            with pytest.raises(last) as caught:
                await router.complete(CHAT)
        assert caught.value.attempts == 2
        assert_settled(router, failed=1)

    virtual_time(main)


def test_callers_mistake_ends_the_race(virtual_time: Virtual) -> None:
    """What the first one says against the request, the second would say as well."""

    async def main() -> None:
        first, second = slow_and_fast(Fail(CallerError, after=1), fast=Hang())
        async with hedged(first, second) as router:
            with pytest.raises(CallerError) as caught:
                await router.complete(CHAT)
            await until(lambda: second.outcomes == ["cancelled"])
        assert caught.value.attempts == 2
        assert_settled(router, failed=1)

    virtual_time(main)


def test_mistake_and_answer_in_the_same_turn_is_an_answer(virtual_time: Virtual) -> None:
    """Of two that end at the same instant, the one with an answer counts."""

    async def main() -> None:
        for after in (1.0, 1.1):
            first, second = slow_and_fast(Fail(CallerError, after=after), fast=Ok("ok", after=1))
            async with hedged(first, second, hedging={"delay": 0.095, "max_share": 1}) as router:
                try:
                    assert (await router.complete(CHAT)).text == "ok"
                except CallerError:
                    # The mistake came first after all.
                    assert after == 1.0
            assert router.status().ledger.conservation_error == 0

    virtual_time(main)


def test_too_long_prompt_leaves_for_its_fallback_at_once(virtual_time: Virtual) -> None:
    """The race ends, and the model that is named for it answers."""

    async def main() -> None:
        first, second = slow_and_fast(Fail(ContextLengthError, after=1), fast=Hang())
        other = ScriptedProvider("other", Ok("long"))
        models = [
            {
                "name": "m",
                "targets": [{"provider": "first"}, {"provider": "second"}],
                "hedging": ALL,
                "fallbacks": {"context_length": ["n"]},
            },
            {"name": "n", "targets": [{"provider": "other"}]},
        ]
        async with make_router(first, second, other, models=models) as router:
            response = await router.complete(CHAT)
            assert (response.text, response.fallbacks, response.attempts) == ("long", ("n",), 3)
            await until(lambda: second.outcomes == ["cancelled"])

    virtual_time(main)


def test_both_may_have_been_billed_and_nothing_more_is_sent(virtual_time: Virtual) -> None:
    """A race is what was configured; what follows it obeys the rule for repeats."""

    async def main() -> None:
        failure = BrokenError("cut", replay=Replay.MAYBE_ACCEPTED)
        first, second = slow_and_fast(Fail(failure, after=1), fast=Fail(ConnectError, after=3))
        third = ScriptedProvider("third", weight=1e-12)
        retries = {"repeat_maybe_accepted": "never"}
        async with hedged(first, second, third, retries=retries) as router:
            with pytest.raises(BrokenError) as caught:
                await router.complete(CHAT)
        assert caught.value.attempts == 2
        assert third.calls == []

    virtual_time(main)


@pytest.mark.parametrize("streamed", [False, True])
def test_caller_who_leaves_ends_both_calls(streamed: bool, virtual_time: Virtual) -> None:
    """Both are cancelled, both may have been billed, and the request is settled once."""

    async def main() -> None:
        first, second = slow_and_fast(then=Hang(), fast=Hang())
        async with hedged(first, second) as router:
            with anyio.move_on_after(1):
                if streamed:
                    async with router.stream(CHAT):
                        pass
                else:
                    await router.complete(CHAT)
            await until(lambda: first.outcomes == second.outcomes == ["cancelled"])
        ledger = router.status().ledger
        assert (ledger.attempts, ledger.wasted) == (2, 2)
        assert_settled(router, cancelled=1)

    virtual_time(main)


def test_deadline_ends_both_calls(virtual_time: Virtual) -> None:
    """Two hanging providers cost the caller no more time than one."""

    async def main() -> None:
        first, second = slow_and_fast(then=Hang(), fast=Hang())
        async with hedged(first, second) as router:
            start = anyio.current_time()
            with pytest.raises(GatewayError) as caught:
                await router.complete(CHAT, timeout=3)
            assert caught.value.status == 504
            assert anyio.current_time() - start <= 3.1
            await until(lambda: first.outcomes == second.outcomes == ["cancelled"])
        assert_settled(router, failed=1)

    virtual_time(main)


@pytest.mark.parametrize("winner", ["first", "second"])
def test_race_of_streams_is_won_by_the_first_event(winner: str, virtual_time: Virtual) -> None:
    """The loser's source is closed before it has given anything."""

    async def main() -> None:
        after = 0.3 if winner == "first" else 9
        first, second = slow_and_fast(
            Events(after, "from ", 0.5, "first"), fast=Events(1, "from ", 0.5, "second")
        )
        async with hedged(first, second) as router:
            async with router.stream(CHAT) as stream:
                assert (stream.provider, stream.attempts) == (winner, 2)
                loser = second if winner == "first" else first
                await until(lambda: loser.calls[0].closed)
                assert "".join([chunk.text async for chunk in stream]) == f"from {winner}"
        assert loser.outcomes == ["cancelled"]
        assert router.status().ledger.wasted == 1
        assert_settled(router, completed=1)

    virtual_time(main)


def test_two_streams_with_their_first_event_at_the_same_instant(virtual_time: Virtual) -> None:
    """Whoever loses by a hair is closed as well."""

    async def main() -> None:
        for late in (0.19, 0.195, 0.2, 0.205, 0.21):
            first, second = slow_and_fast(Events(0.3, "a", 5, "b"), fast=Events(late, "a", 5, "b"))
            async with hedged(first, second) as router:
                async with router.stream(CHAT) as stream:
                    assert len([chunk async for chunk in stream]) == 2
            assert all(call.closed for call in first.calls + second.calls)
            assert_settled(router, completed=1)

    virtual_time(main)


async def test_race_runs_on_every_event_loop() -> None:
    """The same on a real clock: the second answer wins, the first call is cancelled."""
    first, second = slow_and_fast(then=Hang())
    async with hedged(first, second, hedging={"delay": 0.02, "max_share": 1}) as router:
        assert (await router.complete(CHAT)).provider == "second"
        await until(lambda: first.outcomes == ["cancelled"])
    assert_settled(router, completed=1)


# ── guards ───────────────────────────────────────────────────────────────────────


async def attempts(router: Router, **body: Any) -> int:
    """Calls that one request takes."""
    return (await router.complete({**CHAT, **body})).attempts


def guarded(main: Main) -> Callable[[Virtual], None]:
    """A test in virtual time."""

    def test(virtual_time: Virtual) -> None:
        virtual_time(main)

    test.__doc__ = main.__doc__
    return test


@guarded
async def test_without_an_idea_of_what_is_slow_nothing_is_hedged() -> None:
    """With no delay configured and no answers seen yet, the first one is waited for."""
    async with hedged(*slow_and_fast(), hedging={"max_share": 1}) as router:
        assert await attempts(router) == 1


@guarded
async def test_usual_time_of_the_first_one_is_the_delay() -> None:
    """Without a configured delay, 95 % of its answers have come before anybody else is asked."""
    first, second = slow_and_fast(*[Ok(after=0.5)] * 20)
    async with hedged(first, second, hedging={"max_share": 1}) as router:
        for _ in range(20):
            assert await attempts(router) == 1
        start = anyio.current_time()
        assert await attempts(router) == 2
        assert second.calls[0].at - start == pytest.approx(0.5, abs=0.02)


@guarded
async def test_usual_time_is_waited_for_even_with_a_shorter_delay() -> None:
    """A configured delay never makes an ordinary answer a slow one."""
    first, second = slow_and_fast(*[Ok(after=1)] * 20, fast=Ok(after=3))
    async with hedged(first, second) as router:
        # Nothing is known of the first answer, so the configured delay counts.
        assert [await attempts(router) for _ in range(20)] == [2, *[1] * 19]
        start = anyio.current_time()
        assert await attempts(router) == 2
        assert second.calls[1].at - start == pytest.approx(1, abs=0.02)


@guarded
async def test_answer_that_is_kept_at_the_provider_is_not_asked_for_twice() -> None:
    """`store: true` leaves something behind: two calls would leave it twice."""
    async with hedged(*slow_and_fast()) as router:
        assert await attempts(router, store=False) == 2
        assert await attempts(router, store=True) == 1


@guarded
async def test_one_attempt_is_one_attempt() -> None:
    """`max_attempts: 1` allows no second call, slow or not."""
    async with hedged(*slow_and_fast(), retries={"max_attempts": 1}) as router:
        assert await attempts(router) == 1


@guarded
async def test_same_provider_is_not_raced_against_itself() -> None:
    """A second target at the slow provider is no second provider."""
    provider = ScriptedProvider("a", then=Ok(after=3))
    targets = [{"provider": "a", "model": "x"}, {"provider": "a", "model": "y"}]
    models = [{"name": "m", "targets": targets, "hedging": ALL}]
    async with make_router(provider, models=models) as router:
        assert await attempts(router) == 1


@guarded
async def test_deadline_before_the_delay_leaves_no_time_for_a_hedge() -> None:
    """Nobody is asked beside the first one just to be cancelled with it."""
    first, second = slow_and_fast(then=Hang())
    async with hedged(first, second, hedging={"delay": 5, "max_share": 1}) as router:
        with pytest.raises(GatewayError):
            await router.complete(CHAT, timeout=4)
    assert second.calls == []


@guarded
async def test_share_of_hedged_requests_is_bounded() -> None:
    """Of 200 slow requests no more than the configured part is asked twice."""
    # It fails late, for its answers would make its slowness the usual thing.
    failure = Fail(ConnectError, after=1)
    never = {"consecutive_failures": 0, "failure_rate": 0}
    first = ScriptedProvider("first", then=failure, weight=1e9, ejection=never)
    second = ScriptedProvider("second", weight=1e-9)
    async with hedged(first, second, hedging={"delay": 0.1, "max_share": 0.1}) as router:
        for _ in range(200):
            await router.complete(CHAT)
        assert router._running is not None
        hedges = router._running.reloader.current.plans["m"].hedges
    assert hedges is not None
    assert hedges.requests == 200
    assert 18 <= hedges.taken <= 20


async def busy(router: Router, provider: str, count: int, group: Any) -> None:
    """Give a provider so many calls that hang."""
    for _ in range(count):
        group.start_soon(router.complete, {**CHAT, "model": f"only-{provider}"})
    await anyio.sleep(0.01)


def with_load(
    first: ScriptedProvider, second: ScriptedProvider, hanging: int, **settings: Any
) -> Router:
    """A router where the second provider can be given other work, which hangs."""
    second._script.extend([Hang()] * hanging)
    targets = [{"provider": "first"}, {"provider": "second"}]
    models = [
        {"name": "m", "targets": targets, "hedging": ALL},
        {"name": "only-second", "targets": [{"provider": "second"}]},
    ]
    return make_router(first, second, models=models, **settings)


@pytest.mark.parametrize(("hanging", "expected"), [(7, 2), (8, 1)])
def test_second_one_must_have_room_to_spare(
    hanging: int, expected: int, virtual_time: Virtual
) -> None:
    """It takes a hedge only while three tenths of its concurrency are free."""

    async def main() -> None:
        first = ScriptedProvider(
            "first", then=Ok(after=0.2), weight=1e9, limits={"concurrency": 100}
        )
        second = ScriptedProvider("second", weight=1e-9, limits={"concurrency": 10})
        async with with_load(first, second, hanging) as router:
            async with anyio.create_task_group() as group:
                await busy(router, "second", hanging, group)
                assert await attempts(router) == expected
                group.cancel_scope.cancel()

    virtual_time(main)


@pytest.mark.parametrize(("hanging", "expected"), [(5, 2), (7, 1)])
def test_busy_gateway_hedges_nothing(hanging: int, expected: int, virtual_time: Virtual) -> None:
    """Above 70 % of all concurrency, hedging would finish off a brown-out."""

    async def main() -> None:
        first = ScriptedProvider("first", then=Ok(after=0.2), weight=1e9, limits={"concurrency": 1})
        second = ScriptedProvider("second", weight=1e-9, limits={"concurrency": 10})
        async with with_load(first, second, hanging) as router:
            async with anyio.create_task_group() as group:
                await busy(router, "second", hanging, group)
                assert await attempts(router) == expected
                group.cancel_scope.cancel()

    virtual_time(main)


@guarded
async def test_second_one_must_be_healthy() -> None:
    """A provider that has failed lately is no help in a hurry."""
    async with hedged(*slow_and_fast()) as router:
        assert await attempts(router) == 2
        router.eject("second")
        assert await attempts(router) == 1


@guarded
async def test_paused_provider_is_not_hedged_to() -> None:
    """Push-back of any kind stops hedging."""
    first, second = slow_and_fast(fast=Fail(OverloadedError("busy", retry_after=60)))
    async with hedged(first, second) as router:
        assert await attempts(router) == 2
        assert await attempts(router) == 1
    assert len(second.calls) == 1


@guarded
async def test_retry_budget_must_be_more_than_half_full() -> None:
    """Hedges come last: they leave the budget to those whose attempt has failed."""
    budget = {"capacity": 4, "per_success": 0, "per_second": 0}
    async with hedged(*slow_and_fast(), retry_budget=budget) as router:
        assert [await attempts(router) for _ in range(5)] == [2, 2, 2, 1, 1]


@guarded
async def test_hedge_gives_its_slot_back() -> None:
    """After the race no repeat is under way any more, whoever has won."""
    for fast in (Ok(), Hang(), Fail(ConnectError)):
        async with hedged(*slow_and_fast(Ok(after=1), fast=fast)) as router:
            assert await attempts(router) == 2
            assert router._running is not None
            await anyio.sleep(0.1)
            assert router._running._permits.shared.repeats == 0


@guarded
async def test_hedge_is_told_in_the_record() -> None:
    """The story shows both picks and what became of both calls."""
    async with hedged(*slow_and_fast()) as router:
        await attempts(router)
        assert router._running is not None
        (record,) = router._running.history.latest(1)
    steps = record.as_dict(0, 0, 0)["steps"]
    shown = [
        (step["picked"], step["resort"])
        if step["step"] == "pick"
        else (step["provider"], step["result"])
        for step in steps
    ]
    assert shown == [
        ("first", "healthy"), ("second", "hedge"), ("second", "answered"), ("first", "abandoned"),
    ]  # fmt: skip


@guarded
async def test_model_without_hedging_is_never_hedged() -> None:
    """It is off unless a model asks for it."""
    first, second = slow_and_fast()
    async with make_router(first, second) as router:
        assert await attempts(router) == 1


@guarded
async def test_odd_answers_lose_no_request() -> None:
    """What an adapter gives back instead of an answer is a failure like any other."""
    first, second = slow_and_fast(Answer(None), fast=Ok("good"))
    async with hedged(first, second) as router:
        assert (await router.complete(CHAT)).text == "good"
    assert_settled(router, completed=1)
