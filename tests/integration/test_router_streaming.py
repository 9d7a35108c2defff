"""Streams: commit at the first useful event, the truth about their end, closed sources."""

import anyio
import pytest
from scripted import (
    CHAT,
    ChatOnlyProvider,
    Events,
    Hang,
    Ok,
    Scripted,
    ScriptedProvider,
    assert_settled,
    make_router,
    role_chunk,
    until,
    usage_chunk,
)

from engine import (
    BrokenError,
    Chunk,
    CompletionRequest,
    ConnectError,
    NoProviderAvailableError,
    OverloadedError,
    Router,
    StreamTruncatedError,
    TransientError,
    UnsupportedOperationError,
)


async def texts_of(router: Router) -> list[str]:
    """All texts of one stream, the empty ones too."""
    async with router.stream(CHAT) as stream:
        return [chunk.text async for chunk in stream]


async def test_stream_gives_every_chunk_in_order() -> None:
    """Chunks held back before the commit come first, and none is lost or reordered."""
    events = Events(role_chunk(), role_chunk(), "a", role_chunk(), "b", "c", usage_chunk(3, 4))
    provider = ScriptedProvider("x", events)
    async with make_router(provider) as router:
        async with router.stream(CHAT, request_id="my-id") as stream:
            assert (stream.provider, stream.attempts) == ("x", 1)
            assert stream.request_id == "my-id"
            assert stream.upstream_seconds >= 0
            assert [chunk.text async for chunk in stream] == ["", "", "a", "", "b", "c", ""]
            assert stream.complete
            assert stream.usage is not None
            assert stream.usage.total_tokens == 7
        await until(lambda: provider.calls[0].closed)
    assert provider.outcomes == ["ok"]
    assert_settled(router, completed=1)


async def test_the_adapter_is_asked_for_a_stream() -> None:
    """A request without `stream` is sent as a streamed one."""
    provider = ScriptedProvider()
    async with make_router(provider) as router:
        await texts_of(router)
    assert provider.calls[0].streamed
    assert provider.calls[0].attempt.request.body == {**CHAT, "stream": True}


async def test_other_operations_stream_too() -> None:
    """A completion request is streamed as it is."""
    provider = ScriptedProvider()
    async with make_router(provider) as router:
        async with router.stream(CompletionRequest("m", prompt="once")) as stream:
            assert len([chunk async for chunk in stream]) == 2


async def test_streaming_an_operation_nobody_offers() -> None:
    """Entering the stream raises what `complete` would raise."""
    async with make_router(ChatOnlyProvider()) as router:
        with pytest.raises(UnsupportedOperationError):
            async with router.stream(CompletionRequest("m", prompt="once")):
                pass


@pytest.mark.parametrize(
    "script",
    [
        ConnectError,
        Events(role_chunk(), TransientError("gone")),
        Events(role_chunk(), role_chunk(), OverloadedError("busy")),
        Events(role_chunk(), ValueError("bug")),
        Events(),
    ],
    ids=["refused", "after a role", "after two roles", "bug", "empty"],
)
async def test_failure_before_the_commit_goes_elsewhere(script: Scripted) -> None:
    """Until the first useful event nothing was promised, so somebody else may serve."""
    bad = ScriptedProvider("bad", script, weight=1e6)
    good = ScriptedProvider("good", Events(role_chunk(), "fine"), weight=1e-3)
    always = {"repeat_maybe_accepted": "always"}
    async with make_router(bad, good, retries=always) as router:
        async with router.stream(CHAT) as stream:
            assert (stream.provider, stream.attempts) == ("good", 2)
            assert [chunk.text async for chunk in stream] == ["", "fine"]
    assert bad.calls[0].closed
    assert_settled(router, completed=1)


async def test_failure_before_the_commit_is_repeated_when_alone() -> None:
    """With nobody else, the same provider is asked again, and nothing held leaks through."""
    provider = ScriptedProvider("a", Events(role_chunk(), ConnectError("gone")), Ok("fine"))
    async with make_router(provider) as router:
        assert await texts_of(router) == ["", "fine"]
    assert [call.closed for call in provider.calls] == [True, True]


async def test_stream_without_any_event_is_broken() -> None:
    """An end before anything came is no answer."""
    provider = ScriptedProvider("a", Events())
    async with make_router(provider) as router:
        with pytest.raises(BrokenError, match="without any event"):
            await texts_of(router)
    assert_settled(router, failed=1)


@pytest.mark.parametrize("failure", [ConnectError("gone"), OverloadedError("no"), KeyError("bug")])
async def test_failure_after_the_commit_is_told_and_never_repeated(failure: Exception) -> None:
    """A cut stream ends in `StreamTruncatedError`; nobody else is asked."""
    bad = ScriptedProvider("bad", then=Events("one", "two", failure), weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    received = []
    async with make_router(bad, good) as router:
        async with router.stream(CHAT) as stream:
            with pytest.raises(StreamTruncatedError, match="broke off") as caught:
                async for chunk in stream:
                    received.append(chunk.text)  # noqa: PERF401 - kept when it raises
            assert caught.value.__cause__ is failure
            assert caught.value.provider == "bad"
            assert not stream.complete
            with pytest.raises((StreamTruncatedError, StopAsyncIteration)):
                await anext(stream)
        await until(lambda: bad.calls[0].closed)
        await until(lambda: router.status().actors[0].in_flight == 0)
        assert router.status().actors[0].failed == {"after_commit": 1}
    assert received == ["one", "two"]
    assert good.calls == []
    assert_settled(router, truncated=1)


async def test_cut_stream_stays_cut() -> None:
    """Reading on after the failure never gives a clean end."""
    provider = ScriptedProvider("a", Events("one", ConnectError("gone")))
    async with make_router(provider) as router, router.stream(CHAT) as stream:
        await anext(stream)
        for _ in range(3):
            with pytest.raises(StreamTruncatedError):
                await anext(stream)
    assert_settled(router, truncated=1)


async def test_consumer_that_leaves_early_closes_the_source() -> None:
    """Leaving the block closes the upstream, counts as cancelled, and frees the slot."""
    provider = ScriptedProvider("a", then=Events("one", "two", Hang()), limits={"concurrency": 1})
    async with make_router(provider) as router:
        for count in range(1, 4):
            async with router.stream(CHAT) as stream:
                async for chunk in stream:
                    assert chunk.text == "one"
                    break
            await until(lambda n=count: len(provider.calls) == n and provider.calls[-1].closed)  # type: ignore[misc]
    assert provider.outcomes == ["cancelled"] * 3
    assert_settled(router, cancelled=3)


async def test_consumer_that_raises_closes_the_source() -> None:
    """An exception in the caller's loop goes through unchanged and closes the upstream."""
    provider = ScriptedProvider("a", Events("one", "two", Hang()))
    async with make_router(provider) as router:
        with pytest.raises(ZeroDivisionError):
            async with router.stream(CHAT) as stream:
                async for _ in stream:
                    raise ZeroDivisionError
        await until(lambda: provider.calls[0].closed)
    assert_settled(router, cancelled=1)


async def test_stream_holds_its_place_until_it_is_released() -> None:
    """A stream counts against the provider's concurrency as long as its upstream is open."""
    script = Events("one", "two", Hang())
    provider = ScriptedProvider("a", script, limits={"concurrency": 1, "queue": 0})
    async with make_router(provider) as router:
        async with router.stream(CHAT) as stream:
            for _ in range(2):
                await anext(stream)
                with pytest.raises(NoProviderAvailableError):
                    await router.complete(CHAT)
                assert router.status().actors[0].in_flight == 1
        await until(lambda: router.status().actors[0].in_flight == 0)
        await router.complete(CHAT)
    assert_settled(router, completed=1, cancelled=1, rejected=2)


async def test_what_is_held_before_the_commit_is_bounded() -> None:
    """A provider that only sends events without use is committed after 64 of them."""
    provider = ScriptedProvider("a", Events(*[role_chunk()] * 500, ConnectError("gone")))
    async with make_router(provider) as router, router.stream(CHAT) as stream:
        received = 0
        with pytest.raises(StreamTruncatedError):
            async for _ in stream:
                received += 1
    assert received == 500
    assert len(provider.calls) == 1


async def test_bytes_held_before_the_commit_are_bounded() -> None:
    """Large events without use are committed after 64 KiB of them."""
    large = Chunk(b'{"x": "' + b"a" * 40_000 + b'"}', commits=False)
    provider = ScriptedProvider("a", Events(large, large, Hang()))
    async with make_router(provider) as router:
        with anyio.fail_after(10):
            async with router.stream(CHAT) as stream:
                assert await anext(stream) is large


async def test_stream_that_ends_before_any_useful_event_is_given_as_it_came() -> None:
    """An answer without content is complete, for the provider said so."""
    provider = ScriptedProvider("a", Events(role_chunk(), usage_chunk(1, 0)))
    async with make_router(provider) as router:
        assert len(await texts_of(router)) == 2
        empty = ScriptedProvider("b", Events(role_chunk()))
    async with make_router(empty) as second:
        assert await texts_of(second) == [""]
    assert_settled(router, completed=1)
    assert_settled(second, completed=1)


async def test_garbled_usage_does_not_break_the_stream_on_our_side() -> None:
    """A chunk that cannot be parsed is passed on as it came; only its usage is not known."""
    garbled = Chunk(b'{"usage": nonsense')
    provider = ScriptedProvider("a", Events("one", garbled, Chunk(b'["usage"]'), "two"))
    async with make_router(provider) as router, router.stream(CHAT) as stream:
        data = [chunk.data async for chunk in stream]
        assert stream.usage is None
    assert data[1] == garbled.data
    assert_settled(router, completed=1)
