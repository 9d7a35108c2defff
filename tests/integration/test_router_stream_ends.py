"""How streams end when the router closes, the adapter misbehaves, or nobody reads."""

import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any, Self

import anyio
import pytest
from scripted import (
    CHAT,
    Answer,
    Events,
    Hang,
    ScriptedProvider,
    assert_settled,
    make_router,
    role_chunk,
    text_chunk,
    until,
)

from engine import (
    AdapterError,
    Attempt,
    Chunk,
    ChunkSource,
    ConnectError,
    GatewayError,
    Router,
    StreamTruncatedError,
)


async def texts_of(router: Router) -> list[str]:
    """All texts of one stream, the empty ones too."""
    async with router.stream(CHAT) as stream:
        return [chunk.text async for chunk in stream]


async def test_closing_the_router_ends_open_streams() -> None:
    """A stream that is being read when the router closes ends as truncated."""
    provider = ScriptedProvider("a", Events("one", Hang()))
    router = make_router(provider)
    heard: list[GatewayError] = []
    opened = anyio.Event()

    async def read() -> None:
        async with router.stream(CHAT) as stream:
            try:
                async for _ in stream:
                    opened.set()
            except StreamTruncatedError as error:
                heard.append(error)

    async with anyio.create_task_group() as group:
        async with router:
            group.start_soon(read)
            await opened.wait()
    assert len(heard) == 1
    assert provider.calls[0].closed
    assert_settled(router, truncated=1)


async def test_closing_the_router_ends_a_stream_that_nobody_reads() -> None:
    """An open stream whose caller does something else is settled when the router closes."""
    provider = ScriptedProvider("a", Events("one", "two", Hang()))
    router = make_router(provider)
    opened, closed = anyio.Event(), anyio.Event()

    async def hold() -> None:
        async with router.stream(CHAT) as stream:
            opened.set()
            await closed.wait()
            with pytest.raises(StreamTruncatedError):
                async for _ in stream:
                    pass

    async with anyio.create_task_group() as group:
        async with router:
            group.start_soon(hold)
            await opened.wait()
        assert_settled(router, truncated=1)
        closed.set()


@pytest.mark.parametrize("tail", [(), (ConnectError("gone"),)], ids=["complete", "broken"])
def test_closing_the_router_settles_a_stream_that_was_read_ahead(
    tail: tuple[Exception, ...], virtual_time: Callable[..., None]
) -> None:
    """A stream whose upstream is over, but whose caller has not taken it, does not stay open."""

    async def main() -> None:
        router = make_router(ScriptedProvider("a", Events("one", "two", *tail)))
        opened, closed = anyio.Event(), anyio.Event()

        async def hold() -> None:
            async with router.stream(CHAT):
                opened.set()
                await closed.wait()

        async with anyio.create_task_group() as group:
            async with router:
                group.start_soon(hold)
                await opened.wait()
                await anyio.sleep(1)
            assert router.status().ledger.in_flight == 0
            closed.set()
        assert_settled(router, truncated=1)

    virtual_time(main)


async def test_stream_that_takes_its_actor_down_is_truncated() -> None:
    """A crash in the middle of a stream reaches its reader at once."""

    class Crash(BaseException):
        pass

    provider = ScriptedProvider("a", Events("one", 0.01, Crash))
    async with make_router(provider) as router, router.stream(CHAT) as stream:
        await anext(stream)
        with pytest.raises(StreamTruncatedError), anyio.fail_after(5):
            await anext(stream)
    assert_settled(router, truncated=1)


def test_reading_ahead_is_bounded(virtual_time: Callable[..., None]) -> None:
    """A caller that does not read holds the upstream back; nothing is lost by that."""

    async def main() -> None:
        read: list[int] = []

        class Endless(ScriptedProvider):
            async def stream(self, attempt: Attempt) -> AsyncGenerator[Chunk, None]:
                for number in range(1_000):
                    read.append(number)
                    yield text_chunk(str(number))

        async with make_router(Endless()) as router, router.stream(CHAT) as stream:
            await anyio.sleep(5)
            assert len(read) <= 70
            texts = [chunk.text async for chunk in stream]
        assert texts == [str(number) for number in range(1_000)]
        assert_settled(router, completed=1)

    virtual_time(main)


async def test_large_chunks_read_ahead_are_bounded_by_their_bytes() -> None:
    """The buffer is bounded by size too, not by the number of chunks alone."""
    read: list[int] = []

    class Large(ScriptedProvider):
        async def stream(self, attempt: Attempt) -> AsyncGenerator[Chunk, None]:
            for number in range(20):
                read.append(number)
                yield Chunk(b'{"x": "' + b"a" * 50_000 + b'"}')

    async with make_router(Large()) as router, router.stream(CHAT) as stream:
        await anyio.wait_all_tasks_blocked()
        assert len(read) <= 4
        assert len([chunk async for chunk in stream]) == 20
    assert_settled(router, completed=1)


class BadlyClosing(ScriptedProvider):
    """Its streams fail when they are closed."""

    def stream(self, attempt: Attempt) -> ChunkSource:
        source = super().stream(attempt)

        class Source:
            def __aiter__(self) -> Self:
                return self

            async def __anext__(self) -> Chunk:
                return await source.__anext__()

            async def aclose(self) -> None:
                await source.aclose()
                raise OSError("already gone")

        return Source()


async def test_source_that_cannot_be_closed_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failing close is the attempt's failure and not the caller's, who has the whole answer."""
    provider = BadlyClosing("a", limits={"concurrency": 1})
    with caplog.at_level(logging.ERROR, "engine"):
        async with make_router(provider) as router:
            for _ in range(3):
                assert await texts_of(router) == ["", "hello"]
            assert router.status().actors[0].restarts == 0
    assert_settled(router, completed=3)
    assert caplog.text == ""


async def test_stream_method_that_raises_is_an_outcome() -> None:
    """An adapter whose `stream` fails before it returns is a failed attempt."""

    class Failing(ScriptedProvider):
        def stream(self, attempt: Attempt) -> ChunkSource:
            raise RuntimeError("no")

    async with make_router(Failing()) as router:
        with pytest.raises(AdapterError, match="RuntimeError"):
            await texts_of(router)
    assert_settled(router, failed=1)


async def test_async_generators_are_sources() -> None:
    """An adapter may write its stream as an async generator; it is closed when left."""
    ended: list[str] = []

    class Generating(ScriptedProvider):
        async def stream(self, attempt: Attempt) -> AsyncGenerator[Chunk, None]:
            try:
                yield role_chunk()
                yield text_chunk("one")
                await anyio.sleep_forever()
            finally:
                ended.append("closed")

    async with make_router(Generating()) as router:
        async with router.stream(CHAT) as stream:
            await anext(stream)
            await anext(stream)
        await until(lambda: ended == ["closed"])
        async with router.stream(CHAT) as stream:
            await anext(stream)
            await anext(stream)
            with anyio.move_on_after(0.05):
                await anext(stream)
        await until(lambda: ended == ["closed", "closed"])
    assert_settled(router, cancelled=2)


def test_a_source_that_hangs_on_close_gives_the_place_back(
    virtual_time: Callable[..., None],
) -> None:
    """Closing an upstream stream takes a second at most; then the worker serves again."""

    class Hanging(ScriptedProvider):
        async def stream(self, attempt: Attempt) -> AsyncGenerator[Chunk, None]:
            try:
                yield text_chunk("one")
                yield text_chunk("two")
            finally:
                await anyio.sleep(1000)

    async def main() -> None:
        provider = Hanging("a", limits={"concurrency": 1})
        async with make_router(provider) as router:
            start = anyio.current_time()
            for _ in range(3):
                async with router.stream(CHAT) as stream:
                    await anext(stream)
            assert anyio.current_time() - start <= 2.1
        assert_settled(router, cancelled=3)

    virtual_time(main)


async def test_answers_that_are_no_answers_are_outcomes() -> None:
    """What an adapter returns is checked at the border, so that nonsense cannot crash an actor."""
    values: list[Any] = [None, 5, "text", {"choices": []}]
    for value in values:
        provider = ScriptedProvider("a", Answer(value), limits={"concurrency": 1})
        async with make_router(provider) as router:
            with pytest.raises(AdapterError):
                await router.complete(CHAT)
            assert (await router.complete(CHAT)).text == "hello"
            assert router.status().actors[0].restarts == 0
        assert_settled(router, failed=1, completed=1)
