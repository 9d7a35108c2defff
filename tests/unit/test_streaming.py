"""A stream in the hands of its caller, and the worker's side of it: one settlement."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from scripted import (
    CHAT,
    Events,
    Hang,
    ScriptedProvider,
    role_chunk,
    text_chunk,
    until,
    usage_chunk,
)

from engine import Attempt, ChatRequest, Chunk, ConnectError, Outcome, StreamTruncatedError
from engine.resilience.deadline import DeadlineWheel
from engine.streaming import ResponseStream


class Bench:
    """A stream, its source, and how it was settled."""

    def __init__(
        self,
        *items: Any,
        held: list[Chunk] | None = None,
        ended: bool = False,
        idle: float = 5.0,
        deadline: float = 60.0,
    ) -> None:
        self.provider = ScriptedProvider("a", Events(*items))
        attempt = Attempt(
            ChatRequest.from_body(CHAT), "m", "id", timeouts=self.provider.config.timeouts
        )
        self.source = self.provider.stream(attempt)
        self.wheel = DeadlineWheel(anyio.current_time)
        self.stream = ResponseStream(
            held or [], ended=ended, provider="a", idle=idle,
            deadline=anyio.current_time() + deadline, wheel=self.wheel, clock=anyio.current_time,
        )  # fmt: skip
        self.settled: list[Outcome] = []
        self.stream.settle_with(lambda outcome, _: self.settled.append(outcome))


@asynccontextmanager
async def filled(*items: Any, **settings: Any) -> AsyncGenerator[Bench, None]:
    """A stream that a worker fills from its source."""
    bench = Bench(*items, **settings)
    async with anyio.create_task_group() as group:
        group.start_soon(bench.wheel.run)
        group.start_soon(bench.stream.fill, bench.source)
        yield bench
        group.cancel_scope.cancel()


async def test_held_chunks_come_first_and_then_the_source() -> None:
    """What was read before the commit is not lost, and the end settles as completed."""
    held = [role_chunk(), text_chunk("a")]
    async with filled("b", "c", held=list(held)) as bench:
        chunks = [chunk async for chunk in bench.stream]
    assert chunks[:2] == held
    assert [chunk.text for chunk in chunks] == ["", "a", "b", "c"]
    assert bench.settled == [Outcome.COMPLETED]
    assert len(bench.wheel) == 0


async def test_stream_that_ended_before_it_was_given() -> None:
    """All its chunks are in hand; no worker is needed."""
    bench = Bench(held=[text_chunk("a")], ended=True)
    assert [chunk.text async for chunk in bench.stream] == ["a"]
    assert bench.provider.calls == []
    assert bench.settled == [Outcome.COMPLETED]


async def test_leaving_with_chunks_in_hand_is_cancelled() -> None:
    """A complete answer that was not taken is not a completed request."""
    bench = Bench(held=[text_chunk("a"), text_chunk("b")], ended=True)
    await anext(bench.stream)
    await bench.stream.aclose()
    assert bench.settled == [Outcome.CANCELLED]


async def test_release_is_idempotent() -> None:
    """However often it is let go, it is settled once, and then it is over."""
    async with filled("a", Hang()) as bench:
        async with bench.stream as stream:
            await anext(stream)
            stream.release()
            stream.release()
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        await until(lambda: bench.provider.outcomes == ["cancelled"])
    assert bench.settled == [Outcome.CANCELLED]
    assert bench.stream.tick is None


async def test_chunks_that_are_here_can_be_taken_together() -> None:
    """`ready` gives what was read ahead, without waiting, and empties it."""
    async with filled("b", "c", Hang(), held=[text_chunk("a")]) as bench:
        assert [chunk.text for chunk in bench.stream.ready()] == ["a"]
        assert (await anext(bench.stream)).text == "b"
        await anyio.wait_all_tasks_blocked()
        assert [chunk.text for chunk in bench.stream.ready()] == ["c"]
        assert bench.stream.ready() == []


async def test_settlement_may_be_asked_for_late() -> None:
    """Whoever wants to know the outcome after the end is told at once."""
    async with filled("a") as bench:
        async for _ in bench.stream:
            pass
    told: list[Outcome] = []
    bench.stream.settle_with(lambda outcome, _: told.append(outcome))
    assert told == [Outcome.COMPLETED]


async def test_failure_of_the_source_is_a_truncated_stream() -> None:
    """The cause is chained, and the text names provider and reason."""
    failure = ConnectError("connection reset")
    async with filled("a", failure) as bench:
        await anext(bench.stream)
        with pytest.raises(StreamTruncatedError, match="'a' broke off: connection reset") as caught:
            await anext(bench.stream)
    assert caught.value.__cause__ is failure
    assert bench.stream.failure is caught.value
    assert not bench.stream.complete
    assert bench.settled == [Outcome.TRUNCATED]


async def test_bug_of_the_source_is_named_by_type() -> None:
    """The text of a foreign exception may hold what a caller wrote, so it is not shown."""
    async with filled("a", ValueError("secret")) as bench:
        await anext(bench.stream)
        with pytest.raises(StreamTruncatedError, match="failed with ValueError") as caught:
            await anext(bench.stream)
    assert "secret" not in caught.value.message


async def test_cut_wakes_a_reader_that_waits() -> None:
    """A stream can be ended under its reader, who then hears why."""
    async with filled("a", Hang()) as bench:
        await anext(bench.stream)
        async with anyio.create_task_group() as group:

            async def read() -> None:
                with pytest.raises(StreamTruncatedError, match="the gateway is closing"):
                    await anext(bench.stream)

            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            bench.stream.cut("the gateway is closing")
            bench.stream.cut("something else")
        await until(lambda: bench.provider.outcomes == ["cancelled"])
    assert bench.settled == [Outcome.TRUNCATED]


async def test_cut_without_a_reader_is_told_at_the_next_read() -> None:
    """Chunks that came are given, and then the truth, however often it is asked."""
    bench = Bench(held=[text_chunk("a")])
    bench.stream.cut("the gateway is closing")
    assert bench.settled == [Outcome.TRUNCATED]
    await anext(bench.stream)
    for _ in range(2):
        with pytest.raises(StreamTruncatedError):
            await anext(bench.stream)


async def test_cut_after_the_end_changes_nothing() -> None:
    """What is complete stays complete."""
    async with filled("a") as bench:
        async for _ in bench.stream:
            pass
        bench.stream.cut("too late")
    assert bench.stream.failure is None
    assert bench.settled == [Outcome.COMPLETED]


async def test_latest_usage_is_kept() -> None:
    """The usage of the last chunk that has one is the stream's."""
    async with filled(usage_chunk(3, 1), "text about usage", usage_chunk(3, 9), "x") as bench:
        async for _ in bench.stream:
            pass
    assert bench.stream.usage is not None
    assert bench.stream.usage.output_tokens == 9


def test_limits_are_watched_by_the_wheel(virtual_time: Callable[..., None]) -> None:
    """Silence of the source counts, the caller's own slowness does not."""

    async def main() -> None:
        async with filled("a", 4, "b", Hang(), idle=5, deadline=1_000) as bench:
            assert (await anext(bench.stream)).text == "a"
            assert (await anext(bench.stream)).text == "b"
            start = anyio.current_time()
            with pytest.raises(StreamTruncatedError, match="no event within 5 s"):
                await anext(bench.stream)
            assert 5 <= anyio.current_time() - start <= 5.1
            assert len(bench.wheel) == 0

    virtual_time(main)


async def test_repr_tells_the_state() -> None:
    """A repr says who answers and how far it is."""
    async with filled("a") as bench:
        assert repr(bench.stream) == "ResponseStream(provider='a', open)"
        async for _ in bench.stream:
            pass
    assert repr(bench.stream) == "ResponseStream(provider='a', complete)"
