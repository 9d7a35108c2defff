"""One deadline over queue, attempts and backoff; limits of the phases; in virtual time."""

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from scripted import (
    CHAT,
    Events,
    Fail,
    Hang,
    Headers,
    Ok,
    ScriptedProvider,
    Stubborn,
    assert_settled,
    make_router,
    role_chunk,
    until,
)

from engine import (
    ConnectError,
    DeadlineExceededError,
    OverloadedError,
    Router,
    RouterClosedError,
    SilentError,
    StreamTruncatedError,
)

Virtual = Callable[..., None]
LATE = 0.1
"""Seconds within which a caller hears of its deadline."""


async def ask(router: Router, timeout: float) -> tuple[BaseException | None, float]:
    """The error of a request, if any, and how long it took."""
    start = anyio.current_time()
    try:
        await router.complete(CHAT, timeout=timeout)
    except Exception as error:  # noqa: BLE001 - whatever the caller hears
        return error, anyio.current_time() - start
    return None, anyio.current_time() - start


def test_caller_hears_by_its_deadline(virtual_time: Virtual) -> None:
    """A provider that never answers costs the caller its timeout and no more."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Hang())
        async with make_router(provider) as router:
            error, took = await ask(router, 3.3)
            assert isinstance(error, DeadlineExceededError)
            assert error.status == 504
            assert 3.3 <= took <= 3.3 + LATE
            await anyio.lowlevel.checkpoint()
            assert provider.outcomes == ["cancelled"]
        assert_settled(router, failed=1)

    virtual_time(main)


@pytest.mark.parametrize("clean_up", [0.04, 0.2, 5, 1000])
def test_caller_hears_although_the_adapter_hangs_in_its_clean_up(
    clean_up: float, virtual_time: Virtual
) -> None:
    """An adapter that ignores its cancellation delays nobody, and its worker comes back."""

    async def main() -> None:
        limits = {"concurrency": 1, "queue": 4}
        provider = ScriptedProvider("a", Hang(clean_up=clean_up), limits=limits)
        async with make_router(provider, total=2000) as router:
            error, took = await ask(router, 2)
            assert isinstance(error, DeadlineExceededError)
            assert 2 <= took <= 2 + LATE
            error, took = await ask(router, 1500)
            assert error is None
        assert provider.outcomes == ["cancelled", "ok"]
        assert_settled(router, failed=1, completed=1)

    virtual_time(main)


def test_answer_that_comes_after_the_deadline_is_dropped(virtual_time: Virtual) -> None:
    """An adapter that answers late, in spite of its cancellation, settles nothing twice."""

    async def main() -> None:
        provider = ScriptedProvider("a", Stubborn(3, Ok("late")), Stubborn(0.03, Ok("late")))
        async with make_router(provider) as router:
            for _ in range(2):
                error, took = await ask(router, 1)
                assert isinstance(error, DeadlineExceededError) or took < 1.05
            await anyio.sleep(5)
            assert router.status().actors[0].in_flight == 0
            assert (await ask(router, 1))[0] is None
        assert router.status().ledger.conservation_error == 0
        assert router.status().ledger.in_flight == 0

    virtual_time(main)


def test_queue_wait_spends_the_same_deadline(virtual_time: Virtual) -> None:
    """Who waits in the mailbox past the deadline is answered, and never sent."""

    async def main() -> None:
        provider = ScriptedProvider("a", Ok(after=10), limits={"concurrency": 1})
        results: list[tuple[BaseException | None, float]] = []

        async def queued() -> None:
            results.append(await ask(router, 4))

        async with make_router(provider) as router, anyio.create_task_group() as group:
            group.start_soon(router.complete, CHAT)
            await anyio.sleep(1)
            group.start_soon(queued)
            await anyio.sleep(4.5)
            assert router.status().actors[0].mailbox.depth == 0
        ((error, took),) = results
        assert isinstance(error, DeadlineExceededError)
        assert "mailbox" in error.message
        assert 4 <= took <= 4 + LATE
        assert len(provider.calls) == 1
        assert_settled(router, completed=1, failed=1)

    virtual_time(main)


@pytest.mark.parametrize("early", [-0.015, -0.005, -0.0001, 0, 0.0001, 0.005, 0.015])
def test_no_upstream_call_starts_after_the_deadline(early: float, virtual_time: Virtual) -> None:
    """A worker that becomes free around the deadline calls upstream only before it."""

    async def main() -> None:
        first = Ok(after=5 - early)
        provider = ScriptedProvider("a", first, then=Ok(after=0.001), limits={"concurrency": 1})
        async with make_router(provider) as router, anyio.create_task_group() as group:
            start = anyio.current_time()
            group.start_soon(router.complete, CHAT)
            await until(lambda: provider.running == 1)
            error, took = await ask(router, 5)
            assert took <= 5 + LATE
            assert (error is None) == (early > 0)
        assert all(call.at < start + 5 for call in provider.calls)
        assert len(provider.calls) == (2 if early > 0 else 1)

    virtual_time(main)


def test_backoff_spends_the_same_deadline(virtual_time: Virtual) -> None:
    """Attempts and the pauses between them end with the deadline."""

    async def main() -> None:
        for timeout in (0.3, 1.0, 2.5, 6.0):
            provider = ScriptedProvider("a", then=Fail(ConnectError, after=0.2), max_retries=20)
            async with make_router(provider, retries={"max_attempts": 50}) as router:
                start = anyio.current_time()
                error, took = await ask(router, timeout)
                assert isinstance(error, (ConnectError, DeadlineExceededError))
                assert took <= timeout + LATE
            assert all(call.at < start + timeout for call in provider.calls)

    virtual_time(main)


def test_a_wait_for_a_hint_that_cannot_end_in_time_is_not_begun(virtual_time: Virtual) -> None:
    """With two providers whose pauses overrun the deadline, the failure comes at once."""

    async def main() -> None:
        a = ScriptedProvider("a", then=ConnectError("later", retry_after=50))
        b = ScriptedProvider("b", then=OverloadedError("later", retry_after=50))
        async with make_router(a, b) as router:
            error, took = await ask(router, 20)
            assert isinstance(error, (ConnectError, OverloadedError))
            assert took < LATE
        assert len(a.calls) + len(b.calls) == 2

    virtual_time(main)


def test_timeout_never_extends_the_total(virtual_time: Virtual) -> None:
    """A caller may ask for less time than configured, not for more."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Hang(), timeout=1000, timeouts={"headers": 1000})
        async with make_router(provider, total=7) as router:
            error, took = await ask(router, 500)
            assert isinstance(error, DeadlineExceededError)
            assert 7 <= took <= 7 + LATE

    virtual_time(main)


def test_total_is_the_largest_of_the_providers(virtual_time: Virtual) -> None:
    """Without `total`, the largest `timeouts.total` among the providers bounds a request."""

    async def main() -> None:
        long = {"headers": 1000, "total": 9}
        a = ScriptedProvider("a", then=Hang(), timeout=1000, timeouts=long)
        b = ScriptedProvider("b", then=Hang(), timeout=1000, timeouts={**long, "total": 4})
        async with make_router(a, b) as router:
            start = anyio.current_time()
            with pytest.raises(DeadlineExceededError):
                await router.complete(CHAT)
            assert 9 <= anyio.current_time() - start <= 9 + LATE

    virtual_time(main)


@pytest.mark.parametrize("clean_up", [0, 30])
def test_silent_provider_is_left_for_another(clean_up: float, virtual_time: Virtual) -> None:
    """No headers in time: the attempt is cancelled and somebody else serves, promptly."""

    async def main() -> None:
        silent = ScriptedProvider(
            "silent", then=Hang(clean_up=clean_up), weight=1e6, timeouts={"headers": 2}
        )
        good = ScriptedProvider("good", weight=1e-3)
        async with make_router(silent, good) as router:
            start = anyio.current_time()
            response = await router.complete(CHAT)
            assert 2 <= anyio.current_time() - start <= 2.4
            assert (response.provider, response.attempts) == ("good", 2)
            await anyio.sleep(60)
            assert router.status().actors[0].failed == {"silent": 1}

    virtual_time(main)


def test_attempt_timeout_bounds_a_slow_body(virtual_time: Virtual) -> None:
    """Once the headers are there, `timeout` is what is left to the attempt."""

    async def main() -> None:
        limits: dict[str, Any] = {"timeout": 8, "timeouts": {"headers": 3}}
        slow = ScriptedProvider("slow", Headers(2, Hang()), Headers(2, Ok(after=5)), **limits)
        async with make_router(slow) as router:
            error, took = await ask(router, 100)
            assert isinstance(error, SilentError)
            assert 8 <= took <= 8 + LATE
            error, took = await ask(router, 100)
            assert error is None
            assert took == pytest.approx(7, abs=0.01)

    virtual_time(main)


def test_first_event_has_its_own_limit(virtual_time: Virtual) -> None:
    """A stream that gives nothing useful in time is a silent provider; another one serves."""

    async def main() -> None:
        events = Events(1, role_chunk(), 1, role_chunk(), 50, "too late")
        silent = ScriptedProvider("silent", then=events, weight=1e6, timeouts={"first_event": 4})
        good = ScriptedProvider("good", weight=1e-3)
        always = {"repeat_maybe_accepted": "always"}
        async with make_router(silent, good, retries=always) as router:
            start = anyio.current_time()
            async with router.stream(CHAT) as stream:
                assert 4 <= anyio.current_time() - start <= 4 + LATE
                assert stream.provider == "good"
                assert stream.attempts == 2
            await anyio.sleep(1)
        assert silent.calls[0].closed
        assert silent.outcomes == ["cancelled"]

    virtual_time(main)


def test_idle_stream_is_cut(virtual_time: Virtual) -> None:
    """A stream that falls silent between two events ends as truncated."""

    async def main() -> None:
        provider = ScriptedProvider("a", Events("one", 100, "two"), timeouts={"idle": 6})
        async with make_router(provider) as router, router.stream(CHAT) as stream:
            start = anyio.current_time()
            with pytest.raises(StreamTruncatedError, match="no event within 6 s"):
                async for chunk in stream:
                    assert chunk.text == "one"
            assert 6 <= anyio.current_time() - start <= 6 + LATE
        assert provider.calls[0].closed
        assert_settled(router, truncated=1)

    virtual_time(main)


def test_slow_reader_is_no_idle_provider(virtual_time: Virtual) -> None:
    """Time that the caller takes between two reads does not count as silence."""

    async def main() -> None:
        provider = ScriptedProvider("a", Events("one", 3, "two", 3, "three"), timeouts={"idle": 6})
        async with make_router(provider) as router, router.stream(CHAT) as stream:
            texts = []
            async for chunk in stream:
                texts.append(chunk.text)
                await anyio.sleep(20)
            assert texts == ["one", "two", "three"]
        assert_settled(router, completed=1)

    virtual_time(main)


def test_steady_stream_may_last_longer_than_the_idle_limit(virtual_time: Virtual) -> None:
    """Each event starts the idle limit anew."""

    async def main() -> None:
        items = [item for number in range(30) for item in (2, str(number))]
        provider = ScriptedProvider("a", Events("first", *items), timeouts={"idle": 2.5})
        async with make_router(provider) as router, router.stream(CHAT) as stream:
            assert len([chunk async for chunk in stream]) == 31
        assert_settled(router, completed=1)

    virtual_time(main)


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "not reading"])
def test_deadline_ends_a_stream(reads: bool, virtual_time: Virtual) -> None:
    """The request's deadline goes on through the stream, whether it is read or not."""

    async def main() -> None:
        provider = ScriptedProvider("a", Events("one", 25, "two", 25, "three"))
        async with make_router(provider) as router, router.stream(CHAT, timeout=10) as stream:
            start = anyio.current_time()
            assert (await anext(stream)).text == "one"
            if not reads:
                await anyio.sleep(15)
                assert provider.calls[0].closed
            with pytest.raises(StreamTruncatedError, match="deadline"):
                await anext(stream)
            if reads:
                assert 10 <= anyio.current_time() - start <= 10 + LATE
        assert_settled(router, truncated=1)

    virtual_time(main)


@pytest.mark.parametrize("timeout", [2, 6])
def test_reader_hears_although_the_source_hangs_in_its_clean_up(
    timeout: float, virtual_time: Virtual
) -> None:
    """A source that ignores its cancellation keeps the reader no longer than the limit."""

    async def main() -> None:
        provider = ScriptedProvider("a", Events("one", Hang(clean_up=50)), timeouts={"idle": 4})
        async with make_router(provider) as router, router.stream(CHAT, timeout=timeout) as stream:
            start = anyio.current_time()
            await anext(stream)
            with pytest.raises(StreamTruncatedError):
                await anext(stream)
            assert anyio.current_time() - start <= min(timeout, 4) + LATE
            await anyio.sleep(60)
        assert_settled(router, truncated=1)

    virtual_time(main)


def test_limits_are_watched_while_the_router_closes(virtual_time: Virtual) -> None:
    """A caller hears by its deadline also when the router waits for a hanging adapter."""

    async def main() -> None:
        heard: list[float] = []

        async def caller() -> None:
            error, took = await ask(router, 2)
            assert isinstance(error, (DeadlineExceededError, RouterClosedError))
            heard.append(took)

        async with anyio.create_task_group() as group:
            async with make_router(ScriptedProvider("a", Hang(clean_up=50))) as router:
                group.start_soon(caller)
                await anyio.sleep(1)
        assert len(heard) == 1
        assert heard[0] <= 2 + LATE
        assert router.status().ledger.in_flight == 0

    virtual_time(main)
