"""The life of a router: entering, draining, closing, and what it tells about itself."""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from scripted import (
    CHAT,
    Hang,
    Ok,
    ScriptedProvider,
    assert_settled,
    make_router,
    until,
)

from engine import (
    ActorState,
    ConfigurationError,
    GatewayConfig,
    Outcome,
    OverloadedError,
    Router,
    RouterClosedError,
)


async def test_a_router_can_be_entered_once() -> None:
    """Entering a second time is a clear error."""
    router = make_router(ScriptedProvider())
    async with router:
        with pytest.raises(RuntimeError, match="once"):
            await router.__aenter__()
        assert (await router.complete(CHAT)).text == "hello"
    with pytest.raises(RuntimeError, match="once"):
        await router.__aenter__()


async def test_use_before_entering_is_refused() -> None:
    """A router that was not entered says so."""
    router = make_router(ScriptedProvider())
    with pytest.raises(RouterClosedError, match="enter"):
        await router.complete(CHAT)
    assert not router.ready
    assert router.status().ledger.accepted == 0
    assert (router.status().generation, router.status().actors) == (0, ())


async def test_use_after_closing_is_refused() -> None:
    """A closed router takes nothing more, streamed or not."""
    provider = ScriptedProvider()
    async with make_router(provider) as router:
        assert router.ready
    assert not router.ready
    with pytest.raises(RouterClosedError):
        await router.complete(CHAT)
    with pytest.raises(RouterClosedError):
        async with router.stream(CHAT):
            pass
    assert provider.calls == []
    assert [actor.state for actor in router.status().actors] == [ActorState.STOPPED]


async def test_closing_answers_requests_under_way() -> None:
    """Running and queued requests end with `RouterClosedError` and are tried nowhere else."""
    providers = [
        ScriptedProvider(name, then=Hang(), limits={"concurrency": 1, "queue": 5}) for name in "ab"
    ]
    errors: list[BaseException] = []

    async def ask(router: Router) -> None:
        try:
            await router.complete(CHAT)
        except RouterClosedError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        async with make_router(*providers) as router:
            for _ in range(6):
                group.start_soon(ask, router)
            await until(lambda: sum(provider.running for provider in providers) == 2)
        assert router.status().ledger.in_flight == 0
    assert len(errors) == 6
    assert [provider.outcomes for provider in providers] == [["cancelled"], ["cancelled"]]
    assert router.status().ledger.conservation_error == 0


async def test_closing_leaves_an_applications_own_providers_open() -> None:
    """Providers from the registry are neither started nor closed by the router."""
    provider = ScriptedProvider()
    async with make_router(provider):
        pass
    assert (provider.started, provider.closed) == (0, 0)


async def test_drain_waits_for_those_in_flight_and_takes_no_more() -> None:
    """While draining, new requests are refused and old ones end."""
    provider = ScriptedProvider("a", Ok(after=0.05))
    async with make_router(provider) as router, anyio.create_task_group() as group:
        group.start_soon(router.complete, CHAT)
        await until(lambda: provider.running == 1)
        drained: list[bool] = []

        async def drain() -> None:
            drained.append(await router.drain(5))

        group.start_soon(drain)
        await until(lambda: not router.ready)
        with pytest.raises(RouterClosedError, match="closing"):
            await router.complete(CHAT)
        await until(lambda: drained == [True])
    assert_settled(router, completed=1)


def test_two_who_drain_are_both_told(virtual_time: Callable[..., None]) -> None:
    """Draining twice at the same time returns to both when the last request has ended."""

    async def main() -> None:
        ended: list[float] = []

        async def drain(router: Router) -> None:
            assert await router.drain(1_000)
            ended.append(anyio.current_time() - start)

        async with make_router(ScriptedProvider("a", Ok(after=2))) as router:
            start = anyio.current_time()
            async with anyio.create_task_group() as group:
                group.start_soon(router.complete, CHAT)
                await anyio.sleep(1)
                group.start_soon(drain, router)
                group.start_soon(drain, router)
        assert ended == pytest.approx([2, 2], abs=0.1)

    virtual_time(main)


def test_drain_gives_up_after_its_time(virtual_time: Callable[..., None]) -> None:
    """Draining returns False when something is still in flight."""

    async def main() -> None:
        async with make_router(ScriptedProvider("a", Hang())) as router:
            async with anyio.create_task_group() as group:
                group.start_soon(router.complete, CHAT)
                await anyio.sleep(1)
                start = anyio.current_time()
                assert not await router.drain(7)
                assert anyio.current_time() - start == pytest.approx(7)
                group.cancel_scope.cancel()

    virtual_time(main)


def test_status_shows_the_state_of_each_actor(virtual_time: Callable[..., None]) -> None:
    """`status` gives depth, age, in flight, shares, failures and pauses of each actor."""

    async def main() -> None:
        busy = ScriptedProvider("busy", then=Hang(), limits={"concurrency": 1, "queue": 9})
        shut = ScriptedProvider("shut", OverloadedError("later", retry_after=40), weight=2)
        models = [
            {"name": "m", "targets": [{"provider": "busy"}]},
            {"name": "n", "targets": [{"provider": "shut"}]},
        ]
        async with make_router(busy, shut, models=models) as router:
            async with anyio.create_task_group() as group:
                group.start_soon(router.complete, CHAT)
                await anyio.sleep(1)
                group.start_soon(router.complete, CHAT)
                await anyio.sleep(4)
                with anyio.move_on_after(1):
                    await router.complete({**CHAT, "model": "n"})
                status = router.status()
                group.cancel_scope.cancel()
        first, second = status.actors
        assert status.ready
        assert (first.name, first.type, first.state) == ("busy", "mock", ActorState.SERVING)
        assert (first.mailbox.depth, first.mailbox.capacity) == (1, 9)
        assert first.mailbox.oldest_age == pytest.approx(5)
        assert (first.in_flight, first.workers, first.picked, first.completed) == (1, 1, 2, 0)
        assert first.share == pytest.approx(2 / 3)
        assert (first.reason, first.ejected_until) == (None, None)
        assert (second.weight, second.reason) == (2, "it asked for a pause")
        assert second.ejected_until == pytest.approx(39, abs=0.1)
        assert second.failed == {"overloaded": 1}
        assert status.ledger.accepted == 3
        assert status.ledger.in_flight == 2
        assert status.ledger.outcomes[Outcome.CANCELLED] == 1
        as_dict = status.as_dict()
        assert as_dict["ledger"]["conservation_error"] == 0
        assert as_dict["ledger"]["outcomes"]["cancelled"] == 1
        assert as_dict["actors"][1]["failed"] == {"overloaded": 1}

    virtual_time(main)


async def test_configured_models_are_listed_with_their_providers() -> None:
    """With `models`, those are listed and nobody is asked."""
    provider = ScriptedProvider()
    models = [{"name": "chat", "targets": [{"provider": "a"}, {"provider": "a", "model": "x"}]}]
    async with make_router(provider, models=models) as router:
        entries = await router.list_models()
    assert [(entry.name, entry.providers) for entry in entries] == [("chat", ("a",))]
    assert provider.asked_for_models == 0


def test_from_config_says_what_is_wrong() -> None:
    """A wrong mapping raises one `ConfigurationError` that names the place."""
    with pytest.raises(ConfigurationError, match=r"providers\.0\.weight"):
        Router.from_config({"providers": [{"name": "a", "type": "mock", "weight": -1}]})


async def test_cancelled_while_entering_leaves_nothing_behind() -> None:
    """A router that is entered under a cancelled scope ends cleanly."""
    provider = ScriptedProvider()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with make_router(provider) as router:
            await router.complete(CHAT)
    assert scope.cancelled_caught
    await anyio.lowlevel.checkpoint()


async def test_failing_body_closes_the_router() -> None:
    """An exception in the body goes through unchanged, and the router is closed."""
    with pytest.raises(ZeroDivisionError):
        async with make_router(ScriptedProvider()) as router:
            raise ZeroDivisionError
    assert not router.ready


class StartingProvider(ScriptedProvider):
    """Made by the factory; its start and close are scripted by its options."""

    made: list["StartingProvider"] = []  # noqa: RUF012 - the test's own record

    def __init__(self, config: Any) -> None:
        super().__init__(**config.model_dump(exclude={"type"}))
        self.made.append(self)

    async def start(self) -> None:
        await super().start()
        if self.name == "cannot-start":
            raise ConfigurationError("there is no model file")

    async def aclose(self) -> None:
        await super().aclose()
        if self.name == "cannot-close":
            raise OSError("disk")


@pytest.fixture
def starting() -> Any:
    """A provider type that notes its starts and closes."""
    from engine import ProviderFactory  # noqa: PLC0415 - only here

    StartingProvider.made.clear()
    ProviderFactory.register_type("starting", StartingProvider)
    yield StartingProvider.made
    ProviderFactory.unregister_type("starting")


def _starting(*names: str) -> GatewayConfig:
    providers = [{"name": name, "type": "starting"} for name in names]
    return GatewayConfig.model_validate({"providers": providers})


async def test_router_starts_and_closes_the_providers_it_made(starting: Any) -> None:
    """Providers made by the factory are started before, and closed after, all requests."""
    async with Router(_starting("x", "y")) as router:
        assert [provider.started for provider in starting] == [1, 1]
        await router.complete(CHAT)
        assert [provider.closed for provider in starting] == [0, 0]
    assert [provider.closed for provider in starting] == [1, 1]


async def test_provider_that_cannot_start_stops_the_router(starting: Any) -> None:
    """The provider's own error is raised, not a group, and all others are closed."""
    with pytest.raises(ConfigurationError, match="no model file"):
        async with Router(_starting("x", "cannot-start")):
            pass
    assert [provider.closed for provider in starting] == [1, 1]


async def test_provider_that_cannot_close_does_not_keep_the_rest_open(
    starting: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing close is logged, and the others are closed."""
    with caplog.at_level(logging.WARNING, "engine.router"):
        async with Router(_starting("cannot-close", "y")):
            pass
    assert [provider.closed for provider in starting] == [1, 1]
    assert "cannot-close failed to close: OSError" in caplog.text


async def test_request_ids_are_unique() -> None:
    """Ids differ within a router and between routers."""
    ids: Counter[str] = Counter()
    for _ in range(2):
        async with make_router(ScriptedProvider()) as router:
            for _ in range(50):
                ids[(await router.complete(CHAT)).request_id] += 1
    assert set(ids.values()) == {1}
