"""Isolation: adapters that raise anything, actors that crash, and their supervision."""

import asyncio
import logging
from collections.abc import Callable

import anyio
import pytest
from scripted import (
    CHAT,
    Events,
    Fail,
    Hang,
    Ok,
    ScriptedProvider,
    assert_settled,
    make_router,
    until,
)

from engine import (
    ActorCrashedError,
    ActorState,
    AdapterError,
    GatewayError,
    NoProviderAvailableError,
    Replay,
    Router,
    StreamTruncatedError,
)

Virtual = Callable[..., None]


class Crash(BaseException):
    """What no adapter should raise: it goes past `except Exception`."""


@pytest.mark.parametrize(
    "bug",
    [
        ValueError("secret text"),
        RuntimeError,
        SystemExit(3),
        ExceptionGroup("several", [ValueError("one"), OSError("two")]),
        StopAsyncIteration,
        RecursionError,
        MemoryError,
        AssertionError,
    ],
    ids=repr,
)
async def test_whatever_an_adapter_raises_is_an_outcome(bug: BaseException) -> None:
    """Bugs of an adapter fail the attempt, are named by type only, and another one serves."""
    bad = ScriptedProvider("bad", bug, weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    alone = ScriptedProvider("alone", bug)
    async with make_router(bad, good) as router:
        response = await router.complete(CHAT)
        assert (response.provider, response.attempts) == ("good", 2)
        assert [actor.restarts for actor in router.status().actors] == [0, 0]
        assert router.status().actors[0].failed == {"broken": 1}
    async with make_router(alone) as router:
        with pytest.raises(AdapterError) as caught:
            await router.complete(CHAT)
        assert "secret" not in caught.value.message
        assert caught.value.provider == "alone"
        assert caught.value.__cause__ is not None
        assert (await router.complete(CHAT)).text == "hello"


@pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
async def test_cancellation_that_nobody_asked_for_stays_in_its_actor() -> None:
    """An adapter that raises `CancelledError` by itself fails its request and no other's."""
    bad = ScriptedProvider("bad", asyncio.CancelledError, weight=1e6)
    good = ScriptedProvider("good", Ok(after=0.05), weight=1e-3)
    models = [
        {"name": "m", "targets": [{"provider": "bad"}]},
        {"name": "n", "targets": [{"provider": "good"}]},
    ]
    async with make_router(bad, good, models=models) as router:
        async with anyio.create_task_group() as group:
            group.start_soon(router.complete, {**CHAT, "model": "n"})
            await until(lambda: good.running == 1)
            with pytest.raises(ActorCrashedError), anyio.fail_after(5):
                await router.complete(CHAT)
        await until(lambda: router.status().actors[0].state is ActorState.SERVING)
        assert (await router.complete(CHAT)).text == "hello"
    assert good.outcomes == ["ok"]
    assert_settled(router, completed=2, failed=1)


async def test_crash_is_answered_by_another_provider(caplog: pytest.LogCaptureFixture) -> None:
    """A request whose actor dies goes elsewhere, where repeating is allowed."""
    bad = ScriptedProvider("bad", Crash("secret text"), weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    with caplog.at_level(logging.ERROR, "engine.supervisor"):
        async with make_router(bad, good) as router:
            response = await router.complete(CHAT)
            assert (response.provider, response.attempts) == ("good", 2)
            await until(lambda: router.status().actors[0].restarts == 1)
    assert "actor bad crashed: Crash" in caplog.text
    assert "secret" not in caplog.text
    assert_settled(router, completed=1)


async def test_crash_without_another_provider_is_a_named_error() -> None:
    """With nobody else the caller hears `ActorCrashedError`, which may have been executed."""
    provider = ScriptedProvider("a", Crash)
    async with make_router(provider) as router:
        with pytest.raises(ActorCrashedError) as caught:
            await router.complete(CHAT)
        assert caught.value.replay is Replay.MAYBE_ACCEPTED
        assert caught.value.provider == "a"
        await until(lambda: router.status().actors[0].state is ActorState.SERVING)
        assert (await router.complete(CHAT)).text == "hello"
    assert_settled(router, failed=1, completed=1)


async def test_crash_leaves_other_actors_alone() -> None:
    """Calls and streams of other providers go on through a crash."""
    bad = ScriptedProvider("bad", Crash)
    good = ScriptedProvider("good", Ok(after=0.05), Events("one", 0.05, "two"))
    models = [
        {"name": "m", "targets": [{"provider": "bad"}]},
        {"name": "n", "targets": [{"provider": "good"}]},
    ]
    async with make_router(bad, good, models=models) as router:
        async with anyio.create_task_group() as group:
            group.start_soon(router.complete, {**CHAT, "model": "n"})
            await until(lambda: good.running == 1)
            async with router.stream({**CHAT, "model": "n"}) as stream:
                assert (await anext(stream)).text == "one"
                with pytest.raises(ActorCrashedError):
                    await router.complete(CHAT)
                assert (await anext(stream)).text == "two"
                async for _ in stream:
                    pass
        assert [actor.restarts for actor in router.status().actors][1] == 0
    assert good.outcomes == ["ok", "ok"]
    assert_settled(router, completed=2, failed=1)


async def test_queued_requests_of_a_crashed_actor_go_elsewhere() -> None:
    """What waited was never sent, so it is served by others, whatever the configuration says."""
    limits = {"concurrency": 1, "queue": 10}
    bad = ScriptedProvider("bad", Fail(Crash, after=0.03), limits=limits)
    good = ScriptedProvider("good")
    never = {"repeat_maybe_accepted": "never"}
    targets = [{"provider": "bad", "tier": 0}, {"provider": "good", "tier": 1}]
    models = [{"name": "m", "targets": targets}]
    attempts: list[int] = []
    errors: list[GatewayError] = []

    async def ask(router: Router) -> None:
        try:
            attempts.append((await router.complete(CHAT)).attempts)
        except GatewayError as error:
            errors.append(error)

    async with make_router(bad, good, models=models, retries=never) as router:
        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(ask, router)
    assert len(bad.calls) == 1
    assert len(good.calls) == 5
    assert attempts == [1] * 5
    assert [type(error) for error in errors] == [ActorCrashedError]
    assert_settled(router, completed=5, failed=1)


async def test_queued_requests_without_another_provider_fail_by_name() -> None:
    """The error of a request that was never sent says so."""
    bad = ScriptedProvider("bad", Fail(Crash, after=0.03), limits={"concurrency": 1})
    replays: list[Replay] = []

    async def ask(router: Router) -> None:
        with pytest.raises(ActorCrashedError) as caught:
            await router.complete(CHAT)
        replays.append(caught.value.replay)

    async with make_router(bad) as router, anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(ask, router)
    assert sorted(replays) == [Replay.MAYBE_ACCEPTED] + [Replay.NOT_ACCEPTED] * 3


async def test_other_requests_in_flight_at_a_crashed_actor_are_answered() -> None:
    """Calls that ran beside the crash are cancelled and end with the same named error."""
    bad = ScriptedProvider("bad", Hang(), Hang(), Fail(Crash, after=0.03))
    outcomes: list[str] = []

    async def ask(router: Router) -> None:
        with pytest.raises(ActorCrashedError):
            await router.complete(CHAT)
        outcomes.append("crashed")

    async with make_router(bad) as router:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask, router)
        await until(lambda: router.status().actors[0].state is ActorState.SERVING)
        assert router.status().actors[0].in_flight == 0
        assert (await router.complete(CHAT)).text == "hello"
    assert outcomes == ["crashed"] * 3
    assert bad.outcomes == ["cancelled", "cancelled", "failed", "ok"]
    assert_settled(router, failed=3, completed=1)


async def test_open_stream_of_a_crashed_actor_is_truncated() -> None:
    """A stream whose actor dies ends in an explicit error, not in a clean end."""
    bad = ScriptedProvider("bad", Events("one", Hang()), Crash)
    async with make_router(bad) as router:
        async with anyio.create_task_group() as group:
            async with router.stream(CHAT) as stream:
                await anext(stream)

                async def crash() -> None:
                    with pytest.raises(ActorCrashedError):
                        await router.complete(CHAT)

                group.start_soon(crash)
                with pytest.raises(StreamTruncatedError):
                    await anext(stream)
    assert bad.calls[0].closed
    assert_settled(router, truncated=1, failed=1)


async def test_crash_while_a_stream_is_opened_obeys_the_replay_rule() -> None:
    """A streamed request that may have been executed is not sent elsewhere by default."""
    bad = ScriptedProvider("bad", Crash, weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    async with make_router(bad, good) as router:
        with pytest.raises(ActorCrashedError):
            async with router.stream(CHAT):
                pass
    assert good.calls == []
    assert_settled(router, failed=1)


def test_restarts_are_limited_and_then_tried_again(virtual_time: Virtual) -> None:
    """Five crashes in 30 s are restarted, the sixth takes the actor down for 60 s."""

    async def main() -> None:
        provider = ScriptedProvider("a", *[Crash] * 6)
        async with make_router(provider) as router:
            start = anyio.current_time()
            for crash in range(1, 7):
                with pytest.raises(ActorCrashedError):
                    await router.complete(CHAT)
                if crash < 6:
                    await until_state(router, ActorState.SERVING)
                    assert router.status().actors[0].restarts == crash
            assert anyio.current_time() - start < 15
            await anyio.sleep(0.1)
            down_since = anyio.current_time()
            assert router.status().actors[0].state is ActorState.DOWN
            assert router.status().actors[0].reason == "down"
            assert not router.ready
            with pytest.raises(NoProviderAvailableError) as caught:
                await router.complete(CHAT)
            assert caught.value.reason == "down"
            await anyio.sleep(58)
            assert router.status().actors[0].state is ActorState.DOWN
            await until_state(router, ActorState.SERVING)
            assert anyio.current_time() - down_since == pytest.approx(60, abs=1)
            assert router.ready
            assert (await router.complete(CHAT)).text == "hello"
        assert_settled(router, failed=6, rejected=1, completed=1)

    virtual_time(main)


def test_rare_crashes_never_take_an_actor_down(virtual_time: Virtual) -> None:
    """Crashes that lie further apart than the period are always restarted soon."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Crash)
        async with make_router(provider) as router:
            for _ in range(30):
                with pytest.raises(ActorCrashedError):
                    await router.complete(CHAT)
                await anyio.sleep(7)
                assert router.status().actors[0].state is ActorState.SERVING
            assert router.status().actors[0].restarts == 30

    virtual_time(main)


def test_actor_that_is_down_is_passed_over(virtual_time: Virtual) -> None:
    """While one actor is down, the others serve everything, without an error."""

    async def main() -> None:
        bad = ScriptedProvider("bad", then=Crash, weight=100)
        good = ScriptedProvider("good", weight=1)
        async with make_router(bad, good) as router:
            for _ in range(200):
                assert (await router.complete(CHAT)).provider == "good"
                await anyio.sleep(0.3)
            assert len(bad.calls) <= 14

    virtual_time(main)


async def until_state(router: Router, state: ActorState) -> None:
    """Wait until the first actor is in that state."""
    while router.status().actors[0].state is not state:  # noqa: ASYNC110 - it has no event
        await anyio.sleep(0.05)


async def test_worker_context_is_not_the_callers() -> None:
    """Calls do not see the context variables of whoever entered the router or asked."""
    import contextvars  # noqa: PLC0415 - only here

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []
    provider = ScriptedProvider("a")
    provider.watch = lambda _: seen.append(variable.get())
    variable.set("of the owner")
    async with make_router(provider) as router:
        for value in ("first", "second"):
            variable.set(value)
            await router.complete(CHAT)
            async with router.stream(CHAT) as stream:
                await anext(stream)
    assert seen == ["unset"] * 4


def test_keyboard_interrupt_ends_the_router(virtual_time: Virtual) -> None:
    """An interrupt is for the process: it is not swallowed by a supervisor."""

    async def main() -> None:
        async with make_router(ScriptedProvider("a", KeyboardInterrupt)) as router:
            await router.complete(CHAT)

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group or the error itself
        virtual_time(main)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, KeyboardInterrupt)
