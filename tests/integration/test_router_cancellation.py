"""A caller that leaves: queued, running, streaming; native tasks and anyio scopes."""

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import (
    CHAT,
    Events,
    Fail,
    Hang,
    Instant,
    Ok,
    ScriptedProvider,
    assert_settled,
    make_router,
    until,
)

from engine import ConnectError, Router, RouterClosedError

ASYNCIO_ONLY = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)


async def test_scope_cancels_a_running_call() -> None:
    """The adapter's call is cancelled, and the worker serves the next request."""
    provider = ScriptedProvider("a", Hang(), limits={"concurrency": 1, "queue": 0})
    async with make_router(provider) as router:
        async with anyio.create_task_group() as group:
            group.start_soon(router.complete, CHAT)
            await until(lambda: provider.running == 1)
            group.cancel_scope.cancel()
        await until(lambda: provider.running == 0)
        await until(lambda: router.status().actors[0].in_flight == 0)
        assert (await router.complete(CHAT)).text == "hello"
    assert provider.outcomes == ["cancelled", "ok"]
    assert_settled(router, cancelled=1, completed=1)


async def test_scope_cancels_a_queued_request() -> None:
    """The room in the mailbox is free at once, and the request is never sent."""
    provider = ScriptedProvider("a", Hang(), limits={"concurrency": 1, "queue": 1})
    async with make_router(provider) as router, anyio.create_task_group() as group:
        group.start_soon(router.complete, CHAT)
        await until(lambda: provider.running == 1)
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(router.complete, CHAT)
            await until(lambda: router.status().actors[0].mailbox.depth == 1)
            waiting.cancel_scope.cancel()
        mailbox = router.status().actors[0].mailbox
        assert (mailbox.depth, mailbox.withdrawn) == (0, 1)
        group.cancel_scope.cancel()
    assert len(provider.calls) == 1
    assert_settled(router, cancelled=2)


async def test_scope_cancels_the_opening_of_a_stream() -> None:
    """Before its first event a stream is cancelled like any call, and its source closed."""
    provider = ScriptedProvider("a", Hang(), limits={"concurrency": 1})
    async with make_router(provider) as router:
        with anyio.move_on_after(0.02) as scope:
            async with router.stream(CHAT):
                pass
        assert scope.cancelled_caught
        await until(lambda: provider.calls[0].closed)
        assert (await router.complete(CHAT)).text == "hello"
    assert_settled(router, cancelled=1, completed=1)


async def test_scope_cancels_a_stream_under_way() -> None:
    """A reader that is cancelled closes the upstream and counts as cancelled."""
    provider = ScriptedProvider("a", Events("one", Hang()), limits={"concurrency": 1})
    async with make_router(provider) as router:
        with anyio.move_on_after(0.02) as scope:
            async with router.stream(CHAT) as stream:
                async for _ in stream:
                    pass
        assert scope.cancelled_caught
        await until(lambda: provider.calls[0].closed)
        assert (await router.complete(CHAT)).text == "hello"
    assert provider.outcomes == ["cancelled", "ok"]
    assert_settled(router, cancelled=1, completed=1)


async def test_scope_cancels_a_backoff() -> None:
    """A caller that leaves while its request waits for a repeat ends the wait."""
    busy = ConnectError("down", retry_after=60)
    provider = ScriptedProvider("a", Fail(busy), limits={"concurrency": 1})
    async with make_router(provider) as router:
        async with anyio.create_task_group() as group:
            group.start_soon(router.complete, CHAT)
            await until(lambda: len(provider.calls) == 1 and provider.running == 0)
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            assert (await router.complete(CHAT)).text == "hello"
    assert_settled(router, cancelled=1, completed=1)


async def test_timeout_scope_around_complete_behaves_like_any_anyio_call() -> None:
    """`fail_after` around `complete` raises `TimeoutError` and leaves nothing behind."""
    provider = ScriptedProvider("a", then=Hang())
    async with make_router(provider) as router:
        with pytest.raises(TimeoutError), anyio.fail_after(0.02):
            await router.complete(CHAT)
        await until(lambda: provider.running == 0)
    assert_settled(router, cancelled=1)


@ASYNCIO_ONLY
async def test_native_cancel_of_a_running_request() -> None:
    """`asyncio.Task.cancel` works as it does on any coroutine."""
    provider = ScriptedProvider("a", Hang(), limits={"concurrency": 1, "queue": 0})
    async with make_router(provider) as router:
        task = asyncio.create_task(router.complete(CHAT))
        await until(lambda: provider.running == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: provider.running == 0)
        assert (await asyncio.wait_for(router.complete(CHAT), 5)).text == "hello"
    assert provider.outcomes == ["cancelled", "ok"]
    assert_settled(router, cancelled=1, completed=1)


@ASYNCIO_ONLY
async def test_native_cancel_of_a_queued_request() -> None:
    """A queued request leaves the mailbox when its task is cancelled."""
    provider = ScriptedProvider("a", Ok(after=0.05), limits={"concurrency": 1, "queue": 1})
    async with make_router(provider) as router:
        running = asyncio.create_task(router.complete(CHAT))
        await until(lambda: provider.running == 1)
        queued = asyncio.create_task(router.complete(CHAT))
        await until(lambda: router.status().actors[0].mailbox.depth == 1)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert router.status().actors[0].mailbox.depth == 0
        assert (await running).text == "hello"
    assert len(provider.calls) == 1
    assert_settled(router, cancelled=1, completed=1)


@ASYNCIO_ONLY
async def test_native_cancel_of_a_stream() -> None:
    """A task that reads a stream is cancelled natively and closes the upstream."""
    provider = ScriptedProvider("a", Events("one", Hang()), limits={"concurrency": 1})

    async def read() -> None:
        async with router.stream(CHAT) as stream:
            async for _ in stream:
                got.set()

    async with make_router(provider) as router:
        got = asyncio.Event()
        task = asyncio.create_task(read())
        await got.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: provider.calls[0].closed)
        assert (await router.complete(CHAT)).text == "hello"
    assert_settled(router, cancelled=1, completed=1)


@ASYNCIO_ONLY
async def test_wait_for_around_complete() -> None:
    """`asyncio.wait_for` raises `TimeoutError` and cancels the call."""
    provider = ScriptedProvider("a", then=Hang())
    async with make_router(provider) as router:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(router.complete(CHAT), 0.02)
        await until(lambda: provider.running == 0)
    assert_settled(router, cancelled=1)


@ASYNCIO_ONLY
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("turns", range(8))
async def test_cancel_in_the_very_turn_of_the_answer(turns: int, streamed: bool) -> None:
    """However a cancellation and an answer meet, the worker is free again at once."""
    script = Events("one", Hang()) if streamed else Instant()
    provider = ScriptedProvider("a", then=script, limits={"concurrency": 1, "queue": 0})

    async def read() -> None:
        async with router.stream(CHAT):
            await anyio.sleep_forever()

    async with make_router(provider) as router:
        task = asyncio.create_task(read() if streamed else router.complete(CHAT))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: router.status().actors[0].in_flight == 0)
        assert router.status().ledger.in_flight == 0
        assert router.status().ledger.conservation_error == 0
    assert provider.running == 0


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_cancel_as_the_answer_arrives(streamed: bool) -> None:
    """A caller cancelled by the adapter itself, just before it answers, leaks nothing."""
    provider = ScriptedProvider("a", then=Ok(), limits={"concurrency": 1, "queue": 0})
    async with make_router(provider) as router:
        for _ in range(5):
            with anyio.CancelScope() as scope:
                provider.watch = lambda _, s=scope: s.cancel()
                if streamed:
                    async with router.stream(CHAT):
                        await anyio.sleep_forever()
                else:
                    await router.complete(CHAT)
            provider.watch = None
            await until(lambda: router.status().actors[0].in_flight == 0)
    assert router.status().ledger.conservation_error == 0
    assert router.status().ledger.in_flight == 0


async def test_no_worker_is_lost_to_a_thousand_cancelled_calls() -> None:
    """After 1,000 cancellations at all kinds of moments the full concurrency serves."""
    limits = {"concurrency": 8, "queue": 1_000}
    provider = ScriptedProvider("a", then=Hang(), limits=limits)
    async with make_router(provider) as router:
        for _ in range(10):
            async with anyio.create_task_group() as group:
                for number in range(100):
                    group.start_soon(_leave_after, router, number % 7, number % 2 == 0)
        await until(lambda: provider.running == 0)
        await until(lambda: router.status().actors[0].in_flight == 0)
        async with anyio.create_task_group() as group:
            for _ in range(9):
                group.start_soon(router.complete, CHAT)
            await until(lambda: provider.running == 8)
            actor = router.status().actors[0]
            assert (actor.in_flight, actor.mailbox.depth, actor.workers) == (8, 1, 8)
            group.cancel_scope.cancel()
    assert router.status().ledger.accepted == 1_009
    assert_settled(router, cancelled=1_009)


async def _leave_after(router: Router, turns: int, streamed: bool) -> None:
    async with anyio.create_task_group() as group:
        if streamed:
            group.start_soon(_open, router)
        else:
            group.start_soon(router.complete, CHAT)
        for _ in range(turns + 1):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


async def _open(router: Router) -> None:
    async with router.stream(CHAT):
        pass


def test_adapter_that_swallows_its_cancellation_keeps_only_its_own_place(
    virtual_time: Callable[..., None],
) -> None:
    """The caller is gone at once; the worker is busy until the adapter lets go, then free."""

    async def main() -> None:
        limits = {"concurrency": 1, "queue": 3}
        provider = ScriptedProvider("a", Hang(clean_up=20), limits=limits)
        async with make_router(provider) as router:
            start = anyio.current_time()
            with anyio.move_on_after(1):
                await router.complete(CHAT)
            assert anyio.current_time() - start == pytest.approx(1)
            assert router.status().ledger.in_flight == 0
            assert router.status().actors[0].in_flight == 1
            assert (await router.complete(CHAT)).text == "hello"
            assert anyio.current_time() - start == pytest.approx(21, abs=0.1)
        assert_settled(router, cancelled=1, completed=1)

    virtual_time(main)


async def test_cancelled_router_body_closes_the_router() -> None:
    """A scope around the whole router ends it, with requests under way."""
    provider = ScriptedProvider("a", then=Hang())
    with anyio.CancelScope() as scope:
        async with make_router(provider) as router:
            # Only now: a busy machine may take longer than this to make a router.
            scope.deadline = anyio.current_time() + 0.2
            await router.complete(CHAT)
    assert scope.cancelled_caught
    assert provider.outcomes == ["cancelled"]
    assert_settled(router, cancelled=1)


@ASYNCIO_ONLY
async def test_native_cancel_of_the_task_that_owns_the_router() -> None:
    """A task that holds the router open can be cancelled natively."""
    provider = ScriptedProvider("a", then=Hang())
    router = make_router(provider)

    async def own() -> None:
        async with router:
            await router.complete(CHAT)

    task: asyncio.Task[Any] = asyncio.create_task(own())
    await until(lambda: provider.running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_settled(router, cancelled=1)


async def test_callers_elsewhere_hear_that_the_router_was_cancelled() -> None:
    """When a scope around the router is cancelled, requests of other tasks end by name."""
    limits = {"concurrency": 1, "queue": 2}
    providers = [ScriptedProvider(name, then=Hang(), limits=limits) for name in "ab"]
    errors: list[str] = []

    async def ask() -> None:
        try:
            await router.complete(CHAT)
        except RouterClosedError:
            errors.append("closed")

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with make_router(*providers) as router:
                for _ in range(4):
                    group.start_soon(ask)
                await until(lambda: sum(p.running for p in providers) == 2)
                scope.cancel()
                await anyio.sleep_forever()
    assert errors == ["closed"] * 4
    assert sum(len(p.calls) for p in providers) == 2
    assert router.status().ledger.in_flight == 0


async def test_leaving_frees_rooms_for_those_who_wait() -> None:
    """When the running caller leaves, the next one in the mailbox is served."""
    provider = ScriptedProvider("a", Hang(), limits={"concurrency": 1, "queue": 2})
    answers: list[str] = []

    async def ask() -> None:
        answers.append((await router.complete(CHAT)).text)

    async with make_router(provider) as router, anyio.create_task_group() as group:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(router.complete, CHAT)
            await until(lambda: provider.running == 1)
            group.start_soon(ask)
            await until(lambda: router.status().actors[0].mailbox.depth == 1)
            leaving.cancel_scope.cancel()
        await until(lambda: answers == ["hello"])
    assert_settled(router, cancelled=1, completed=1)


async def test_closed_router_leaves_no_task() -> None:
    """Whatever happened to its requests, a router's tasks end with it."""
    provider = ScriptedProvider("a", Ok(), ConnectError, Events("one", Hang()), then=Hang())
    before = {task.name for task in anyio.get_running_tasks()}
    async with make_router(provider) as router:
        for _ in range(3):
            with anyio.move_on_after(0.05):
                async with router.stream(CHAT) as stream:
                    async for _ in stream:
                        pass
        assert {task.name for task in anyio.get_running_tasks()} > before
    assert {task.name for task in anyio.get_running_tasks()} == before
