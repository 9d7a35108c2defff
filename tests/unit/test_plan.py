"""Plans: tiers, weights, deadlines and balancers of a model."""

import random

import pytest
from scripted import ScriptedProvider

from engine import GatewayConfig
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
    assert [(t.actor.name, t.weight, t.model) for t in tier.targets] == [
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
    shown = [[(t.actor.name, t.model, t.weight) for t in tier.targets] for tier in named["m"].tiers]
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
    assert isinstance(named["own"].tiers[0], LeastLoaded)
    assert isinstance(named["plain"].tiers[0], SmoothWeighted)


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
