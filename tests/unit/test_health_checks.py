"""Active checks: when they are made, what they do to health, and what they cannot break."""

import random
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from scripted import CHAT, ScriptedProvider, make_router, until

from engine import (
    ActorState,
    ConfigurationError,
    ConnectError,
    ProviderConfig,
    UnsupportedOperationError,
)
from engine.health_checks import JITTER, HealthChecks
from engine.resilience.health import ProviderHealth

OFTEN = {"interval": 0.01, "timeout": 0.02, "failures": 3}


class Checked(ScriptedProvider):
    """A provider whose health can be asked; it answers with what `answer` does."""

    def __init__(self, name: str = "a", **settings: Any) -> None:
        settings.setdefault("health_check", OFTEN)
        super().__init__(name, **settings)
        self.checks: list[float] = []
        self.paths: set[str] = set()
        self.answer: Callable[[], Any] = anyio.lowlevel.checkpoint
        self.checking = 0
        self.most = 0

    async def check_health(self, path: str) -> None:
        self.checks.append(anyio.current_time())
        self.paths.add(path)
        self.checking += 1
        self.most = max(self.most, self.checking)
        try:
            await self.answer()
        finally:
            self.checking -= 1


class Bug(BaseException):
    """What no adapter should raise."""


def failing(error: BaseException) -> Callable[[], Any]:
    """An answer that fails."""

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    return fail


def checks_of(provider: Checked) -> tuple[HealthChecks, ProviderHealth]:
    """The checks of one provider without its actor."""
    rng = random.Random(1)
    health = ProviderHealth(provider.config.ejection, rng, name=provider.name)
    return HealthChecks(provider, health, clock=anyio.current_time, rng=rng), health


# ── on every event loop ──────────────────────────────────────────────────────────


async def test_failed_checks_eject_and_a_good_one_brings_back() -> None:
    """A provider without any traffic is taken out and comes back by its checks alone."""
    bad, good = Checked("bad"), ScriptedProvider("good")
    bad.answer = failing(ConnectError("secret"))
    async with make_router(bad, good) as router:
        await until(lambda: router.status().actors[0].health.state == "ejected")
        health = router.status().actors[0].health
        assert health.reason == "3 failed checks in a row, the last: connect"
        for _ in range(20):
            assert (await router.complete(CHAT)).provider == "good"
        bad.answer = anyio.lowlevel.checkpoint
        await until(lambda: router.status().actors[0].health.state == "slow_start")


async def test_checks_are_no_attempts() -> None:
    """They take no place and are counted neither in the ledger nor as the provider's work."""
    provider = Checked(limits={"concurrency": 1})
    async with make_router(provider) as router:
        await until(lambda: len(provider.checks) >= 3)
        status = router.status()
    actor = status.actors[0]
    assert (actor.completed, actor.failed, actor.picked, actor.in_flight) == (0, {}, 0, 0)
    assert (status.ledger.accepted, status.ledger.attempts) == (0, 0)
    assert provider.calls == []
    assert provider.paths == {"models"}


@pytest.mark.parametrize(
    "error",
    [RuntimeError("x"), Bug("x"), SystemExit(1), UnsupportedOperationError("x"),
     BaseExceptionGroup("x", [Bug("x")])],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
async def test_whatever_a_check_raises_is_a_failed_check(error: BaseException) -> None:
    """A bug in an adapter's check ejects its provider; the actor goes on."""
    provider = Checked()
    provider.answer = failing(error)
    async with make_router(provider) as router:
        await until(lambda: router.status().actors[0].health.state == "ejected")
        actor = router.status().actors[0]
        assert (actor.state, actor.restarts) == (ActorState.SERVING, 0)
        assert "3 failed checks in a row" in str(actor.health.reason)
        provider.answer = anyio.lowlevel.checkpoint
        await until(lambda: router.status().actors[0].health.state != "ejected")


@pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
async def test_a_cancellation_that_the_adapter_made_up_is_a_failed_check() -> None:
    """It does not end the checks. (Nobody can make up trio's.)"""
    provider = Checked()
    provider.answer = failing(anyio.get_cancelled_exc_class()())
    async with make_router(provider) as router:
        await until(lambda: router.status().actors[0].health.state == "ejected")


async def test_check_that_hangs_has_failed() -> None:
    """It is cancelled after its time-out, and the next one begins after it."""
    provider = Checked()
    provider.answer = anyio.sleep_forever
    async with make_router(provider) as router:
        await until(lambda: router.status().actors[0].health.state == "ejected")
        assert str(router.status().actors[0].health.reason).endswith("timeout")
    assert (provider.most, provider.checking) == (1, 0)


async def test_check_that_swallows_its_cancellation_has_failed() -> None:
    """An adapter that says well when its time is over is not believed."""
    provider = Checked()

    async def late() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.04)

    provider.answer = late
    async with make_router(provider) as router:
        await until(lambda: router.status().actors[0].health.state == "ejected")


async def test_checks_end_with_the_router() -> None:
    """A check under way is cancelled, and none begins after the end."""
    provider = Checked()
    async with make_router(provider):
        await until(lambda: len(provider.checks) >= 1)
        provider.answer = anyio.sleep_forever
        await until(lambda: provider.checking == 1)
    assert provider.checking == 0
    count = len(provider.checks)
    await anyio.sleep(0.03)
    assert len(provider.checks) == count


async def test_none_begins_while_the_group_is_cancelled() -> None:
    """A check that is due in the very turn of the end is not made."""
    provider = Checked(health_check={"interval": 0.001})
    checks, _ = checks_of(provider)
    async with anyio.create_task_group() as group:
        checks.start(group)
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
    assert provider.checks == []


async def test_checks_go_on_after_a_crash() -> None:
    """An actor that is restarted checks again."""
    provider = Checked(max_retries=0)
    async with make_router(provider) as router:
        provider._script.append(Bug)
        with pytest.raises(Exception, match="crash"):
            await router.complete(CHAT)
        await until(lambda: router.status().actors[0].restarts == 1)
        count = len(provider.checks)
        await until(lambda: len(provider.checks) > count)


async def test_a_provider_that_cannot_be_checked_is_refused() -> None:
    """The mistake is told when the router is entered, with what to do."""
    provider = ScriptedProvider("a", health_check=OFTEN)
    with pytest.raises(ConfigurationError, match="'a' of type 'mock' cannot be checked: remove"):
        async with make_router(provider):
            pass
    with pytest.raises(UnsupportedOperationError, match="cannot be checked"):
        await provider.check_health("models")


async def test_nothing_runs_where_nothing_is_configured() -> None:
    """Without `health_check` there is not even a task."""
    provider = Checked(health_check=None)
    checks, _ = checks_of(provider)
    async with anyio.create_task_group() as group:
        checks.start(group)
    assert provider.checks == []


# ── in virtual time ──────────────────────────────────────────────────────────────


def test_checks_keep_their_interval(virtual_time: Callable[..., None]) -> None:
    """The first comes within one interval, the others one interval apart, give or take."""
    provider = Checked(health_check={"interval": 10, "timeout": 2})

    async def main() -> None:
        start = anyio.current_time()
        checks, _ = checks_of(provider)
        async with anyio.create_task_group() as group:
            checks.start(group)
            await anyio.sleep(10_000)
            group.cancel_scope.cancel()
        assert provider.checks[0] - start <= 10
        gaps = [b - a for a, b in zip(provider.checks, provider.checks[1:], strict=False)]
        assert 10 * (1 - JITTER) <= min(gaps) < 8.5
        assert 11.5 < max(gaps) <= 10 * (1 + JITTER)
        assert 950 < len(gaps) < 1050

    virtual_time(main)


def test_slow_checks_do_not_pile_up(virtual_time: Callable[..., None]) -> None:
    """With a time-out longer than the interval there is still one at a time."""
    provider = Checked(health_check={"interval": 1, "timeout": 5, "failures": 2})
    provider.answer = anyio.sleep_forever

    async def main() -> None:
        checks, health = checks_of(provider)
        async with anyio.create_task_group() as group:
            checks.start(group)
            await anyio.sleep(101)
            assert health.ejected
            group.cancel_scope.cancel()

    virtual_time(main)
    assert provider.most == 1
    assert 19 <= len(provider.checks) <= 21


def test_idle_outage_is_found_and_its_end_too(virtual_time: Callable[..., None]) -> None:
    """With the defaults: out within 45 seconds of the outage, back within 15 of its end."""
    provider = Checked(health_check={})

    async def main() -> None:
        checks, health = checks_of(provider)
        async with anyio.create_task_group() as group:
            checks.start(group)
            await anyio.sleep(60)
            assert health.unavailable(anyio.current_time(), 0) is None
            provider.answer = failing(ConnectError("x"))
            await anyio.sleep(45)
            assert health.ejected
            provider.answer = anyio.lowlevel.checkpoint
            await anyio.sleep(15)
            assert not health.ejected
            assert health.status(anyio.current_time()).state == "slow_start"
            group.cancel_scope.cancel()

    virtual_time(main)


def test_same_seed_same_checks(virtual_time: Callable[..., None]) -> None:
    """The jitter comes from the router's own chance."""

    async def main(found: list[float]) -> None:
        provider = Checked(health_check={"interval": 10})
        start = anyio.current_time()
        async with make_router(provider):
            await anyio.sleep(200)
        found.extend(at - start for at in provider.checks)

    first: list[float] = []
    second: list[float] = []
    virtual_time(main, first)
    virtual_time(main, second)
    assert first == pytest.approx(second)
    assert len(first) > 10


def test_good_check_does_not_bring_back_what_was_ejected_by_hand(
    virtual_time: Callable[..., None],
) -> None:
    """An operator's word counts more than a check."""
    provider = Checked(health_check={"interval": 1})

    async def main() -> None:
        checks, health = checks_of(provider)
        async with anyio.create_task_group() as group:
            checks.start(group)
            health.eject(anyio.current_time(), None)
            await anyio.sleep(30)
            assert health.unavailable(anyio.current_time(), 0) == "ejected_by_hand"
            group.cancel_scope.cancel()

    virtual_time(main)


def test_configuration_that_is_checked_is_the_providers_own() -> None:
    """The defaults are those of the documentation."""
    config = ProviderConfig.model_validate({"name": "a", "type": "mock", "health_check": {}})
    assert config.health_check is not None
    assert config.health_check.model_dump() == {
        "path": "models", "interval": 10.0, "timeout": 2.0, "failures": 3,
    }  # fmt: skip
