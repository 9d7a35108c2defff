"""Plans: tiers, weights, deadlines and balancers of a model."""

import random

import pytest
from scripted import ScriptedProvider

from engine import ConnectError, GatewayConfig
from engine.actor import ProviderActor
from engine.balancing.least_loaded import LeastLoaded
from engine.balancing.smooth_weighted import SmoothWeighted
from engine.balancing.weighted_random import WeightedRandom
from engine.plan import Plan, Target, make_balancer, make_plans
from engine.resilience.deadline import DeadlineWheel
from engine.telemetry import Telemetry


def clock() -> float:
    """Time stands still."""
    return 0.0


def actors(config: GatewayConfig) -> dict[str, ProviderActor]:
    """Actors that nobody runs, for all enabled providers."""
    wheel = DeadlineWheel(clock)
    return {
        p.name: ProviderActor(
            ScriptedProvider(**p.model_dump(exclude={"type"})),
            clock=clock,
            rng=random.Random(1),
            wheel=wheel,
            telemetry=Telemetry(),
        )
        for p in config.providers
        if p.enabled
    }


def plans(**settings: object) -> tuple[dict[str, Plan], Plan | None]:
    """The plans of a configuration."""
    config = GatewayConfig.model_validate(settings)
    return make_plans(config, actors(config), random.Random(1))


def mock(name: str, **settings: object) -> dict[str, object]:
    """One provider of a configuration."""
    return {"name": name, "type": "mock", **settings}


async def test_without_models_everybody_serves_everything() -> None:
    """Enabled providers with a weight form one tier for every name."""
    providers = [mock("a", weight=2), mock("b", weight=0), mock("c", enabled=False), mock("d")]
    named, anything = plans(providers=providers)
    assert named == {}
    assert anything is not None
    (tier,) = anything.tiers
    assert [(t.actor.name, t.weight, t.model) for t in tier.balancer.targets] == [
        ("a", 2, None), ("d", 1, None),
    ]  # fmt: skip
    assert anything.targets == 2


async def test_targets_are_ordered_by_tier() -> None:
    """Tiers come in their order, whatever the order in the file; other names are unknown."""
    targets = [
        {"provider": "a", "tier": 7, "model": "late"},
        {"provider": "b", "tier": 0, "weight": 9},
        {"provider": "a", "tier": 0, "weight": 0},
        {"provider": "a", "tier": 0, "model": "early"},
    ]
    models = [{"name": "m", "targets": targets}]
    named, anything = plans(providers=[mock("a", weight=4), mock("b")], models=models)
    assert anything is None
    shown = [
        [(t.actor.name, t.model, t.weight) for t in tier.balancer.targets]
        for tier in named["m"].tiers
    ]
    assert shown == [[("b", None, 9), ("a", "early", 4)], [("a", "late", 4)]]


async def test_model_settings_win_over_the_files() -> None:
    """Retries and balancer of a model replace those of the file."""
    models = [
        {"name": "own", "targets": [{"provider": "a"}], "retries": {"max_attempts": 9}}
        | {"balancer": "least_loaded"},
        {"name": "plain", "targets": [{"provider": "a"}]},
    ]
    named, _ = plans(
        providers=[mock("a")], models=models, retries={"max_attempts": 2},
        balancer="smooth_weighted",
    )  # fmt: skip
    assert (named["own"].retries.max_attempts, named["plain"].retries.max_attempts) == (9, 2)
    assert isinstance(named["own"].tiers[0].balancer, LeastLoaded)
    assert isinstance(named["plain"].tiers[0].balancer, SmoothWeighted)


@pytest.mark.parametrize(("total", "expected"), [(None, 30), (7, 7)])
async def test_deadline_of_a_plan(total: float | None, expected: float) -> None:
    """The file's total, or the largest of the providers that can serve."""
    providers = [mock("a", timeouts={"total": 20}), mock("b", timeouts={"total": 30})]
    providers.append(mock("c", weight=0, timeouts={"total": 99}))
    _, anything = plans(providers=providers, total=total)
    assert anything is not None
    assert anything.total == expected


async def test_disabled_targets_are_left_out() -> None:
    """A target of a disabled provider is in no tier."""
    models = [{"name": "m", "targets": [{"provider": "a"}, {"provider": "off"}]}]
    named, _ = plans(providers=[mock("a"), mock("off", enabled=False)], models=models)
    assert named["m"].targets == 1


async def test_balancers_by_name() -> None:
    """Each name of the configuration makes its balancer."""
    config = GatewayConfig.model_validate({"providers": [mock("a")]})
    targets = [Target(actors(config)["a"], None, 1.0)]
    rng = random.Random(1)
    assert isinstance(make_balancer("weighted_random", targets, rng), WeightedRandom)
    assert isinstance(make_balancer("smooth_weighted", targets, rng), SmoothWeighted)
    assert isinstance(make_balancer("least_loaded", targets, rng), LeastLoaded)
    assert repr(targets[0]) == "Target('a', model=None, weight=1)"
    assert targets[0].load == 0


async def test_targets_know_their_place_and_their_label() -> None:
    """Labels are unique in a plan: a provider that stands there twice is told apart."""
    targets = [
        {"provider": "a", "model": "x"},
        {"provider": "b"},
        {"provider": "a", "model": "x", "tier": 2},
        {"provider": "a", "model": None, "tier": 2},
    ]
    named, _ = plans(providers=[mock("a"), mock("b")], models=[{"name": "m", "targets": targets}])
    shown = [
        (t.label, t.index, t.stage) for tier in named["m"].tiers for t in tier.balancer.targets
    ]
    assert shown == [("a/x/0", 0, 0), ("b", 1, 0), ("a/x/2", 0, 1), ("a/*/2", 1, 1)]


async def test_candidates_are_the_targets_in_their_order() -> None:
    """What a record keeps of a tier matches the balancer's own list, place by place."""
    targets = [{"provider": "b", "model": "x", "weight": 3}, {"provider": "a"}]
    named, _ = plans(providers=[mock("a"), mock("b")], models=[{"name": "m", "targets": targets}])
    (tier,) = named["m"].tiers
    kept = [(c.label, c.provider, c.model, c.weight, c.tier) for c in tier.candidates]
    assert kept == [("b", "b", "x", 3, 0), ("a", "a", None, 1, 0)]
    assert [c.label for c in tier.candidates] == [t.label for t in tier.balancer.targets]


async def test_fallbacks_hedging_and_total_are_the_models_own() -> None:
    """A model's plan carries what stands behind it, and the smaller of two deadlines."""
    models: list[dict[str, object]] = [
        {"name": "m", "targets": [{"provider": "a"}], "fallbacks": {"error": ["n"]}}
        | {"hedging": {"max_share": 0.1}, "total": 9, "upstream_streaming": "auto"},
        {"name": "n", "targets": [{"provider": "a"}]},
    ]
    named, _ = plans(providers=[mock("a")], models=models, total=7)
    assert named["m"].fallbacks.error == ("n",)
    assert named["m"].hedges is not None
    assert (named["m"].total, named["n"].total) == (7, 7)
    assert (named["m"].upstream_streaming, named["n"].upstream_streaming) == (True, False)
    assert named["n"].hedges is None


@pytest.mark.parametrize(("share", "most"), [(0.5, 2), (0.25, 1), (1.0, 4), (0.0, 0)])
async def test_share_bounds_how_many_are_ejected_by_rate(share: float, most: int) -> None:
    """Of those that serve the same model only so many may be out at the same time."""
    names = ["a", "b", "c", "d"]
    config = GatewayConfig.model_validate(
        {"providers": [mock(name) for name in names], "max_ejected": share}
    )
    made = actors(config)
    make_plans(config, made, random.Random(1))
    allowed = 0
    for name in names:
        if made[name].health.may_eject():
            allowed += 1
            # Five failures in a row eject, whatever the others do.
            for _ in range(5):
                made[name].health.note_failure(ConnectError("x"), 0.0)
    assert allowed == most
