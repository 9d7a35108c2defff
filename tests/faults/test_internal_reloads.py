"""Changes of the configuration under load, and configurations that are wrong."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fault_table import Row, shows
from scripted import CHAT, Events, Ok, ScriptedProvider, until
from stepping import Run, Steps, run_on_asyncio, run_on_trio

from engine import ConfigurationError, GatewayConfig, ProviderConfig, ProviderFactory, Router

LOOPS = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": True}), ("trio", {})],
    ids=["uvloop", "trio"],
)


class Made(ScriptedProvider):
    """Made by the factory; stamps its answers with its settings, and is told of its end."""

    made: list[Made] = []  # noqa: RUF012 - the test's own record

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(config.name)
        self.config = config
        mark = f"{config.name} {config.timeout:g}"
        self._then = self._next_step
        self._steps = [Ok(mark, after=0.004), Events(mark, 0.002, mark, 0.002, mark)]
        self.closed_in_use = False
        self.made.append(self)

    def _next_step(self) -> Any:
        return self._steps[self.calls[-1].streamed]

    async def start(self) -> None:
        await super().start()
        await anyio.lowlevel.checkpoint()
        if self.config.options.get("start") == "fail":
            raise ConfigurationError("there is no model file")

    async def aclose(self) -> None:
        self.closed_in_use |= self.running > 0
        await super().aclose()


@pytest.fixture
def made() -> Iterator[list[Made]]:
    """A provider type whose objects are all kept here."""
    Made.made.clear()
    ProviderFactory.register_type("made", Made)
    yield Made.made
    ProviderFactory.unregister_type("made")


def provider(name: str, **settings: Any) -> dict[str, Any]:
    """One provider of a configuration."""
    return {"name": name, "type": "made", **settings}


def gateway(*providers: dict[str, Any], **settings: Any) -> GatewayConfig:
    """A configuration over these."""
    return GatewayConfig.model_validate({"seed": 7, "providers": providers, **settings})


@LOOPS
@shows(Row(
    "N10", "a hundred reloads a second under load", "the answer", "not needed", "the answer",
    "a success", "A request is served by one configuration from its acceptance to its end; a "
    "provider that leaves is closed when nothing of it is in use any more.",
))  # fmt: skip
async def test_n10_reload_storm(made: list[Made], rng: random.Random) -> None:
    """N10: providers come, change and go a hundred times, and nothing is lost or closed in use."""
    over = False
    served: Counter[str] = Counter()

    def shape(number: int) -> GatewayConfig:
        leaving = rng.sample("abcd", 2)
        return gateway(
            provider("steady", weight=rng.uniform(0.1, 2)),
            *[provider(name, timeout=1 + number % 5) for name in leaving],
        )

    async def ask(*, streamed: bool) -> None:
        while not over:
            if not streamed:
                response = await router.complete(CHAT)
                served[response.provider] += 1
                continue
            async with router.stream(CHAT) as stream:
                texts = [chunk.text async for chunk in stream]
            # One provider object, with one set of settings, gave all of it.
            assert len(texts) == 3
            assert len(set(texts)) == 1
            served[stream.provider] += 1

    async with Router(shape(0)) as router:
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(functools.partial(ask, streamed=bool(number % 2)))
            for number in range(1, 101):
                await router.reload(shape(number))
                await anyio.sleep(0.002)
            over = True
        status = router.status()
        assert status.generation == 101
        outcomes = {str(k.value): n for k, n in status.ledger.outcomes.items() if n}
        assert outcomes == {"completed": served.total()}
        assert (status.ledger.in_flight, status.ledger.conservation_error) == (0, 0)
        assert len(served) == 5
        await until(lambda: [each.closed for each in made].count(0) == 3)
    assert {each.closed for each in made} == {1}
    assert not any(each.closed_in_use for each in made)


@pytest.mark.parametrize("loop", [run_on_asyncio, run_on_trio])
def test_n10_reload_cancelled_at_every_step(loop: Run, made: list[Made]) -> None:
    """N10: a reload whose caller leaves is done or undone, at whatever step that happens."""
    old = gateway(provider("a"), provider("b"))
    new = gateway(provider("b", timeout=7), provider("c"))

    async def play() -> None:
        async with Router(old) as router:
            with anyio.CancelScope() as scope:
                steps.arm(scope.cancel)
                await router.reload(new)
            steps.disarm()
            applied = router.config == new
            assert applied or router.config == old
            assert applied or scope.cancelled_caught
            await anyio.sleep(1)
            names = {actor.name for actor in router.status().actors}
            assert names == ({"b", "c"} if applied else {"a", "b"})
            assert [each.closed for each in made].count(0) == 2
            running: Any = router._running
            assert len(running.supervisor._lives) == 2
            assert (await router.complete(CHAT)).provider in names
        seen.add(applied)

    seen: set[bool] = set()
    steps = Steps()
    loop(play, steps)
    for at in range(steps.count):
        made.clear()
        steps = Steps(at)
        loop(play, steps)
        assert {each.closed for each in made} == {1}
    assert seen == {True, False}


WRONG: dict[str, dict[str, Any]] = {
    "an unknown field": {"providers": [provider("a", colour="red")]},
    "a wrong type": {"providers": [provider("a", timeout="soon")]},
    "a type that nobody knows": {"providers": [provider("a", type="no-such-type")]},
    "a name twice": {"providers": [provider("a"), provider("a")]},
    "no provider": {"providers": []},
    "all weights zero": {"providers": [provider("a", weight=0)]},
    "nobody enabled": {"providers": [provider("a", enabled=False)]},
    "a target that does not exist": {
        "providers": [provider("a")],
        "models": [{"name": "m", "targets": [{"provider": "b"}]}],
    },
    "fallbacks in a circle": {
        "providers": [provider("a")],
        "models": [
            {"name": "m", "targets": [{"provider": "a"}], "fallbacks": {"error": ["n"]}},
            {"name": "n", "targets": [{"provider": "a"}], "fallbacks": {"error": ["m"]}},
        ],
    },
    "a provider that cannot start": {"providers": [provider("c", options={"start": "fail"})]},
}


@pytest.mark.parametrize("wrong", WRONG)
@shows(Row(
    "N11", "a reload with a wrong configuration", "the answer", "not needed", "the answer",
    "a success", "Refused as a whole: the old one serves on, and the status says why.",
))  # fmt: skip
async def test_n11_bad_configuration(made: list[Made], wrong: str) -> None:
    """N11: what is wrong is refused before anything changes, also while requests run."""
    answered: list[str] = []

    async def ask() -> None:
        answered.append((await router.complete(CHAT)).provider)

    async with Router(gateway(provider("a"), provider("b"))) as router:
        before = router.status()
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
            await until(lambda: sum(each.running for each in made) == 5)
            with pytest.raises(ConfigurationError):
                await router.reload(WRONG[wrong])
        status = router.status()
        assert status.generation == before.generation
        assert [actor.name for actor in status.actors] == ["a", "b"]
        assert [each.closed for each in made[:2]] == [0, 0]
        assert all(each.closed == 1 for each in made[2:])
        assert (await router.complete(CHAT)).provider in {"a", "b"}
    assert len(answered) == 5
