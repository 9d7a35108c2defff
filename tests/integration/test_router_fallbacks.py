"""Other models that answer instead: by cause, in order, never after the commit."""

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import CHAT, Events, Fail, Hang, Ok, ScriptedProvider, assert_settled, make_router

from engine import (
    BrokenError,
    CallerError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    GatewayError,
    InvalidRequestError,
    MisconfiguredError,
    NoProviderAvailableError,
    OverloadedError,
    ProviderError,
    Replay,
    Router,
    StreamTruncatedError,
    TransientError,
)

Virtual = Callable[..., None]


def model(name: str, provider: str | None = None, **settings: Any) -> dict[str, Any]:
    """A model that the provider of the same name serves."""
    return {"name": name, "targets": [{"provider": provider or name}], **settings}


def chain(*providers: ScriptedProvider, cause: str = "error", **settings: Any) -> Router:
    """Each provider serves a model of its name, for which the next one is the fallback."""
    names = [provider.name for provider in providers]
    models = [
        model(name, fallbacks={cause: names[index + 1 : index + 2]})
        for index, name in enumerate(names)
    ]
    return make_router(*providers, models=models, **settings)


ASK = {**CHAT, "model": "a"}

CAUSES = [
    (ConnectError, "error"),
    (OverloadedError, "error"),
    (TransientError, "error"),
    (MisconfiguredError, "error"),
    (ContextLengthError, "context_length"),
    (ContentFilterError, "content_filter"),
]


@pytest.mark.parametrize("named", ["error", "context_length", "content_filter"])
@pytest.mark.parametrize(("failure", "cause"), CAUSES)
async def test_cause_decides_whether_a_fallback_is_asked(
    failure: type[ProviderError], cause: str, named: str
) -> None:
    """A model is asked only for the cause that it is named for."""
    a = ScriptedProvider("a", then=failure, max_retries=0)
    b = ScriptedProvider("b", Ok("instead"))
    async with chain(a, b, cause=named) as router:
        if named == cause:
            response = await router.complete(ASK)
            assert (response.text, response.provider) == ("instead", "b")
            assert (response.fallbacks, response.attempts) == (("b",), 2)
            assert b.calls[0].attempt.model == "b"
        else:
            with pytest.raises(failure) as caught:
                await router.complete(ASK)
            assert (caught.value.fallbacks, caught.value.attempts) == ((), 1)
            assert b.calls == []


async def test_callers_mistake_has_no_fallback() -> None:
    """What is wrong with the request is told to the caller, whatever is named."""
    a, b = ScriptedProvider("a", CallerError), ScriptedProvider("b")
    models = [model("a", fallbacks={c: ["b"] for _, c in CAUSES}), model("b")]
    async with make_router(a, b, models=models) as router:
        with pytest.raises(CallerError):
            await router.complete(ASK)
    assert b.calls == []


async def test_own_targets_come_before_the_fallback() -> None:
    """Another model is asked only when no target of the first one can serve."""
    a, b, c = ScriptedProvider("a", ConnectError), ScriptedProvider("b"), ScriptedProvider("c")
    targets = [{"provider": "a", "weight": 1e6}, {"provider": "c", "tier": 1}]
    models = [{"name": "a", "targets": targets, "fallbacks": {"error": ["b"]}}, model("b")]
    async with make_router(a, b, c, models=models) as router:
        response = await router.complete(ASK)
    assert (response.provider, response.fallbacks) == ("c", ())


async def test_repeats_come_before_the_fallback() -> None:
    """A failure that the provider may repeat is repeated first."""
    a, b = ScriptedProvider("a", ConnectError, Ok("again")), ScriptedProvider("b")
    async with chain(a, b) as router:
        assert (await router.complete(ASK)).text == "again"
    assert b.calls == []


async def test_closed_model_falls_back_without_an_attempt() -> None:
    """When nobody of the first model can be asked at all, the other one is asked at once."""
    a = ScriptedProvider("a", OverloadedError("busy", retry_after=500), max_retries=0)
    b = ScriptedProvider("b")
    async with chain(a, b) as router:
        await router.complete(ASK)
        response = await router.complete(ASK)
        assert (response.provider, response.attempts, response.fallbacks) == ("b", 1, ("b",))
    assert len(a.calls) == 1


async def test_fallbacks_of_a_fallback_are_asked_in_turn() -> None:
    """A chain is followed to its end, and the answer tells the way."""
    a, b = (ScriptedProvider(name, then=ConnectError, max_retries=0) for name in "ab")
    c = ScriptedProvider("c", Ok("third"))
    async with chain(a, b, c) as router:
        response = await router.complete(ASK)
    assert (response.text, response.fallbacks, response.attempts) == ("third", ("b", "c"), 3)
    assert_settled(router, completed=1)


async def test_several_fallbacks_are_asked_in_their_order() -> None:
    """What a fallback names itself goes before what was named earlier; nobody is asked twice."""
    providers = [ScriptedProvider(n, then=ConnectError, max_retries=0) for n in "abcd"]
    last = ScriptedProvider("e")
    models = [
        model("a", fallbacks={"error": ["b", "c", "e"]}),
        model("b", fallbacks={"error": ["d", "c"]}),
        model("c"),
        model("d"),
        model("e"),
    ]
    retries = {"max_attempts": 9}
    async with make_router(*providers, last, models=models, retries=retries) as router:
        response = await router.complete(ASK)
    assert response.fallbacks == ("b", "d", "c", "e")
    assert response.attempts == 5


async def test_each_failure_is_judged_by_its_own_cause() -> None:
    """A fallback for long prompts that fails otherwise goes where its own errors go."""
    a = ScriptedProvider("a", ContextLengthError)
    b = ScriptedProvider("b", then=ConnectError, max_retries=0)
    c = ScriptedProvider("c")
    models = [
        model("a", fallbacks={"context_length": ["b"]}),
        model("b", fallbacks={"error": ["c"]}),
        model("c"),
    ]
    async with make_router(a, b, c, models=models) as router:
        assert (await router.complete(ASK)).fallbacks == ("b", "c")


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_max_attempts_holds_over_all_models(most: int) -> None:
    """The first model's bound counts every call, whichever model it went to."""
    providers = [ScriptedProvider(name, then=ConnectError, max_retries=0) for name in "abcde"]
    async with chain(*providers, retries={"max_attempts": most}) as router:
        with pytest.raises(ConnectError) as caught:
            await router.complete(ASK)
    assert caught.value.attempts == sum(len(p.calls) for p in providers) == most
    assert caught.value.fallbacks == tuple("bcde"[: most - 1])


async def test_fallback_that_cannot_take_it_leaves_the_first_error() -> None:
    """The caller learns why a fallback was needed, not that it was closed."""
    a = ScriptedProvider("a", then=MisconfiguredError, max_retries=0)
    b = ScriptedProvider("b", OverloadedError("busy", retry_after=500), max_retries=0)
    async with chain(a, b) as router:
        with pytest.raises(OverloadedError):
            await router.complete({**CHAT, "model": "b"})
        with pytest.raises(MisconfiguredError) as caught:
            await router.complete(ASK)
    assert (caught.value.attempts, caught.value.fallbacks) == (1, ("b",))
    assert_settled(router, failed=2)


async def test_refusal_stays_the_answer_when_the_fallback_is_closed_too() -> None:
    """A request that nobody could be asked for is rejected with the first model's reasons."""
    a = ScriptedProvider("a", OverloadedError("busy", retry_after=500), max_retries=0)
    b = ScriptedProvider("b", OverloadedError("busy", retry_after=900), max_retries=0)
    async with chain(a, b) as router:
        with pytest.raises(OverloadedError):
            await router.complete(ASK)
        with pytest.raises(NoProviderAvailableError) as caught:
            await router.complete(ASK)
    assert caught.value.passed_over == {"a": "overloaded"}
    assert (caught.value.attempts, caught.value.fallbacks) == (0, ("b",))
    assert_settled(router, failed=1, rejected=1)


async def test_unsupported_operation_has_no_fallback() -> None:
    """What no provider of the model offers is the caller's mistake."""
    a, b = ScriptedProvider("a"), ScriptedProvider("b")
    a.operations = frozenset()  # type: ignore[misc]
    async with chain(a, b) as router:
        with pytest.raises(InvalidRequestError):
            await router.complete(ASK)
    assert b.calls == []


async def test_possibly_billed_request_goes_to_no_other_model() -> None:
    """Replay safety holds over models: a fallback is another bill, too."""
    failure = BrokenError("cut", replay=Replay.MAYBE_ACCEPTED)
    a, b = ScriptedProvider("a", failure), ScriptedProvider("b")
    async with chain(a, b, retries={"repeat_maybe_accepted": "never"}) as router:
        with pytest.raises(BrokenError):
            await router.complete(ASK)
    assert b.calls == []


async def test_stream_falls_back_before_its_first_event() -> None:
    """The caller of a stream sees which models were asked."""
    a = ScriptedProvider("a", then=ConnectError, max_retries=0)
    b = ScriptedProvider("b", Ok("instead"))
    async with chain(a, b) as router, router.stream(ASK) as stream:
        assert (stream.provider, stream.fallbacks, stream.attempts) == ("b", ("b",), 2)
        assert "".join([chunk.text async for chunk in stream]) == "instead"
    assert_settled(router, completed=1)


@pytest.mark.parametrize("failure", [ConnectError("cut"), ContentFilterError("stopped")])
async def test_stream_never_falls_back_after_its_first_event(failure: ProviderError) -> None:
    """What the caller has begun to read is not begun anew by another model."""
    a, b = ScriptedProvider("a", Events("one", failure)), ScriptedProvider("b")
    models = [model("a", fallbacks={c: ["b"] for _, c in CAUSES}), model("b")]
    async with make_router(a, b, models=models) as router:
        with pytest.raises(StreamTruncatedError):
            async with router.stream(ASK) as stream:
                async for _ in stream:
                    pass
    assert b.calls == []
    assert_settled(router, truncated=1)


def test_time_is_kept_back_for_a_fallback(virtual_time: Virtual) -> None:
    """A model that hangs leaves its fallback the time to answer."""

    async def main() -> None:
        a, b = ScriptedProvider("a", then=Hang()), ScriptedProvider("b", Ok(after=2))
        async with chain(a, b) as router:
            start = anyio.current_time()
            response = await router.complete(ASK, timeout=10)
            assert response.fallbacks == ("b",)
            assert anyio.current_time() - start < 10
        assert_settled(router, completed=1)

    virtual_time(main)


def test_fallback_spends_the_same_deadline(virtual_time: Virtual) -> None:
    """The second model gets no time of its own."""

    async def main() -> None:
        a = ScriptedProvider("a", Fail(ConnectError, after=4), max_retries=0)
        b = ScriptedProvider("b", then=Hang())
        async with chain(a, b) as router:
            start = anyio.current_time()
            with pytest.raises(GatewayError) as caught:
                await router.complete(ASK, timeout=9)
            assert caught.value.status == 504
            assert anyio.current_time() - start == pytest.approx(9, abs=0.1)

    virtual_time(main)
