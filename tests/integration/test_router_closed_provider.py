"""Requests that wait at a provider when it is closed: somebody else serves them at once."""

from collections.abc import Callable

import anyio
import pytest
from scripted import (
    CHAT,
    Fail,
    Hang,
    Ok,
    Scripted,
    ScriptedProvider,
    assert_settled,
    make_router,
)

from engine import (
    ConnectError,
    ExhaustedError,
    GatewayError,
    MisconfiguredError,
    OverloadedError,
    ProviderClosedError,
    Response,
    Router,
    TransientError,
)

Virtual = Callable[..., None]

FAILURES: list[Scripted] = [Fail(TransientError, after=1.0)] * 5
"""So many as an ejection takes."""

WELL = Ok(after=0.1)


class Callers:
    """Requests side by side, and what became of each, in the order of their ends."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.answers: list[tuple[float, Response]] = []
        self.errors: list[tuple[float, GatewayError]] = []

    async def ask(self, timeout: float) -> None:
        """One request."""
        try:
            response = await self.router.complete(CHAT, timeout=timeout)
            self.answers.append((anyio.current_time(), response))
        except GatewayError as error:
            self.errors.append((anyio.current_time(), error))

    async def ask_many(self, times: int, timeout: float = 100.0) -> None:
        """So many, until all have ended."""
        async with anyio.create_task_group() as group:
            for _ in range(times):
                group.start_soon(self.ask, timeout)


def crowded(*script: Scripted, then: Scripted = WELL) -> ScriptedProvider:
    """A provider that is asked first, with one slot and a long queue."""
    limits = {"concurrency": 1, "queue": 100}
    return ScriptedProvider("crowded", *script, then=then, limits=limits, timeout=10, max_retries=0)


SPARE = [
    {"name": "m", "targets": [{"provider": "crowded"}, {"provider": "spare", "tier": 1}],
     "retries": {"repeat_maybe_accepted": "always"}}
]  # fmt: skip


def test_queue_of_an_ejected_provider_goes_elsewhere_at_once(virtual_time: Virtual) -> None:
    """Twenty wait when it is ejected; all are served there and then, by one attempt each."""

    async def main() -> None:
        failing, spare = crowded(*FAILURES), ScriptedProvider("spare", then=WELL)
        async with make_router(failing, spare, models=SPARE) as router:
            callers, start = Callers(router), anyio.current_time()
            await callers.ask_many(25)
            (actor, _) = router.status().actors
            assert actor.health.state == "ejected"
            assert (actor.mailbox.offered, actor.mailbox.taken) == (24, 4)
            assert actor.mailbox.withdrawn == 20
        assert len(failing.calls) == 5
        assert [response.provider for _, response in callers.answers] == ["spare"] * 25
        assert sorted(response.attempts for _, response in callers.answers) == [1] * 20 + [2] * 5
        assert max(at for at, _ in callers.answers) - start < 5.5
        assert_settled(router, completed=25)

    virtual_time(main)


@pytest.mark.parametrize(
    "error",
    [
        MisconfiguredError("bad key"),
        ExhaustedError("quota"),
        OverloadedError("busy", retry_after=30),
    ],
)
def test_queue_of_a_provider_that_refuses_goes_elsewhere(
    error: GatewayError, virtual_time: Virtual
) -> None:
    """One refusal is enough: those behind it never meet the provider."""

    async def main() -> None:
        refusing = crowded(then=Fail(error, after=1.0))
        spare = ScriptedProvider("spare", then=WELL)
        async with make_router(refusing, spare, models=SPARE) as router:
            callers = Callers(router)
            await callers.ask_many(20)
        assert len(refusing.calls) == 1
        assert [response.provider for _, response in callers.answers] == ["spare"] * 20
        assert_settled(router, completed=20)

    virtual_time(main)


def test_ejection_by_hand_empties_the_queue_at_once(virtual_time: Virtual) -> None:
    """It does not wait for the end of an attempt that might never come."""

    async def main() -> None:
        hung, spare = crowded(then=Hang()), ScriptedProvider("spare")
        async with make_router(hung, spare, models=SPARE) as router:
            callers, start = Callers(router), anyio.current_time()
            async with anyio.create_task_group() as group:
                group.start_soon(callers.ask_many, 20)
                await anyio.sleep(1)
                router.eject("crowded")
                await anyio.sleep(0.5)
                assert [response.provider for _, response in callers.answers] == ["spare"] * 19
                assert max(at for at, _ in callers.answers) - start < 1.5
        assert len(hung.calls) == 1
        assert_settled(router, completed=20)

    virtual_time(main)


def test_queue_of_the_only_provider_hears_when_to_come_back(virtual_time: Virtual) -> None:
    """A clear refusal with `Retry-After`, when it is ejected, and no attempt."""

    async def main() -> None:
        failing = crowded(*FAILURES)
        async with make_router(failing) as router:
            callers, start = Callers(router), anyio.current_time()
            await callers.ask_many(25)
        assert len(failing.calls) == 5
        refused = [(at, e) for at, e in callers.errors if isinstance(e, ProviderClosedError)]
        assert len(refused) == 20
        for at, error in refused:
            assert (error.status, error.code, error.attempts) == (503, "provider_closed", 0)
            assert 4.9 <= (error.retry_after or 0) <= 6.1
            assert at - start < 5.1
        assert_settled(router, failed=25)

    virtual_time(main)


def test_queue_of_the_only_provider_waits_out_its_pause(virtual_time: Virtual) -> None:
    """Nothing is sent during the pause; after it all are served, for the deadline allows it."""

    async def main() -> None:
        busy = crowded(Fail(OverloadedError("busy", retry_after=3)))
        async with make_router(busy) as router:
            callers = Callers(router)
            await callers.ask_many(5)
        first, second, *_ = (call.at for call in busy.calls)
        assert second - first >= 3
        assert len(callers.answers) >= 4
        assert len(busy.calls) <= 6

    virtual_time(main)


def test_queue_stays_while_its_provider_is_merely_unproven(virtual_time: Virtual) -> None:
    """A failure or two close nothing."""

    async def main() -> None:
        shaky = crowded(ConnectError, ConnectError, then=WELL)
        spare = ScriptedProvider("spare")
        async with make_router(shaky, spare, models=SPARE) as router:
            callers = Callers(router)
            await callers.ask_many(10)
        assert len(shaky.calls) == 10
        assert sum(response.provider == "crowded" for _, response in callers.answers) == 8
        assert_settled(router, completed=10)

    virtual_time(main)
