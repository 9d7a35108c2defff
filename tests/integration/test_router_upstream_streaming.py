"""Whole answers that are read as streams: the same answer, under the limits of a stream."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import (
    CHAT,
    ChatOnlyProvider,
    Events,
    Hang,
    Ok,
    ScriptedProvider,
    assert_settled,
    make_router,
    role_chunk,
    text_chunk,
    until,
)

from engine import (
    BrokenError,
    ChatRequest,
    Chunk,
    ConnectError,
    GatewayError,
    Operation,
    Replay,
    Router,
    SilentError,
    TransientError,
)

Virtual = Callable[..., None]


def streaming(*providers: ScriptedProvider, mode: str = "auto", **settings: Any) -> Router:
    """A router with one model that reads whole answers as streams."""
    targets = [{"provider": provider.name} for provider in providers]
    model = {"name": "m", "targets": targets, "upstream_streaming": mode, **settings}
    return make_router(*providers, models=[model])


def mock_router(mode: str, **options: Any) -> Router:
    """The same over the mock that speaks the real wire format."""
    providers = [{"name": "a", "type": "mock", "options": options}]
    models = [{"name": "m", "targets": [{"provider": "a"}], "upstream_streaming": mode}]
    return Router.from_config({"providers": providers, "models": models, "seed": 1})


MESSAGES = [{"role": "user", "content": "Count to five, please."}]
ASKED: list[dict[str, Any]] = [
    {},
    {"max_tokens": 3},
    {"n": 3},
    {"temperature": 0, "stop": ["x"]},
]


@pytest.mark.parametrize("fields", ASKED, ids=str)
async def test_answer_is_the_one_that_would_have_come_whole(fields: dict[str, Any]) -> None:
    """Read as a stream or not, the caller gets the same body, but for its id and date."""
    bodies: list[dict[str, Any]] = []
    for mode in ("never", "auto"):
        async with mock_router(mode) as router:
            response = await router.complete(ChatRequest("m", MESSAGES, **fields))
        body = {k: v for k, v in response.body.items() if k not in {"id", "created"}}
        for choice in body["choices"]:
            # Empty fields that are said in whole answers only.
            assert choice["message"].pop("annotations", []) == []
            assert choice["message"].pop("refusal", None) is None
        bodies.append(body)
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize(("mode", "streamed"), [("auto", True), ("never", False)])
async def test_provider_is_asked_for_a_stream(mode: str, streamed: bool) -> None:
    """The request that goes out asks for a stream with its usage, the caller's stays as it is."""
    provider = ScriptedProvider("a", Ok("hello", tokens=(3, 5)))
    async with streaming(provider, mode=mode) as router:
        response = await router.complete(CHAT)
    (call,) = provider.calls
    assert call.streamed is streamed
    assert (response.text, response.provider, response.attempts) == ("hello", "a", 1)
    assert response.usage is not None
    assert response.usage.total_tokens == 8
    if streamed:
        assert call.attempt.request.body["stream_options"] == {"include_usage": True}
        assert call.closed
    assert "stream" not in CHAT
    assert_settled(router, completed=1)


async def test_callers_stream_stays_a_stream() -> None:
    """Who asks for a stream gets its chunks as they come."""
    async with streaming(ScriptedProvider()) as router, router.stream(CHAT) as stream:
        assert "".join([chunk.text async for chunk in stream]) == "hello"


async def test_what_cannot_be_put_together_is_not_streamed() -> None:
    """Embeddings have no stream."""
    provider = ScriptedProvider("a")
    async with streaming(provider) as router:
        await router.embed({"model": "m", "input": "x"})
    assert not provider.calls[0].streamed
    assert ChatOnlyProvider.operations == {Operation.CHAT}


def limited(*script: Any, **timeouts: float) -> ScriptedProvider:
    """A provider with these limits."""
    return ScriptedProvider("a", *script, timeout=50, timeouts={"headers": 60, **timeouts})


def test_first_event_limit_protects_a_whole_answer(virtual_time: Virtual) -> None:
    """A provider that says nothing is given up after the first event's limit, not the headers'."""

    async def main() -> None:
        provider = limited(Events(role_chunk(), Hang()), first_event=4)
        async with streaming(provider) as router:
            start = anyio.current_time()
            with pytest.raises(SilentError, match="no first event") as caught:
                await router.complete(CHAT)
            assert anyio.current_time() - start == pytest.approx(4, abs=0.05)
        assert caught.value.replay is Replay.MAYBE_ACCEPTED
        assert provider.calls[0].closed

    virtual_time(main)


def test_idle_limit_protects_a_whole_answer(virtual_time: Virtual) -> None:
    """A provider that falls silent in the middle is given up after the limit between events."""

    async def main() -> None:
        provider = limited(Events("a", 2, "b", Hang()), first_event=4, idle=3)
        async with streaming(provider) as router:
            start = anyio.current_time()
            with pytest.raises(SilentError, match="no further event within 3"):
                await router.complete(CHAT)
            assert anyio.current_time() - start == pytest.approx(5, abs=0.05)
            assert router.status().actors[0].failed == {"silent": 1}

    virtual_time(main)


def test_long_answer_may_take_longer_than_an_attempt(virtual_time: Virtual) -> None:
    """While events come, only the request's deadline ends it."""

    async def main() -> None:
        provider = limited(Events(*["x", 2] * 40), first_event=4, idle=3)
        async with streaming(provider) as router:
            assert (await router.complete(CHAT)).text == "x" * 40

    virtual_time(main)


def test_deadline_in_the_middle_is_not_the_providers_fault(virtual_time: Virtual) -> None:
    """Who is cut off while it answers is as healthy as before."""

    async def main() -> None:
        provider = ScriptedProvider("a", then=Events(*["x", 0.5] * 60))
        async with streaming(provider) as router:
            for _ in range(20):
                with pytest.raises(GatewayError) as caught:
                    await router.complete(CHAT, timeout=9)
                assert caught.value.status == 504
            health = router.status().actors[0].health
            assert (health.state, health.consecutive_failures) == ("healthy", 0)
        assert router.status().ledger.wasted == 20

    virtual_time(main)


@pytest.mark.parametrize("failure", [ConnectError("cut"), TransientError("500")])
@pytest.mark.parametrize("repeat", ["never", "non_streaming"])
async def test_failure_in_the_middle_may_have_been_billed(
    failure: GatewayError, repeat: str
) -> None:
    """Output was made: it is repeated only where that is allowed, whatever the error says."""
    provider = ScriptedProvider("a", Events("half", failure), weight=1e9)
    other = ScriptedProvider("b", weight=1e-9)
    retries = {"repeat_maybe_accepted": repeat}
    async with streaming(provider, other, retries=retries) as router:
        if repeat == "never":
            with pytest.raises(type(failure)) as caught:
                await router.complete(CHAT)
            assert caught.value.replay is Replay.ACCEPTED  # type: ignore[attr-defined]
        else:
            assert (await router.complete(CHAT)).text == "hello"
    assert router.status().ledger.wasted == 1


async def test_failure_before_the_first_event_goes_elsewhere() -> None:
    """Nothing useful was made: the error's own mark stands."""
    provider = ScriptedProvider("a", Events(role_chunk(), TransientError("500")), weight=1e9)
    other = ScriptedProvider("b", weight=1e-9)
    retries = {"repeat_maybe_accepted": "never"}
    async with streaming(provider, other, retries=retries) as router:
        assert (await router.complete(CHAT)).provider == "b"
    assert router.status().ledger.wasted == 0


@pytest.mark.parametrize(
    "events", [Events(), Events(Chunk(b"[1]")), Events(Chunk(b"{nope")), Events(Chunk(b'{"a":1}'))]
)
async def test_stream_that_is_no_answer_is_broken(events: Events) -> None:
    """What cannot be put together is a failed attempt."""
    provider = ScriptedProvider("a", events)
    async with streaming(provider) as router:
        with pytest.raises(BrokenError):
            await router.complete(CHAT)
        assert provider.calls[0].closed
    assert_settled(router, failed=1)


def test_caller_who_leaves_closes_the_stream(virtual_time: Virtual) -> None:
    """Also in the middle of an answer that nobody sees yet."""

    async def main() -> None:
        provider = ScriptedProvider("a", Events(text_chunk("x"), Hang()))
        async with streaming(provider) as router:
            with anyio.move_on_after(1):
                await router.complete(CHAT)
            await until(lambda: provider.calls[0].closed)
        assert router.status().ledger.wasted == 1
        assert_settled(router, cancelled=1)

    virtual_time(main)


def test_whole_answers_are_raced_as_streams(virtual_time: Virtual) -> None:
    """Hedging and upstream streaming go together."""

    async def main() -> None:
        slow = ScriptedProvider("slow", Events(5, "slow"), weight=1e9)
        quick = ScriptedProvider("quick", Ok("quick"), weight=1e-9)
        hedging = {"delay": 0.5, "max_share": 1}
        async with streaming(slow, quick, hedging=hedging) as router:
            assert (await router.complete(CHAT)).text == "quick"
            await until(lambda: slow.calls[0].closed)

    virtual_time(main)
