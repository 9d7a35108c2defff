"""One streamed answer, read by several: from the first chunk, at their own speeds."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
from scripted import CHAT, Hang, ScriptedProvider, make_router, until

from engine import (
    ChatRequest,
    Chunk,
    ConnectError,
    DeadlineExceededError,
    InvalidRequestError,
    RouterClosedError,
    StreamTruncatedError,
    Usage,
)
from engine.answer_stream import ChunkFeed
from engine.config import IdempotencyConfig
from engine.idempotency_store import IdempotencyStore
from engine.operations import Replayed
from engine.shared_stream import CHUNK_COST, SharedStream

ASK = ChatRequest("m", [{"role": "user", "content": "hi"}], stream=True)
OTHER = ChatRequest("m", [{"role": "user", "content": "ho"}], stream=True)


class Feed:
    """A stream in the hands of a test: batches of chunks, an end, or an error."""

    provider = "a"
    request_id = "req-1"

    def __init__(self, *batches: Any) -> None:
        self.attempts = 2
        self.upstream_seconds = 1.5
        self.fallbacks: tuple[str, ...] = ("m-2",)
        self.usage: Usage | None = None
        self.given: list[Any] = list(batches)
        self.more = anyio.Event()
        self.opened = 0
        self.closed = 0
        self.reads = 0
        self.gate: anyio.Event | None = None
        self.error: Exception | None = None
        self._ready: list[Chunk] = []

    def give(self, *batches: Any) -> None:
        """What comes next: lists of data, `END`, or an error."""
        self.given += batches
        self.more.set()
        self.more = anyio.Event()

    def is_closed(self) -> bool:
        return self.closed == 1

    def open(self) -> AbstractAsyncContextManager[ChunkFeed]:
        return Opening(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        self.reads += 1
        await anyio.lowlevel.checkpoint()
        while not self.given:
            await self.more.wait()
        batch = self.given.pop(0)
        if isinstance(batch, Exception):
            raise batch
        if batch is END:
            self.usage = Usage(3, 4)
            raise StopAsyncIteration
        first, *others = [Chunk(data) for data in batch]
        self._ready = others
        return first

    def ready(self) -> list[Chunk]:
        found, self._ready = self._ready, []
        return found


END = object()


class Opening:
    """Opens a feed once its gate is open."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    async def __aenter__(self) -> Feed:
        self.feed.opened += 1
        try:
            await anyio.lowlevel.checkpoint()
            if self.feed.gate is not None:
                await self.feed.gate.wait()
            if self.feed.error is not None:
                raise self.feed.error
        except BaseException:
            self.feed.closed += 1
            raise
        return self.feed

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.feed.closed += 1


class Bench:
    """A store, and a task group that stands for the router's."""

    def __init__(self, group: anyio.abc.TaskGroup, **settings: Any) -> None:
        self.store = IdempotencyStore(
            IdempotencyConfig(**settings), clock=anyio.current_time, start=group.start_soon
        )

    def stream(
        self, feed: Feed, *, request: ChatRequest = ASK, key: str = "k", after: float | None = None
    ) -> AbstractAsyncContextManager[SharedStream]:
        deadline = None if after is None else anyio.current_time() + after
        return self.store.stream("", key, request, feed.open, deadline=deadline)

    async def read(self, feed: Feed, into: list[bytes], **settings: Any) -> None:
        async with self.stream(feed, **settings) as stream:
            async for chunk in stream:
                into += [chunk.data]

    async def leave_when(
        self, condition: Callable[[], bool], feed: Feed, into: list[bytes]
    ) -> None:
        """Read, and be cancelled once the condition holds."""
        async with anyio.create_task_group() as readers:
            readers.start_soon(self.read, feed, into)
            await until(condition)
            readers.cancel_scope.cancel()


@asynccontextmanager
async def bench(**settings: Any) -> AsyncGenerator[Bench, None]:
    async with anyio.create_task_group() as group:
        made = Bench(group, **settings)
        yield made
        await until(lambda: made.store.status().running == 0)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def rest(stream: SharedStream) -> list[bytes]:
    return [chunk.data async for chunk in stream]


# ── sharing ──────────────────────────────────────────────────────────────────────


async def test_first_reader_gets_the_stream() -> None:
    """Everything that a reader of an unshared stream finds is there."""
    async with bench() as b:
        feed = Feed([b"1", b"2"], [b"3"], END)
        async with b.stream(feed) as stream:
            assert (stream.provider, stream.request_id, stream.attempts) == ("a", "req-1", 2)
            assert (stream.upstream_seconds, stream.replayed) == (1.5, None)
            assert stream.fallbacks == ("m-2",)
            assert not stream.complete
            assert await rest(stream) == [b"1", b"2", b"3"]
            assert stream.complete
            assert stream.failure is None
            assert stream.usage == Usage(3, 4)
        assert feed.closed == 1


async def test_reader_that_joins_in_the_middle_reads_from_the_beginning() -> None:
    """It misses nothing, and is told that it joined."""
    async with bench() as b:
        feed = Feed([b"1"], [b"2"])
        async with b.stream(feed) as first:
            assert (await anext(first)).data == b"1"
            assert (await anext(first)).data == b"2"
            async with b.stream(feed) as second:
                assert second.replayed is Replayed.JOINED
                assert (second.attempts, second.upstream_seconds) == (0, 1.5)
                assert [(await anext(second)).data for _ in range(2)] == [b"1", b"2"]
                feed.give([b"3"], END)
                assert await rest(second) == [b"3"]
            assert await rest(first) == [b"3"]
        assert feed.opened == 1


async def test_reader_may_join_before_the_first_event() -> None:
    """Both wait for it."""
    got: list[list[bytes]] = [[], []]
    async with bench() as b, anyio.create_task_group() as readers:
        feed = Feed([b"1"], END)
        feed.gate = anyio.Event()
        for into in got:
            readers.start_soon(b.read, feed, into)
        await until(lambda: b.store.status().joined == 1)
        feed.gate.set()
    assert got == [[b"1"], [b"1"]]


async def test_kept_stream_is_replayed() -> None:
    """All its chunks come at once, and nothing is asked upstream."""
    async with bench() as b:
        feed = Feed([b"1"], [b"2", b"3"], END)
        await b.read(feed, [])
        assert b.store.status().bytes == 3 + 3 * CHUNK_COST
        async with b.stream(feed) as stream:
            assert stream.replayed is Replayed.STORED
            assert (stream.attempts, stream.upstream_seconds) == (0, 0.0)
            assert stream.complete
            assert (await anext(stream)).data == b"1"
            assert [chunk.data for chunk in stream.ready()] == [b"2", b"3"]
            assert stream.ready() == []
            assert await rest(stream) == []
            assert stream.usage == Usage(3, 4)
        assert feed.opened == 1
        assert b.store.status().stored == 1


async def test_stream_and_whole_answer_are_different_requests() -> None:
    """The key of a stream cannot be used for the same request unstreamed."""
    async with bench() as b:
        feed = Feed([b"1"], END)
        await b.read(feed, [])
        with pytest.raises(InvalidRequestError) as caught:
            await b.read(feed, [], request=ASK.as_streamed(False))
    assert caught.value.status == 422


async def test_readers_do_not_share_what_they_parse() -> None:
    """A chunk that one reader changes is not changed for the others."""
    async with bench() as b:
        feed = Feed([b'{"x": 1}'], END)
        async with b.stream(feed) as one, b.stream(feed) as two:
            (await anext(one)).body["x"] = 2
            assert (await anext(two)).body == {"x": 1}


async def test_long_replay_lets_others_run() -> None:
    """A reader of a kept answer that never waits still gives the loop its turns."""
    async with bench() as b:
        feed = Feed([b"x"] * 1_000, END)
        await b.read(feed, [])
        seen = 0

        async def count() -> None:
            nonlocal seen
            while True:
                await anyio.lowlevel.checkpoint()
                seen += 1

        async with anyio.create_task_group() as others:
            others.start_soon(count)
            await b.read(feed, [])
            others.cancel_scope.cancel()
        assert seen >= 10


# ── back-pressure ────────────────────────────────────────────────────────────────


async def test_work_reads_no_faster_than_the_fastest_reader() -> None:
    """The next read waits until somebody has taken everything that is here."""
    async with bench() as b:
        feed = Feed(*[[b"1", b"2"]] * 50, END)
        async with b.stream(feed) as slow, b.stream(feed) as fast:
            await turns()
            assert feed.reads == 1
            await anext(fast)
            await turns()
            assert feed.reads == 1
            await anext(fast)
            await turns()
            assert feed.reads == 2
            await anext(slow)
            assert len(slow.ready()) == 3
            await turns()
            assert feed.reads == 3
            assert len(await rest(fast)) == 98
            assert len(await rest(slow)) == 96


# ── leaving ──────────────────────────────────────────────────────────────────────


async def test_last_reader_closes_the_upstream() -> None:
    """As long as one reads the stream goes on; without any it is closed and forgotten."""
    async with bench() as b:
        feed = Feed([b"1"])
        async with b.stream(feed) as second:
            async with b.stream(feed):
                pass
            await turns()
            assert feed.closed == 0
            assert (await anext(second)).data == b"1"
            second.release()
            second.release()
            await until(lambda: feed.closed == 1)
            assert await rest(second) == []
        assert b.store.status().entries == 0


async def test_cancelled_while_it_waits_for_the_first_event() -> None:
    """Nothing is left behind."""
    async with bench() as b:
        feed = Feed()
        feed.gate = anyio.Event()
        await b.leave_when(lambda: feed.opened == 1, feed, [])
        await until(lambda: feed.closed == 1)
        assert b.store.status().entries == 0


async def test_cancelled_while_it_reads() -> None:
    """Nothing is left behind."""
    async with bench() as b:
        feed = Feed([b"1"])
        got: list[bytes] = []
        await b.leave_when(lambda: bool(got), feed, got)
        await until(lambda: feed.closed == 1)
        assert got == [b"1"]
        assert b.store.status().entries == 0


async def test_stream_can_be_closed_like_any_other() -> None:
    """`aclose` and `async with stream` let go as well."""
    async with bench() as b:
        for key in "ab":
            feed = Feed([b"1"])
            async with b.stream(feed, key=key) as stream:
                if key == "a":
                    await stream.aclose()
                else:
                    async with stream:
                        assert "open" in repr(stream)
                await until(feed.is_closed)


# ── failures ─────────────────────────────────────────────────────────────────────


async def test_failure_before_the_first_event_is_raised_on_entering() -> None:
    """For all who wait; nothing is kept."""
    got: list[Exception] = []

    async def ask(b: Bench, feed: Feed) -> None:
        try:
            await b.read(feed, [])
        except ConnectError as error:
            got.append(error)

    async with bench() as b:
        feed = Feed()
        feed.gate, feed.error = anyio.Event(), ConnectError("down")
        async with anyio.create_task_group() as readers:
            readers.start_soon(ask, b, feed)
            readers.start_soon(ask, b, feed)
            await until(lambda: b.store.status().joined == 1)
            feed.gate.set()
        assert got == [feed.error] * 2
        assert b.store.status().entries == 0


async def test_truncated_stream_is_truncated_for_all_and_not_kept() -> None:
    """Each reader gets what came, and then the same error."""
    cut = StreamTruncatedError("cut", provider="a")
    async with bench() as b:
        feed = Feed([b"1"])
        async with b.stream(feed) as one, b.stream(feed) as two:
            assert (await anext(one)).data == b"1"
            feed.give(cut)
            for stream, left in ((one, []), (two, [b"1"])):
                got: list[bytes] = []
                with pytest.raises(StreamTruncatedError) as caught:
                    async for chunk in stream:
                        got += [chunk.data]
                assert caught.value is cut
                assert got == left
                assert stream.failure is cut
        assert b.store.status().entries == b.store.status().bytes == 0


async def test_other_errors_in_the_stream_are_a_truncation() -> None:
    """A reader need not know any other exception."""
    async with bench() as b:
        feed = Feed([b"1"], KeyError("bug"))
        async with b.stream(feed) as stream:
            with pytest.raises(StreamTruncatedError, match="KeyError") as caught:
                await rest(stream)
        assert isinstance(caught.value.__cause__, KeyError)


async def test_closing_router_truncates_the_stream() -> None:
    """Its readers are told why; the one that waits for the first event hears as much."""
    async with anyio.create_task_group() as readers:
        got: list[Exception] = []

        async def ask(b: Bench, feed: Feed, key: str) -> None:
            try:
                await b.read(feed, [], key=key)
            except (StreamTruncatedError, RouterClosedError) as error:
                got.append(error)

        async with anyio.create_task_group() as group:
            b = Bench(group)
            begun, waits = Feed([b"1"]), Feed()
            waits.gate = anyio.Event()
            readers.start_soon(ask, b, begun, "a")
            readers.start_soon(ask, b, waits, "b")
            await until(lambda: begun.reads == 2 and waits.opened == 1)
            group.cancel_scope.cancel()
        await until(lambda: len(got) == 2)
    assert {type(error) for error in got} == {StreamTruncatedError, RouterClosedError}
    assert all("closing" in str(error) for error in got)


async def test_cut_ends_one_reader_only() -> None:
    """The gateway can end a reader under it; the others go on."""
    async with bench() as b:
        feed = Feed([b"1"])
        async with b.stream(feed) as one, b.stream(feed) as two:
            await anext(one)
            heard: list[Exception] = []

            async def wait() -> None:
                try:
                    await anext(one)
                except StreamTruncatedError as error:
                    heard.append(error)

            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                await turns()
                one.cut("the gateway is shutting down")
                one.cut("again")
            assert one.failure is heard[0]
            assert "shutting down" in str(heard[0])
            feed.give([b"2"], END)
            assert await rest(two) == [b"1", b"2"]


async def test_reader_that_joins_keeps_its_own_deadline() -> None:
    """On entering and on reading; the first reader is not harmed."""
    async with bench() as b:
        feed = Feed()
        feed.gate = anyio.Event()
        got: list[bytes] = []
        async with anyio.create_task_group() as readers:
            readers.start_soon(b.read, feed, got)
            await until(lambda: feed.opened == 1)
            with pytest.raises(DeadlineExceededError):
                await b.read(feed, [], after=0.01)
            feed.gate.set()
            feed.give([b"1"])
            late: list[bytes] = []
            with pytest.raises(StreamTruncatedError, match="deadline"):
                await b.read(feed, late, after=0.5)
            assert late == [b"1"]
            feed.give([b"2"], END)
        assert got == [b"1", b"2"]


# ── bounds ───────────────────────────────────────────────────────────────────────


async def test_long_stream_can_no_longer_be_joined() -> None:
    """409 with a reason; its reader gets it all, and it is not kept."""
    big = b"x" * 1_000
    async with bench(max_bytes=8_000) as b:
        feed = Feed([big], [big])
        async with b.stream(feed) as stream:
            await anext(stream)
            await anext(stream)
            with pytest.raises(InvalidRequestError) as caught:
                await b.read(feed, [])
            assert (caught.value.status, caught.value.code) == (409, "idempotency_in_progress")
            with pytest.raises(InvalidRequestError) as reused:
                await b.read(feed, [], request=OTHER)
            assert reused.value.status == 422
            assert b.store.status().bytes == 0
            feed.give([big], END)
            assert await rest(stream) == [big]
        assert b.store.status().entries == 0


async def test_reader_that_keeps_pace_survives_the_end_of_the_log() -> None:
    """A window of the log is still held; who falls out of it is cut, and the first is not."""
    big = b"x" * 10_000
    async with bench(max_bytes=8_000) as b:
        feed = Feed([b"1"])
        async with b.stream(feed) as fast, b.stream(feed) as near, b.stream(feed) as far:
            for _ in range(100):
                feed.give([big])
            feed.give(END)
            for number in range(101):
                await anext(fast)
                if number > 3:
                    await anext(near)
            assert await rest(fast) == []
            assert len(await rest(near)) == 4
            with pytest.raises(StreamTruncatedError, match="behind"):
                await rest(far)
            assert far.ready() == []


async def test_running_streams_share_the_bytes() -> None:
    """Kept answers make room for them; when there is no room left, a log is given up."""
    part = b"x" * 900
    async with bench(max_bytes=8_000) as b:
        await b.read(Feed([part], END), [], key="old")
        feeds = [Feed([part]) for _ in range(9)]
        async with anyio.create_task_group() as readers:
            for number, feed in enumerate(feeds):
                readers.start_soon(partial(b.read, feed, [], key=str(number)))
            await until(lambda: all(feed.reads == 2 for feed in feeds))
            status = b.store.status()
            assert status.bytes == 8_000
            assert (status.running, status.entries, status.evicted) == (9, 9, 1)
            for feed in feeds:
                feed.give(END)
        status = b.store.status()
    assert (status.entries, status.bytes) == (8, 8_000)


async def test_empty_chunks_are_not_free() -> None:
    """A stream of nothings outgrows its share as well."""
    async with bench(max_bytes=8_000) as b:
        await b.read(Feed([b""] * 50, END), [])
        assert b.store.status().entries == 0


async def test_unrecorded_stream_is_served() -> None:
    """When all entries run, a new key's stream is read by its caller alone."""
    async with bench(entries=1) as b:
        feed, other = Feed([b"1"]), Feed([b"2"], [b"3"], END)
        async with b.stream(feed):
            got: list[bytes] = []
            await b.read(other, got, key="other")
            assert got == [b"2", b"3"]
            assert (b.store.status().unrecorded, b.store.status().entries) == (1, 1)


# ── with a router ────────────────────────────────────────────────────────────────


async def test_streams_of_a_router_are_shared() -> None:
    """One upstream call, two readers, and a third one later."""
    provider = ScriptedProvider("a")
    router = make_router(provider)
    async with router, bench() as b:
        request = ChatRequest.from_body({**CHAT, "stream": True})
        got: list[list[bytes]] = [[], [], []]

        def open_stream() -> AbstractAsyncContextManager[ChunkFeed]:
            return router.stream(request)

        async def read(into: list[bytes]) -> None:
            async with b.store.stream("", "k", request, open_stream) as stream:
                async for chunk in stream:
                    into += [chunk.data, *(more.data for more in stream.ready())]

        async with anyio.create_task_group() as readers:
            readers.start_soon(read, got[0])
            readers.start_soon(read, got[1])
        await read(got[2])
        assert len(provider.calls) == 1
        assert got[0] == got[1] == got[2] != []


async def test_leaving_cancels_the_upstream_call() -> None:
    """The provider's connection is closed when the last reader has left."""
    provider = ScriptedProvider("a", then=Hang())
    async with make_router(provider) as router, bench() as b:
        request = ChatRequest.from_body(CHAT)
        async with anyio.create_task_group() as callers:
            callers.start_soon(b.store.complete, "", "k", request, lambda: router.complete(request))
            await until(lambda: provider.running == 1)
            callers.cancel_scope.cancel()
        await until(lambda: provider.outcomes == ["cancelled"])
