"""Attempts: how many, where, after how long, and which failures allow another."""

import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import CHAT, Fail, Ok, ScriptedProvider, assert_settled, make_router

from engine import (
    BrokenError,
    CallerError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    DeadlineExceededError,
    GatewayError,
    MisconfiguredError,
    NoProviderAvailableError,
    OverloadedError,
    ProviderError,
    Replay,
    SilentError,
    TransientError,
)

ALWAYS = {"max_attempts": 4, "repeat_maybe_accepted": "always"}
NEVER = {"max_attempts": 4, "repeat_maybe_accepted": "never"}
NON_STREAMING = {"max_attempts": 4, "repeat_maybe_accepted": "non_streaming"}


@pytest.mark.parametrize(
    "failure",
    [ConnectError, OverloadedError, TransientError, SilentError, BrokenError, MisconfiguredError],
)
async def test_failure_goes_to_another_provider(failure: type[ProviderError]) -> None:
    """Failures that say nothing against the request are tried elsewhere, at once."""
    bad = ScriptedProvider("bad", then=failure, weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    async with make_router(bad, good) as router:
        response = await router.complete(CHAT)
    assert response.provider == "good"
    assert response.attempts == 2
    assert [call.number for call in bad.calls + good.calls] == [1, 2]
    assert_settled(router, completed=1)


@pytest.mark.parametrize("failure", [CallerError, ContextLengthError, ContentFilterError])
async def test_callers_mistake_is_never_repeated(failure: type[ProviderError]) -> None:
    """What is wrong with the request itself would be wrong everywhere."""
    bad = ScriptedProvider("bad", then=failure, weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    async with make_router(bad, good) as router:
        with pytest.raises(failure) as caught:
            await router.complete(CHAT)
    assert caught.value.provider == "bad"
    assert len(bad.calls) == 1
    assert good.calls == []
    assert_settled(router, failed=1)


@pytest.mark.parametrize("failure", [ConnectError, OverloadedError, TransientError])
async def test_alone_it_is_repeated_at_the_same_provider(failure: type[ProviderError]) -> None:
    """With nobody else, the same provider is asked again after a backoff."""
    provider = ScriptedProvider("a", failure, failure, Ok("third"))
    async with make_router(provider) as router:
        response = await router.complete(CHAT)
    assert (response.text, response.attempts) == ("third", 3)
    assert [call.number for call in provider.calls] == [1, 2, 3]


@pytest.mark.parametrize("failure", [SilentError, BrokenError, MisconfiguredError])
async def test_some_failures_are_not_repeated_at_the_same_provider(
    failure: type[ProviderError],
) -> None:
    """Silence, broken answers and refused keys do not get better by asking again."""
    provider = ScriptedProvider("a", failure)
    async with make_router(provider) as router:
        with pytest.raises(failure):
            await router.complete(CHAT)
    assert len(provider.calls) == 1


@pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_attempts_never_exceed_max_attempts(
    most: int, count: int, virtual_time: Callable[..., None]
) -> None:
    """Over all providers and repeats there are exactly `max_attempts` upstream calls."""

    async def main() -> None:
        providers = [
            ScriptedProvider(f"p{n}", then=ConnectError, max_retries=20) for n in range(count)
        ]
        async with make_router(*providers, retries={"max_attempts": most}) as router:
            with pytest.raises(ConnectError):
                await router.complete(CHAT)
        numbers = sorted(call.number for provider in providers for call in provider.calls)
        assert numbers == list(range(1, most + 1))
        assert_settled(router, failed=1)

    virtual_time(main)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("repeats", [0, 1, 2])
def test_repeats_at_one_provider_never_exceed_max_retries(
    count: int, repeats: int, virtual_time: Callable[..., None]
) -> None:
    """Each provider sees one attempt and `max_retries` repeats of a request at most."""

    async def main() -> None:
        providers = [
            ScriptedProvider(f"p{n}", then=ConnectError, max_retries=repeats) for n in range(count)
        ]
        async with make_router(*providers, retries={"max_attempts": 50}) as router:
            with pytest.raises(ConnectError):
                await router.complete(CHAT)
        assert [len(provider.calls) for provider in providers] == [1 + repeats] * count

    virtual_time(main)


async def test_all_others_come_before_a_repeat() -> None:
    """Nobody is asked a second time before everybody has failed once."""
    providers = [ScriptedProvider(name, ConnectError) for name in "abc"]
    async with make_router(*providers) as router:
        response = await router.complete(CHAT)
    assert response.attempts == 4
    firsts = sorted(provider.calls[0].number for provider in providers)
    assert firsts == [1, 2, 3]
    assert sorted(len(provider.calls) for provider in providers) == [1, 1, 2]


def test_going_elsewhere_does_not_wait(virtual_time: Callable[..., None]) -> None:
    """Failing over takes no backoff, even where the failed provider named a pause."""

    async def main() -> None:
        providers = [
            ScriptedProvider(name, then=OverloadedError("busy", retry_after=30)) for name in "abc"
        ]
        good = ScriptedProvider("good", weight=1e-6)
        async with make_router(*providers, good) as router:
            start = anyio.current_time()
            response = await router.complete(CHAT)
            assert anyio.current_time() - start < 0.001
        assert (response.provider, response.attempts) == ("good", 4)

    virtual_time(main)


def test_second_round_waits_a_backoff(virtual_time: Callable[..., None]) -> None:
    """When everybody has failed once, the repeat comes after a jittered pause, not at once."""

    async def main() -> None:
        pauses = []
        for seed in range(20):
            a, b = ScriptedProvider("a", ConnectError), ScriptedProvider("b", ConnectError)
            async with make_router(a, b, seed=seed) as router:
                assert (await router.complete(CHAT)).attempts == 3
            times = sorted(call.at for call in a.calls + b.calls)
            assert times[1] == times[0]
            pauses.append(times[2] - times[1])
        assert all(0 <= pause <= 0.05 for pause in pauses)
        assert max(pauses) > 0.02

    virtual_time(main)


def test_backoff_is_full_jitter_doubling_to_two_seconds(
    virtual_time: Callable[..., None],
) -> None:
    """Each pause lies between 0 and 50 ms doubling to 2 s, and uses the whole range."""

    async def main() -> None:
        largest = [0.0] * 9
        for seed in range(60):
            provider = ScriptedProvider("a", *[ConnectError] * 9, max_retries=20)
            retries = {"max_attempts": 10}
            async with make_router(provider, seed=seed, retries=retries, total=1000) as router:
                await router.complete(CHAT)
            for repeat in range(9):
                pause = provider.calls[repeat + 1].at - provider.calls[repeat].at
                assert 0 <= pause <= min(2.0, 0.05 * 2**repeat) + 1e-9
                largest[repeat] = max(largest[repeat], pause)
        for repeat, seen in enumerate(largest):
            assert seen > 0.8 * min(2.0, 0.05 * 2**repeat)

    virtual_time(main)


def test_retry_after_is_a_floor(virtual_time: Callable[..., None]) -> None:
    """A provider's hint is waited for in full, spread by up to half."""

    async def main() -> None:
        for seed in range(20):
            provider = ScriptedProvider("a", OverloadedError("busy", retry_after=7))
            async with make_router(provider, seed=seed) as router:
                await router.complete(CHAT)
            pause = provider.calls[1].at - provider.calls[0].at
            assert 7 <= pause <= 10.5

    virtual_time(main)


def test_all_overloaded_waits_for_the_soonest_hint(virtual_time: Callable[..., None]) -> None:
    """When every provider asked for a pause that fits the deadline, the soonest is awaited."""

    async def main() -> None:
        slow = ScriptedProvider("slow", OverloadedError("busy", retry_after=40))
        soon = ScriptedProvider("soon", OverloadedError("busy", retry_after=4))
        async with make_router(slow, soon) as router:
            start = anyio.current_time()
            response = await router.complete(CHAT)
            assert 4 <= anyio.current_time() - start <= 6.1
        assert (response.provider, response.attempts) == ("soon", 3)

    virtual_time(main)


def test_no_wait_that_would_overrun_the_deadline(virtual_time: Callable[..., None]) -> None:
    """A hint beyond the deadline is not waited for: the failure comes at once."""

    async def main() -> None:
        provider = ScriptedProvider("a", OverloadedError("busy", retry_after=7))
        async with make_router(provider) as router:
            start = anyio.current_time()
            with pytest.raises(OverloadedError):
                await router.complete(CHAT, timeout=6)
            assert anyio.current_time() - start < 0.1
        assert len(provider.calls) == 1

    virtual_time(main)


def test_hint_closes_the_provider_for_others(virtual_time: Callable[..., None]) -> None:
    """After a `Retry-After` nobody else is sent there until its instant."""

    async def main() -> None:
        first = OverloadedError("busy", retry_after=10)
        provider = ScriptedProvider("a", first, max_retries=0)
        async with make_router(provider) as router:
            with pytest.raises(OverloadedError):
                await router.complete(CHAT)
            await anyio.sleep(4)
            with pytest.raises(NoProviderAvailableError) as caught:
                await router.complete(CHAT)
            assert caught.value.reason == "overloaded"
            assert caught.value.retry_after == pytest.approx(6, abs=0.1)
            assert len(provider.calls) == 1
            await anyio.sleep(6)
            assert (await router.complete(CHAT)).text == "hello"
        assert_settled(router, completed=1, failed=1, rejected=1)

    virtual_time(main)


REPLAYS = [
    (NEVER, False, 1),
    (NEVER, True, 1),
    (NON_STREAMING, False, 2),
    (NON_STREAMING, True, 1),
    (ALWAYS, False, 2),
    (ALWAYS, True, 2),
]


@pytest.mark.parametrize(("retries", "streamed", "calls"), REPLAYS)
@pytest.mark.parametrize("elsewhere", [True, False], ids=["elsewhere", "here"])
async def test_possibly_executed_is_repeated_only_where_allowed(
    retries: dict[str, Any], streamed: bool, calls: int, elsewhere: bool
) -> None:
    """`maybe_accepted` obeys `repeat_maybe_accepted`, here and elsewhere, streamed or not."""
    failure = TransientError("reset", replay=Replay.MAYBE_ACCEPTED)
    made: list[int] = []
    raised: TransientError | None = None
    script = [Fail(failure), Ok()] if not elsewhere else [Fail(failure)]
    providers = [ScriptedProvider("a", *script, weight=1e6)]
    if elsewhere:
        providers.append(ScriptedProvider("b", weight=1e-3))
    for provider in providers:
        provider.watch = lambda attempt: made.append(attempt.number)
    async with make_router(*providers, retries=retries) as router:
        try:
            if streamed:
                async with router.stream(CHAT) as stream:
                    assert [chunk.text async for chunk in stream][-1] == "hello"
            else:
                await router.complete(CHAT)
        except TransientError as error:
            raised = error
    assert made == list(range(1, calls + 1))
    assert raised is (failure if calls == 1 else None)


async def test_never_executed_is_repeated_whatever_the_configuration_says() -> None:
    """`not_accepted` failures may always be repeated."""
    a, b = ScriptedProvider("a", ConnectError, weight=1e6), ScriptedProvider("b", weight=1e-3)
    async with make_router(a, b, retries=NEVER) as router:
        assert (await router.complete(CHAT)).provider == "b"


async def test_last_failure_is_the_one_that_is_raised() -> None:
    """When nobody could serve, the caller gets the failure of the last attempt."""
    a = ScriptedProvider("a", then=ConnectError, weight=1e6, max_retries=0)
    b = ScriptedProvider("b", then=MisconfiguredError, weight=1e-3, max_retries=0)
    async with make_router(a, b) as router:
        with pytest.raises(MisconfiguredError) as caught:
            await router.complete(CHAT)
    assert caught.value.provider == "b"
    assert_settled(router, failed=1)


async def test_full_neighbour_is_not_waited_for() -> None:
    """With the only other provider unable to serve, the failed one is repeated."""
    failing = ScriptedProvider("failing", ConnectError, ConnectError, Ok("at last"))
    closed = ScriptedProvider("closed", OverloadedError("no", retry_after=600), max_retries=0)
    models = [
        {"name": "m", "targets": [{"provider": "failing"}, {"provider": "closed"}]},
        {"name": "n", "targets": [{"provider": "closed"}]},
    ]
    async with make_router(failing, closed, models=models) as router:
        with pytest.raises(OverloadedError):
            await router.complete({**CHAT, "model": "n"})
        assert (await router.complete(CHAT)).text == "at last"
    assert len(failing.calls) == 3
    assert len(closed.calls) == 1


def test_random_failures_keep_every_bound(virtual_time: Callable[..., None]) -> None:
    """Whatever fails, attempts, repeats and the deadline stay within their bounds."""
    kinds: list[type[ProviderError]] = [
        ConnectError, OverloadedError, TransientError, SilentError, BrokenError, CallerError,
        MisconfiguredError,
    ]  # fmt: skip

    async def main() -> None:
        rng = random.Random(11)
        for seed in range(60):
            most, repeats = rng.randint(1, 6), rng.randint(0, 3)
            providers = [
                ScriptedProvider(
                    f"p{n}",
                    then=lambda: Fail(rng.choice(kinds), after=rng.choice([0, 0, 1.5])),
                    max_retries=repeats,
                )
                for n in range(rng.randint(1, 4))
            ]
            retries = {"max_attempts": most}
            async with make_router(*providers, seed=seed, retries=retries) as router:
                start = anyio.current_time()
                with pytest.raises(GatewayError):
                    await router.complete(CHAT, timeout=4)
                assert anyio.current_time() - start <= 4.1
                calls = [call for provider in providers for call in provider.calls]
                assert len(calls) <= most
                assert all(len(provider.calls) <= 1 + repeats for provider in providers)
                assert all(call.at < start + 4 for call in calls)
            assert_settled(router, failed=1)

    virtual_time(main)


def test_deadline_between_attempts_is_named(virtual_time: Callable[..., None]) -> None:
    """A request whose time runs out while it is retried does not outlive its deadline."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Fail(ConnectError, after=0.9), max_retries=20)
        async with make_router(provider, retries={"max_attempts": 50}) as router:
            start = anyio.current_time()
            with pytest.raises((ConnectError, DeadlineExceededError)):
                await router.complete(CHAT, timeout=5)
            assert anyio.current_time() - start <= 5.1
        assert all(call.at - start < 5 for call in provider.calls)

    virtual_time(main)
