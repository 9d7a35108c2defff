"""Reloads: one atomic change, nothing lost, nothing closed while it is in use."""

import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from scripted import CHAT, Events, Fail, Hang, Ok, ScriptedProvider, assert_settled, make_router
from scripted import until as soon

from engine import (
    ConfigurationError,
    GatewayConfig,
    ProviderConfig,
    ProviderError,
    ProviderFactory,
    ProviderRegistry,
    Router,
    RouterClosedError,
    StreamTruncatedError,
    TransientError,
)
from engine.actor import ProviderActor


class Watched(ScriptedProvider):
    """Made by the factory; plays what its options say, and notices if it is closed in use."""

    made: list["Watched"] = []  # noqa: RUF012 - the test's own record
    steps: dict[str, Any] = {}  # noqa: RUF012 - what a name of a step stands for

    def __init__(self, config: ProviderConfig) -> None:
        step = config.options.get("then")
        super().__init__(config.name, then=self.steps[step] if step else Ok())
        self.config = config
        self.closed_in_use = False
        self.made.append(self)

    async def start(self) -> None:
        await super().start()
        match self.config.options.get("start"):
            case "fail":
                raise ConfigurationError("there is no model file")
            case "bug":
                raise ZeroDivisionError("sk-secret")
            case "hang":
                await anyio.sleep_forever()
            case _:
                await anyio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.closed_in_use |= self.running > 0
        await super().aclose()


@pytest.fixture
def watched() -> Iterator[list[Watched]]:
    """A provider type whose objects are all kept here, in the order of their making."""
    Watched.made.clear()
    Watched.steps = {"hang": Hang(), "slow": Ok(after=0.02), "slower": Ok(after=0.2)}
    ProviderFactory.register_type("watched", Watched)
    yield Watched.made
    ProviderFactory.unregister_type("watched")


def provider(name: str, *, then: str | None = None, start: str | None = None, **rest: Any) -> Any:
    """One provider of a configuration."""
    options = {key: value for key, value in [("then", then), ("start", start)] if value}
    return {"name": name, "type": "watched", "options": options, **rest}


def gateway(*providers: Any, **settings: Any) -> GatewayConfig:
    """A configuration over these providers."""
    return GatewayConfig.model_validate({"seed": 7, "providers": providers, **settings})


def actor(router: Router, name: str) -> ProviderActor:
    """The actor that a provider has now."""
    assert router._running is not None
    return router._running.reloader.current.living[name]


def closed(made: list[Watched]) -> list[int]:
    """How often each provider was closed."""
    return [each.closed for each in made]


# ── what stays and what goes ─────────────────────────────────────────────────────


async def test_unchanged_providers_keep_their_actor(watched: list[Watched]) -> None:
    """Only the changed provider is made anew; the other goes on with all its counts."""
    async with Router(gateway(provider("a"), provider("b"))) as router:
        for _ in range(20):
            await router.complete(CHAT)
        a, b = router.status().actors
        kept, gone = actor(router, "a"), actor(router, "b")
        change = await router.reload(gateway(provider("a"), provider("b", timeout=9)))
        assert actor(router, "a") is kept
        assert actor(router, "b") is not gone
        assert change.replaced == ("b",)
        now_a, now_b = router.status().actors
        assert (now_a.picked, now_a.completed) == (a.picked, a.completed)
        assert b.picked > 0
        assert now_b.picked == 0
        await soon(lambda: closed(watched) == [0, 1, 0])
        assert [each.started for each in watched] == [1, 1, 1]
        assert router.config.providers[1].timeout == 9
        assert (router.status().generation, router.status().reloads) == (2, 1)
    assert closed(watched) == [1, 1, 1]
    assert_settled(router, completed=20)


async def test_actor_is_kept_where_it_serves_other_models(watched: list[Watched]) -> None:
    """What models a provider serves is no reason to begin anew."""
    before = [{"name": "m", "targets": [{"provider": "a"}]}]
    after = [{"name": name, "targets": [{"provider": "a", "model": "x"}]} for name in "no"]
    async with Router(gateway(provider("a"), models=before)) as router:
        kept = actor(router, "a")
        await router.complete(CHAT)
        await router.reload(gateway(provider("a"), models=after))
        assert actor(router, "a") is kept
        assert router.models == ("n", "o")
        await router.complete({**CHAT, "model": "o"})
        assert [call.attempt.model for call in watched[0].calls] == ["m", "x"]


async def test_same_configuration_changes_nothing(watched: list[Watched]) -> None:
    """A reload without a difference is applied, and is no new generation."""
    async with Router(gateway(provider("a"))) as router:
        assert not await router.reload(gateway(provider("a")))
        assert (router.status().generation, router.status().reloads) == (1, 1)
    assert len(watched) == 1


async def test_change_tells_what_needs_a_restart(watched: list[Watched]) -> None:
    """The port stays as it is, and whoever reloads is told."""
    async with Router(gateway(provider("a"))) as router:
        change = await router.reload(gateway(provider("a"), server={"port": 9_999}))
        assert [entry.field for entry in change.needs_restart] == ["server.port"]


async def test_untouched_model_keeps_its_place_in_the_round(watched: list[Watched]) -> None:
    """Smooth weighted picks go on exactly, however often something else is changed."""
    targets = [{"provider": "a", "weight": 2}, {"provider": "b", "weight": 1}]
    settings: dict[str, Any] = {
        "models": [{"name": "m", "targets": targets}],
        "balancer": "smooth_weighted",
    }
    async with Router(gateway(provider("a"), provider("b"), **settings)) as router:
        served = []
        for number in range(12):
            served.append((await router.complete(CHAT)).provider)
            extra = provider("c", timeout=number + 1)
            await router.reload(gateway(provider("a"), provider("b"), extra, **settings))
        assert Counter(served) == {"a": 8, "b": 4}


# ── one generation per request ───────────────────────────────────────────────────


async def test_waiting_request_ends_where_it_waits(watched: list[Watched]) -> None:
    """What stands in a replaced actor's mailbox is served there, and only then is it closed."""
    limits = {"concurrency": 1, "queue": 5}
    old = gateway(provider("a", then="slow", limits=limits))
    async with Router(old) as router, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(router.complete, CHAT)
        await soon(lambda: watched[0].running == 1 and len(actor(router, "a").mailbox) == 2)
        await router.reload(gateway(provider("a", limits=limits)))
        await router.complete(CHAT)
        assert closed(watched) == [0, 0]
        await soon(lambda: closed(watched) == [1, 0])
    assert watched[0].outcomes == ["ok"] * 3
    assert watched[1].outcomes == ["ok"]
    assert not watched[0].closed_in_use
    assert_settled(router, completed=4)


async def test_next_attempt_is_made_in_the_same_generation(watched: list[Watched]) -> None:
    """A request that fails over after a reload goes to the old provider, not to a new one."""
    Watched.steps["fail"] = Fail(TransientError("later"), after=0.05)

    def tiers(**changed: Any) -> GatewayConfig:
        targets = [{"provider": "a"}, {"provider": "b", "tier": 1}]
        return gateway(
            provider("a", then="fail", **changed),
            provider("b", **changed),
            models=[{"name": "m", "targets": targets}],
        )

    async with Router(tiers()) as router, anyio.create_task_group() as group:
        group.start_soon(router.complete, CHAT)
        await soon(lambda: watched[0].running == 1)
        await router.reload(tiers(timeout=9))
        await soon(lambda: closed(watched) == [1, 1, 0, 0])
    assert [each.outcomes for each in watched] == [["failed"], ["ok"], [], []]
    assert_settled(router, completed=1)


async def test_stream_is_not_cut_by_a_reload(watched: list[Watched]) -> None:
    """A stream that runs when its provider is removed comes to its end."""
    Watched.steps["long"] = Events("one", 0.05, "two", 0.05, "three")
    both = gateway(provider("a", then="long"), provider("b", weight=0))
    async with Router(both) as router:
        async with router.stream(CHAT) as stream:
            first = await anext(stream)
            await router.reload(gateway(provider("b")))
            texts = [first.text, *[chunk.text async for chunk in stream]]
        assert "".join(filter(None, texts)) == "onetwothree"
        await soon(lambda: closed(watched)[0] == 1)
    assert not watched[0].closed_in_use
    assert_settled(router, completed=1)


# ── refused ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("start", "said"), [("fail", "no model file"), ("bug", "failed to start: ZeroDivisionError")]
)
async def test_provider_that_cannot_start_leaves_all_as_it_was(
    watched: list[Watched], start: str, said: str
) -> None:
    """The old generation serves on, what was made is closed, and the reason is visible."""
    async with Router(gateway(provider("a"))) as router:
        kept, before = actor(router, "a"), router.config
        new = gateway(provider("a", timeout=9), provider("b"), provider("c", start=start))
        with pytest.raises(ConfigurationError, match=said) as caught:
            await router.reload(new)
        assert "sk-secret" not in str(caught.value)
        assert closed(watched) == [0, 1, 1, 1]
        assert actor(router, "a") is kept
        assert router.config is before
        status = router.status()
        assert (status.generation, status.reloads, len(status.actors)) == (1, 0, 1)
        assert status.reload_error is not None
        assert said in status.reload_error
        assert status.reload_error.startswith("0 s ago: ")
        await router.complete(CHAT)
        await router.reload(gateway(provider("a", timeout=9)))
        assert router.status().reload_error is None
    assert closed(watched) == [1] * 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"providers": []},
        {"providers": [provider("a"), provider("a")]},
        {"providers": [provider("a", weight=0)]},
        {"providers": [provider("a", colour="red")]},
        {"providers": [{"name": "a", "type": "nobody-knows"}]},
    ],
)
async def test_wrong_configuration_is_refused_whole(
    watched: list[Watched], wrong: dict[str, Any]
) -> None:
    """Whatever is wrong, it is one `ConfigurationError`, and the old one serves."""
    async with Router(gateway(provider("a"))) as router:
        with pytest.raises(ConfigurationError):
            await router.reload(wrong)
        assert router.status().reload_error
        await router.complete(CHAT)
    assert closed(watched) == [1]


def test_what_this_event_loop_cannot_do_is_refused(
    watched: list[Watched], virtual_time: Callable[..., None]
) -> None:
    """A provider that started but gets no actor is closed again (a rate limit on trio)."""

    async def main() -> None:
        async with Router(gateway(provider("a"))) as router:
            limited = provider("b", limits={"requests_per_minute": 5})
            with pytest.raises(ConfigurationError, match="asyncio only"):
                await router.reload(gateway(provider("a"), provider("c"), limited))
            assert [(each.name, each.closed) for each in watched[1:]] == [("c", 1), ("b", 1)]
            assert len(router.status().actors) == 1

    virtual_time(main)


async def test_cancelled_reload_leaves_nothing_behind(watched: list[Watched]) -> None:
    """Whoever gives up while a provider starts leaves the old generation as it was."""
    async with Router(gateway(provider("a"))) as router:
        with anyio.move_on_after(0.02):
            await router.reload(gateway(provider("a"), provider("b", start="hang")))
        assert closed(watched) == [0, 1]
        assert router.status().generation == 1
        await router.reload(gateway(provider("a"), provider("b")))
        assert router.status().generation == 2


async def test_reload_before_entering_is_refused(watched: list[Watched]) -> None:
    """A router that was not entered has nothing to reload."""
    with pytest.raises(RouterClosedError, match="enter"):
        await Router(gateway(provider("a"))).reload(gateway(provider("b")))


async def test_reload_while_closing_is_refused(watched: list[Watched]) -> None:
    """From the beginning of the drain on, and after the end."""
    async with Router(gateway(provider("a"))) as router:
        await router.drain(1)
        with pytest.raises(RouterClosedError):
            await router.reload(gateway(provider("b")))
    with pytest.raises(RouterClosedError):
        await router.set_enabled("a", True)
    assert closed(watched) == [1]


async def test_closing_ends_a_reload_under_way(watched: list[Watched]) -> None:
    """A reload that waits for a start is told at once, and its providers are closed."""
    told: list[str] = []

    async def reload(router: Router) -> None:
        try:
            await router.reload(gateway(provider("a"), provider("b", start="hang")))
        except RouterClosedError as error:
            told.append(str(error))

    async with anyio.create_task_group() as group:
        async with Router(gateway(provider("a"))) as router:
            group.start_soon(reload, router)
            await soon(lambda: len(watched) == 2 and watched[1].started == 1)
    assert len(told) == 1
    assert closed(watched) == [1, 1]


# ── under load ───────────────────────────────────────────────────────────────────


async def test_reload_storm_under_load_loses_nothing(
    watched: list[Watched], rng: random.Random
) -> None:
    """60 reloads in a row, requests and streams all the time, some of them cancelled."""
    done = False
    served: Counter[str] = Counter()

    def shape(number: int) -> GatewayConfig:
        names = rng.sample("abcd", 2)
        changed = [
            provider(name, then="slow" if name in "ab" else None, timeout=1 + number % 3)
            for name in names
        ]
        return gateway(provider("steady", weight=rng.uniform(0, 2)), *changed)

    async def ask(router: Router, chance: random.Random) -> None:
        while not done:
            with anyio.move_on_after(chance.choice([0.002, 0.01, 5, 5])) as patience:
                if chance.random() < 0.5:
                    async with router.stream(CHAT) as stream:
                        async for _ in stream:
                            pass
                else:
                    await router.complete(CHAT)
            served["left" if patience.cancelled_caught else "served"] += 1

    async with Router(shape(0)) as router:
        steady = actor(router, "steady")
        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(ask, router, random.Random(number))
            for number in range(60):
                await router.reload(shape(number))
                await anyio.sleep(0.005)
            done = True
        assert actor(router, "steady") is steady
        assert router.status().ledger.in_flight == 0
        assert router.status().ledger.conservation_error == 0
        outcomes = {str(k): v for k, v in router.status().ledger.outcomes.items() if v}
        assert set(outcomes) <= {"completed", "cancelled"}
        assert outcomes["completed"] >= served["served"] > 100
        living = len(router.status().actors)
        await soon(lambda: closed(watched).count(0) == living)
        assert router._running is not None
        assert len(router._running.supervisor._lives) == living
    assert set(closed(watched)) == {1}
    assert not any(each.closed_in_use for each in watched)
    assert all(each.running == 0 for each in watched)


def test_refusal_is_told_with_its_age(
    watched: list[Watched], virtual_time: Callable[..., None]
) -> None:
    """The status says how long ago the last reload was refused."""

    async def main() -> None:
        async with Router(gateway(provider("a"))) as router:
            with pytest.raises(ConfigurationError):
                await router.set_weight("a", 0)
            await anyio.sleep(90)
            assert (router.status().reload_error or "").startswith("90 s ago: ")
            assert router.status().as_dict()["generation"] == 1

    virtual_time(main)


async def test_changes_made_at_the_same_time_all_count(watched: list[Watched]) -> None:
    """Each change begins with what the one before has left."""
    async with Router(gateway(*(provider(name) for name in "abcd"))) as router:
        async with anyio.create_task_group() as group:
            for weight, name in enumerate("abcd", start=2):
                group.start_soon(router.set_weight, name, weight)
        assert [actor.weight for actor in router.status().actors] == [2, 3, 4, 5]
        assert router.status().generation == 5


async def test_totals_outlive_their_actors(watched: list[Watched]) -> None:
    """What the router counted stays counted when a provider leaves."""
    async with Router(gateway(provider("a"))) as router:
        for _ in range(5):
            await router.complete(CHAT)
        await router.reload(gateway(provider("b")))
        await soon(lambda: closed(watched) == [1, 0])
        assert [actor.name for actor in router.status().actors] == ["b"]
        assert router.status().ledger.accepted == 5
    assert_settled(router, completed=5)


async def test_replaced_actor_is_forgotten(watched: list[Watched]) -> None:
    """Nothing keeps an actor, or its provider, once it has left."""
    async with Router(gateway(provider("a"), provider("b"))) as router:
        gone = weakref.ref(actor(router, "a"))
        await router.complete(CHAT)
        await router.reload(gateway(provider("b")))
        await soon(lambda: closed(watched) == [1, 0])
        await soon(lambda: gc.collect() >= 0 and gone() is None, turns=5)


# ── the drain limit ──────────────────────────────────────────────────────────────


def test_drain_limit_cuts_what_is_stuck(
    watched: list[Watched], virtual_time: Callable[..., None]
) -> None:
    """A call and a waiting request that do not end are failed with the provider's name."""

    async def main() -> None:
        ended: list[tuple[float, str | None]] = []

        async def ask(router: Router) -> None:
            try:
                await router.complete(CHAT)
            except ProviderError as error:
                ended.append((anyio.current_time() - start, error.provider))

        stuck = provider("a", then="hang", limits={"concurrency": 1, "queue": 5}, timeout=500)
        timeouts = {"headers": 500, "total": 500}
        async with Router(gateway({**stuck, "timeouts": timeouts})) as router:
            async with anyio.create_task_group() as group:
                group.start_soon(ask, router)
                group.start_soon(ask, router)
                await anyio.sleep(1)
                start = anyio.current_time()
                await router.reload(gateway(provider("b"), server={"drain": 7}))
                await anyio.sleep(6)
                assert closed(watched) == [0, 0]
            assert [name for _, name in ended] == ["a", "a"]
            assert [at for at, _ in ended] == pytest.approx([7, 7], abs=0.1)
            await anyio.sleep(0.1)
            assert closed(watched) == [1, 0]
            assert not watched[0].closed_in_use
        assert_settled(router, failed=2)

    virtual_time(main)


def test_drain_limit_sends_a_call_elsewhere(
    watched: list[Watched], virtual_time: Callable[..., None]
) -> None:
    """With another provider in its generation, the request that is cut is answered there."""

    async def main() -> None:
        def tiers(**changed: Any) -> GatewayConfig:
            targets = [{"provider": "a"}, {"provider": "b", "tier": 1}]
            stuck = provider("a", then="hang", timeout=90, timeouts={"headers": 90}, **changed)
            models = [{"name": "m", "targets": targets, "total": 300}]
            return gateway(stuck, provider("b"), models=models, server={"drain": 7})

        async with Router(tiers()) as router, anyio.create_task_group() as group:
            group.start_soon(router.complete, CHAT)
            await anyio.sleep(1)
            await router.reload(tiers(max_retries=0))
        assert watched[1].outcomes == ["ok"]
        assert_settled(router, completed=1)

    virtual_time(main)


def test_drain_limit_ends_a_stream_with_an_error(
    watched: list[Watched], virtual_time: Callable[..., None]
) -> None:
    """A stream that outlives the limit is truncated, never ended as if it were complete."""

    async def main() -> None:
        Watched.steps["endless"] = Events("one", *[1.0, "more"] * 50)
        settings: dict[str, Any] = {"server": {"drain": 7}}
        async with Router(gateway(provider("a", then="endless"), **settings)) as router:
            start = anyio.current_time()
            with pytest.raises(StreamTruncatedError):
                async with router.stream(CHAT) as stream:
                    await anext(stream)
                    await router.reload(gateway(provider("b"), **settings))
                    async for _ in stream:
                        pass
            assert anyio.current_time() - start == pytest.approx(7, abs=0.1)
            await anyio.sleep(0.1)
            assert closed(watched) == [1, 0]
        assert_settled(router, truncated=1)

    virtual_time(main)


def test_changes_that_still_drain_are_bounded(
    watched: list[Watched], virtual_time: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One change more than may drain at a time waits until an earlier one is over."""

    async def main() -> None:
        monkeypatch.setattr("engine.retirement.LARGEST", 2)

        def stuck(timeout: float) -> GatewayConfig:
            limit = {"headers": 900, "total": 900}
            hanging = provider("a", then="hang", timeout=timeout, timeouts=limit, max_retries=0)
            return gateway(hanging, server={"drain": 20})

        async with Router(stuck(500)) as router, anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(_in_vain, router)
                await anyio.sleep(1)
                await router.reload(stuck(501 + number))
            start = anyio.current_time()
            await router.set_weight("a", 3)
            assert anyio.current_time() == start
            await router.reload(stuck(600))
            assert anyio.current_time() - start == pytest.approx(19, abs=0.2)
            group.cancel_scope.cancel()

    virtual_time(main)


def test_idle_actors_make_room_for_the_next_change(
    watched: list[Watched], virtual_time: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long request elsewhere does not hold up change after change."""

    async def main() -> None:
        monkeypatch.setattr("engine.retirement.LARGEST", 2)

        def with_extra(timeout: float) -> GatewayConfig:
            return gateway(provider("a", then="hang", timeout=99), provider("b", timeout=timeout))

        async with Router(with_extra(1)) as router, anyio.create_task_group() as group:
            await router.set_weight("b", 0)
            group.start_soon(_in_vain, router)
            await anyio.sleep(0.1)
            start = anyio.current_time()
            for number in range(2, 6):
                await router.reload(with_extra(number))
            assert anyio.current_time() - start < 5
            group.cancel_scope.cancel()

    virtual_time(main)


async def _in_vain(router: Router) -> None:
    try:
        await router.complete(CHAT)
    except ProviderError:
        return


# ── weights and switches ─────────────────────────────────────────────────────────


async def _shares(router: Router, count: int, **body: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(count):
        found[(await router.complete({**CHAT, **body})).provider or ""] += 1
    return found


async def test_weight_shifts_the_shares(watched: list[Watched]) -> None:
    """Picks follow the new weight from the next request on; the actors stay."""
    count = 600
    async with Router(gateway(provider("a"), provider("b"))) as router:
        kept = [actor(router, name) for name in "ab"]
        change = await router.set_weight("b", 3)
        assert str(change) == "~ provider b: weight 1 -> 3"
        shares = await _shares(router, count)
        # Four standard deviations of a binomial share of 1/4.
        assert shares["a"] == pytest.approx(count / 4, abs=4 * (count * 3 / 16) ** 0.5)
        assert [actor(router, name) for name in "ab"] == kept
        await router.set_weight("a", 0)
        assert await _shares(router, 20) == {"b": 20}
        assert [each.weight for each in router.status().actors] == [0, 3]


async def test_weight_in_one_model_leaves_the_others(watched: list[Watched]) -> None:
    """With `model`, only the targets of that model change."""
    targets = [{"provider": "a"}, {"provider": "b"}]
    models = [{"name": name, "targets": targets} for name in "mn"]
    async with Router(gateway(provider("a"), provider("b"), models=models)) as router:
        await router.set_weight("a", 0, model="m")
        assert await _shares(router, 20) == {"b": 20}
        assert set(await _shares(router, 40, model="n")) == {"a", "b"}


async def test_nonsense_weights_are_refused(watched: list[Watched]) -> None:
    """The checks are those of a whole configuration, and names are named."""
    models = [{"name": "m", "targets": [{"provider": "a"}]}]
    async with Router(gateway(provider("a"), provider("b"), models=models)) as router:
        with pytest.raises(ConfigurationError, match="weight 0"):
            await router.set_weight("a", 0)
        with pytest.raises(ConfigurationError, match="weight"):
            await router.set_weight("a", -1)
        with pytest.raises(ConfigurationError, match=r"no provider is named 'x' \(known: a, b\)"):
            await router.set_weight("x", 1)
        with pytest.raises(ConfigurationError, match=r"no model is named 'x' \(known: m\)"):
            await router.set_weight("a", 1, model="x")
        with pytest.raises(ConfigurationError, match="'m' has no target at 'b'"):
            await router.set_weight("b", 1, model="m")
        assert router.status().generation == 1


async def test_switching_off_finishes_what_is_there(watched: list[Watched]) -> None:
    """Nothing new is picked, what was taken is served, and the state waits for the return."""
    off = gateway(provider("a", then="slower", limits={"concurrency": 1}), provider("b", weight=0))
    async with Router(off) as router, anyio.create_task_group() as group:
        kept = actor(router, "a")
        for _ in range(2):
            group.start_soon(router.complete, CHAT)
        await soon(lambda: watched[0].running == 1 and len(kept.mailbox) == 1)
        await router.reload(gateway(*_switched(off, enabled=False)))
        assert await _shares(router, 5) == {"b": 5}
        status = router.status().actors[0]
        assert (status.reason, status.in_flight, status.mailbox.depth) == ("disabled", 1, 1)
        await soon(lambda: watched[0].outcomes == ["ok", "ok"])
        assert closed(watched) == [0, 0]
        await router.set_enabled("a", True)
        assert actor(router, "a") is kept
        assert router.status().actors[0].reason is None
        assert router.status().actors[0].picked == 2
    assert_settled(router, completed=7)


def _switched(config: GatewayConfig, *, enabled: bool) -> list[Any]:
    first, second = config.providers
    return [
        first.model_copy(update={"enabled": enabled}),
        second.model_copy(update={"weight": 1.0}),
    ]


async def test_switching_on_starts_a_provider(watched: list[Watched]) -> None:
    """One that was off from the beginning is made and started when it is switched on."""
    async with Router(gateway(provider("a"), provider("b", enabled=False))) as router:
        assert len(watched) == 1
        await router.set_enabled("b", True)
        assert [(each.name, each.started) for each in watched] == [("a", 1), ("b", 1)]
        assert set(await _shares(router, 40)) == {"a", "b"}


async def test_last_provider_cannot_be_switched_off(watched: list[Watched]) -> None:
    """A router that could serve nothing is refused, and unknown names are named."""
    async with Router(gateway(provider("a"), provider("b", enabled=False))) as router:
        with pytest.raises(ConfigurationError, match="no provider is enabled"):
            await router.set_enabled("a", False)
        with pytest.raises(ConfigurationError, match=r"'x' \(known: a, b\)"):
            await router.set_enabled("x", False)
        await router.complete(CHAT)


async def test_changed_while_off_is_made_anew(watched: list[Watched]) -> None:
    """A provider that was switched off, changed and switched on has a fresh actor."""
    async with Router(gateway(provider("a"), provider("b"))) as router:
        await router.set_enabled("b", False)
        gone = actor(router, "b")
        await router.reload(gateway(provider("a"), provider("b", enabled=False, timeout=9)))
        await soon(lambda: closed(watched) == [0, 1])
        await router.set_enabled("b", True)
        assert actor(router, "b") is not gone
        assert actor(router, "b").config.timeout == 9


async def test_ejection_by_hand(watched: list[Watched]) -> None:
    """An ejected provider is not picked until it is restored; unknown names are named."""
    async with Router(gateway(provider("a"), provider("b"))) as router:
        router.eject("a")
        assert await _shares(router, 20) == {"b": 20}
        router.restore("a")
        assert actor(router, "a").unavailable is not None
        with pytest.raises(ConfigurationError, match=r"'x' \(known: a, b\)"):
            router.eject("x", 5)
        with pytest.raises(ConfigurationError, match=r"'x' \(known: a, b\)"):
            router.restore("x")


# ── providers that the application handed in ─────────────────────────────────────


async def test_handed_in_provider_is_never_closed() -> None:
    """It leaves and comes back by its name, and stays the application's."""
    a, b = ScriptedProvider("a"), ScriptedProvider("b")
    async with make_router(a, b) as router:
        both = router.config
        await router.reload(GatewayConfig(providers=(a.config,), seed=7))
        await router.complete(CHAT)
        await router.reload(both)
        assert set(await _shares(router, 40)) == {"a", "b"}
    assert (a.closed, b.closed, a.started, b.started) == (0, 0, 0, 0)


async def test_handed_in_provider_with_other_settings_is_refused() -> None:
    """Nobody but the application can make it again, so it must register another one."""
    registry = ProviderRegistry()
    old = ScriptedProvider("a")
    registry.register_provider("a", old)
    async with Router(GatewayConfig(providers=(old.config,)), registry=registry) as router:
        new = ScriptedProvider("a", timeout=9)
        changed = GatewayConfig(providers=(new.config,))
        with pytest.raises(ConfigurationError, match="'a' was handed in by the application"):
            await router.reload(changed)
        registry.unregister_provider("a")
        registry.register_provider("a", new)
        await router.reload(changed)
        await router.complete(CHAT)
        assert (len(old.calls), len(new.calls)) == (0, 1)


# ── the list of models ───────────────────────────────────────────────────────────


async def test_models_are_asked_of_the_new_providers(watched: list[Watched]) -> None:
    """A reload forgets what providers said that are gone."""
    async with Router(gateway(provider("a"))) as router:
        watched[0].models = ["x"]
        assert [entry.name for entry in await router.list_models()] == ["x"]
        await router.reload(gateway(provider("b")))
        watched[1].models = ["y"]
        assert [(e.name, e.providers) for e in await router.list_models()] == [("y", ("b",))]


def test_provider_that_is_asked_is_not_closed(
    watched: list[Watched], virtual_time: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A provider that leaves while it lists its models may say them first."""

    async def list_models(self: Watched) -> list[str]:
        await anyio.sleep(3)
        assert not self.closed
        return ["x"]

    async def main() -> None:
        monkeypatch.setattr(Watched, "list_models", list_models)
        names: list[str] = []

        async def ask(router: Router) -> None:
            names.extend(entry.name for entry in await router.list_models())

        async with Router(gateway(provider("a"))) as router:
            async with anyio.create_task_group() as group:
                group.start_soon(ask, router)
                await anyio.sleep(1)
                await router.reload(gateway(provider("b")))
            assert names == ["x"]
            await anyio.sleep(0.2)
            assert closed(watched) == [1, 0]

    virtual_time(main)
