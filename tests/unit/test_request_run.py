"""One request's way through its attempts: counts, records, one settlement."""

from collections.abc import Callable

import anyio
import pytest
from scripted import (
    CHAT,
    Fail,
    Hang,
    Ok,
    ScriptedProvider,
    Stubborn,
    assert_settled,
    make_router,
    until,
)

from engine import (
    BrokenError,
    ConnectError,
    GatewayError,
    OverloadedError,
    RouterClosedError,
    TransientError,
)


def test_upstream_seconds_are_summed_over_attempts(virtual_time: Callable[..., None]) -> None:
    """Failed attempts count, backoff and queue do not."""

    async def main() -> None:
        busy = OverloadedError("later", retry_after=20)
        provider = ScriptedProvider(
            "a", Fail(busy, after=2), Fail(ConnectError, after=1), Ok(after=3)
        )
        async with make_router(provider) as router:
            response = await router.complete(CHAT)
        assert response.attempts == 3
        assert response.upstream_seconds == pytest.approx(6)

    virtual_time(main)


def test_upstream_seconds_of_a_stream_end_at_its_first_event(
    virtual_time: Callable[..., None],
) -> None:
    """What comes after the commit is the stream's own time."""

    async def main() -> None:
        provider = ScriptedProvider("a", Ok(after=3))
        async with make_router(provider) as router, router.stream(CHAT) as stream:
            assert stream.upstream_seconds == pytest.approx(3)

    virtual_time(main)


async def test_error_tells_how_many_attempts_were_made() -> None:
    """A caller sees in the error what its request has cost."""
    a = ScriptedProvider("a", then=ConnectError, max_retries=0)
    b = ScriptedProvider("b", then=ConnectError, max_retries=0)
    async with make_router(a, b) as router:
        with pytest.raises(ConnectError) as caught:
            await router.complete(CHAT)
    assert caught.value.attempts == 2


async def test_second_target_at_one_provider_is_elsewhere() -> None:
    """Two models of one provider are two targets: a failure of one goes to the other."""
    provider = ScriptedProvider("a", BrokenError)
    targets = [{"provider": "a", "model": "x"}, {"provider": "a", "model": "y"}]
    async with make_router(provider, models=[{"name": "m", "targets": targets}]) as router:
        assert (await router.complete(CHAT)).attempts == 2
    assert {call.attempt.model for call in provider.calls} == {"x", "y"}


async def test_error_raised_by_the_adapter_reaches_the_caller_itself() -> None:
    """The last failure is the adapter's own object, with its provider filled in."""
    failure = TransientError("502", upstream_status=502, body={"message": "x"})
    provider = ScriptedProvider("a", failure, max_retries=0)
    async with make_router(provider) as router:
        with pytest.raises(TransientError) as caught:
            await router.complete(CHAT)
    assert caught.value is failure
    assert caught.value.provider == "a"


async def test_request_in_the_mailbox_of_a_closing_router_is_rejected() -> None:
    """What was never sent counts as rejected, what ran as failed."""
    provider = ScriptedProvider("a", then=Hang(), limits={"concurrency": 1})
    errors: list[GatewayError] = []

    async def ask() -> None:
        try:
            await router.complete(CHAT)
        except RouterClosedError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        async with make_router(provider) as router:
            group.start_soon(ask)
            await until(lambda: provider.running == 1)
            group.start_soon(ask)
            await until(lambda: router.status().actors[0].mailbox.depth == 1)
    assert sorted(error.attempts for error in errors) == [0, 1]
    assert_settled(router, failed=1, rejected=1)


def test_failure_instead_of_a_cancellation_makes_no_further_call(
    virtual_time: Callable[..., None],
) -> None:
    """An adapter that answers its cancellation with a failure is not called again for it."""

    async def main() -> None:
        for streamed in (False, True):
            provider = ScriptedProvider("a", Stubborn(0.02, Fail(ConnectError)))
            async with make_router(provider) as router:
                with anyio.move_on_after(1):
                    if streamed:
                        async with router.stream(CHAT):
                            pass
                    else:
                        await router.complete(CHAT)
                await anyio.sleep(10)
                assert router.status().actors[0].in_flight == 0
            assert len(provider.calls) == 1
            assert_settled(router, cancelled=1)

    virtual_time(main)
