"""The table of error classes, row by row, from the provider's failure to what comes of it."""

from dataclasses import dataclass

import pytest
from scripted import CHAT, Events, ScriptedProvider, assert_settled, make_router

from engine import (
    ActorStatus,
    BrokenError,
    CallerError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    ExhaustedError,
    GatewayError,
    MisconfiguredError,
    OverloadedError,
    ProviderError,
    Replay,
    Router,
    SilentError,
    StreamTruncatedError,
    TransientError,
)


@dataclass(frozen=True)
class Row:
    """What the table says of one class."""

    error: ProviderError
    here: bool
    elsewhere: bool
    health: str
    replay: Replay


def row(error: ProviderError, here: bool, elsewhere: bool, health: str, replay: Replay) -> object:
    """A parameter that is called by its class."""
    name = f"{error.error_class}-{error.message}"
    return pytest.param(Row(error, here, elsewhere, health, replay), id=name)


NOT, MAYBE, ACCEPTED = Replay
TABLE = [
    row(ConnectError("refused"), True, True, "counts", NOT),
    row(OverloadedError("429", retry_after=0.01), True, True, "overloaded", NOT),
    row(OverloadedError("503"), True, True, "overloaded", NOT),
    row(ExhaustedError("quota"), False, True, "exhausted", NOT),
    row(TransientError("500"), True, True, "counts", NOT),
    row(TransientError("reset", replay=Replay.MAYBE_ACCEPTED), True, True, "counts", MAYBE),
    row(SilentError("late"), False, True, "counts", MAYBE),
    row(BrokenError("html"), False, True, "counts", MAYBE),
    row(MisconfiguredError("401"), False, True, "misconfigured", NOT),
    row(CallerError("400"), False, False, "never", NOT),
    row(ContextLengthError("long"), False, False, "never", NOT),
    row(ContentFilterError("refused"), False, False, "never", ACCEPTED),
]


def again(error: ProviderError) -> ProviderError:
    """The same failure as a fresh object: what is noted on one must not reach the next."""
    return type(error)(error.message, replay=error.replay, retry_after=error.retry_after)


def assert_health(status: ActorStatus, said: str) -> None:
    """The provider's health is what the table says after one failure."""
    assert sum(status.failed.values()) == 1
    if said == "counts":
        assert (status.health.state, status.health.consecutive_failures) == ("healthy", 1)
    elif said == "never":
        assert (status.health.state, status.health.consecutive_failures) == ("healthy", 0)
    else:
        assert (status.health.state, status.health.consecutive_failures) == (said, 0)


async def outcome(router: Router, streamed: bool) -> str:
    """Ask once; the class of the failure, or `ok`."""
    try:
        if streamed:
            async with router.stream(CHAT) as stream:
                async for _ in stream:
                    pass
        else:
            await router.complete(CHAT)
    except ProviderError as error:
        return error.error_class.value
    return "ok"


def replays(router: Router) -> list[str]:
    """The replay marks of all failed attempts in the latest record."""
    assert router._running is not None
    (record,) = router._running.history.latest(1)
    steps = record.as_dict(0, 0.0, 0.0)["steps"]
    return [failure["replay"] for step in steps for failure in step.get("failures", ())]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("said", TABLE)
async def test_another_provider(said: Row, streamed: bool) -> None:
    """With somebody else there, a failure goes there at once or nowhere, and marks its provider."""
    bad = ScriptedProvider("bad", again(said.error), weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    retries = {"repeat_maybe_accepted": "always"}
    async with make_router(bad, good, retries=retries) as router:
        ended = await outcome(router, streamed)
        assert_health(router.status().actors[0], said.health)
        assert replays(router) == [said.replay.value]
    assert ended == ("ok" if said.elsewhere else said.error.error_class)
    assert (len(bad.calls), len(good.calls)) == (1, int(said.elsewhere))
    assert_settled(router, **({"completed": 1} if said.elsewhere else {"failed": 1}))


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("said", TABLE)
async def test_same_provider_again(said: Row, streamed: bool) -> None:
    """Alone, a provider is asked again or not, as the table says."""
    provider = ScriptedProvider("a", again(said.error))
    retries = {"repeat_maybe_accepted": "always"}
    async with make_router(provider, retries=retries) as router:
        ended = await outcome(router, streamed)
    assert ended == ("ok" if said.here else said.error.error_class)
    assert len(provider.calls) == 1 + said.here


@pytest.mark.parametrize("alone", [False, True], ids=["elsewhere", "here"])
@pytest.mark.parametrize("said", TABLE)
async def test_replay_mark_forbids(said: Row, alone: bool) -> None:
    """Where nothing may be billed twice, only what was certainly not executed is tried again."""
    bad = ScriptedProvider("bad", again(said.error), weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    retries = {"repeat_maybe_accepted": "never"}
    providers = [bad] if alone else [bad, good]
    async with make_router(*providers, retries=retries) as router:
        ended = await outcome(router, False)
    allowed = said.replay is Replay.NOT_ACCEPTED and (said.here if alone else said.elsewhere)
    assert ended == ("ok" if allowed else said.error.error_class)


@pytest.mark.parametrize("failure", [ConnectError("cut"), OverloadedError("429"), KeyError("bug")])
async def test_after_commit_nothing_is_tried_again(failure: Exception) -> None:
    """Once something useful was given, a failure ends the request, and counts against health."""
    bad = ScriptedProvider("bad", Events("one", failure), weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    retries = {"repeat_maybe_accepted": "always"}
    async with make_router(bad, good, retries=retries) as router:
        with pytest.raises(StreamTruncatedError) as caught:
            async with router.stream(CHAT) as stream:
                assert (await anext(stream)).text == "one"
                await anext(stream)
        assert_health(router.status().actors[0], "counts")
    assert (caught.value.replay, caught.value.provider) == (Replay.ACCEPTED, "bad")
    assert good.calls == []
    assert_settled(router, truncated=1)


@pytest.mark.parametrize("alone", [False, True], ids=["elsewhere", "here"])
@pytest.mark.parametrize("failure", [ConnectError, OverloadedError, TransientError])
async def test_provider_may_forbid_another_try(failure: type[ProviderError], alone: bool) -> None:
    """`x-should-retry: false` holds here and elsewhere, whatever the class would allow."""
    bad = ScriptedProvider("bad", failure("no", should_retry=False), weight=1e6)
    providers = [bad] if alone else [bad, ScriptedProvider("good", weight=1e-3)]
    async with make_router(*providers) as router:
        with pytest.raises(failure) as caught:
            await router.complete(CHAT)
    assert caught.value.attempts == 1


@pytest.mark.parametrize("alone", [False, True], ids=["elsewhere", "here"])
async def test_provider_may_allow_what_was_open(alone: bool) -> None:
    """`x-should-retry: true` says of a request that may have been accepted that it was not."""
    failure = TransientError("reset", replay=Replay.MAYBE_ACCEPTED, should_retry=True)
    bad = ScriptedProvider("bad", failure, weight=1e6)
    providers = [bad] if alone else [bad, ScriptedProvider("good", weight=1e-3)]
    async with make_router(*providers, retries={"repeat_maybe_accepted": "never"}) as router:
        assert (await router.complete(CHAT)).attempts == 2


@pytest.mark.parametrize(
    "failure",
    [
        CallerError("400", should_retry=True),
        ContentFilterError("no", should_retry=True),
        SilentError("late", should_retry=True),
    ],
    ids=lambda error: error.error_class.value,
)
async def test_provider_cannot_allow_what_the_table_forbids(failure: ProviderError) -> None:
    """`x-should-retry: true` opens no row that is closed."""
    provider = ScriptedProvider("a", failure)
    async with make_router(provider) as router:
        with pytest.raises(type(failure)):
            await router.complete(CHAT)
    assert len(provider.calls) == 1


async def test_used_up_quota_closes_the_provider_and_is_never_waited_for() -> None:
    """The next request finds the provider closed, with the reason and an honest hint."""
    provider = ScriptedProvider("a", ExhaustedError("quota", retry_after=0.01))
    async with make_router(provider) as router:
        with pytest.raises(ExhaustedError):
            await router.complete(CHAT)
        assert router.status().actors[0].health.state == "exhausted"
        assert len(provider.calls) == 1
    provider = ScriptedProvider("a", ExhaustedError("quota"))
    async with make_router(provider) as router:
        with pytest.raises(ExhaustedError):
            await router.complete(CHAT)
        with pytest.raises(GatewayError) as caught:
            await router.complete(CHAT)
        assert caught.value.code == "exhausted"
        assert caught.value.retry_after == pytest.approx(60, abs=2)
    assert len(provider.calls) == 1
