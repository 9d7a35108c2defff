"""`Plan`: for one model name, who can serve it, in which order and by which rules."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from engine.actor import ProviderActor
from engine.balancing.balancer import Balancer
from engine.balancing.least_loaded import LeastLoaded
from engine.balancing.smooth_weighted import SmoothWeighted
from engine.balancing.weighted_random import WeightedRandom
from engine.config import BalancerName, GatewayConfig, RetriesConfig


class Target:
    """One place that can serve a model: an actor, and the model's name there.

    Attributes:
        actor: The provider's actor.
        model: The model's name there; None for the name that was asked for.
        weight: Its share within its tier.
        tier: Lower numbers are used first.
    """

    __slots__ = ("actor", "model", "tier", "weight")

    def __init__(
        self, actor: ProviderActor, model: str | None, weight: float, tier: int = 0
    ) -> None:
        self.actor = actor
        self.model = model
        self.weight = weight
        self.tier = tier

    @property
    def load(self) -> float:
        """Requests that the actor has in hand or in its mailbox."""
        return self.actor.in_flight + len(self.actor.mailbox)

    def __repr__(self) -> str:
        return f"Target({self.actor.name!r}, model={self.model!r}, weight={self.weight:g})"


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests for one model are served.

    Attributes:
        tiers: One balancer a tier, the first tier first; only targets that may be picked.
        targets: How many targets the tiers hold together.
        retries: What may be tried again.
        total: Deadline of a request that brings none, seconds.
    """

    tiers: tuple[Balancer[Target], ...]
    targets: int
    retries: RetriesConfig
    total: float


def make_plans(
    config: GatewayConfig, actors: Mapping[str, ProviderActor], rng: random.Random
) -> tuple[dict[str, Plan], Plan | None]:
    """The plans of all configured models, and the plan for every other name.

    Without configured models every enabled provider serves every name; with them, other
    names are unknown and the second value is None.
    """
    plans = {}
    for model in config.models:
        targets = [
            Target(
                actors[target.provider],
                target.model,
                actors[target.provider].config.weight if target.weight is None else target.weight,
                target.tier,
            )
            for target in model.targets
            if target.provider in actors
        ]
        balancer = model.balancer or config.balancer
        plans[model.name] = _plan(targets, balancer, model.retries or config.retries, config, rng)
    if plans:
        return plans, None
    everybody = [Target(actor, None, actor.config.weight) for actor in actors.values()]
    return plans, _plan(everybody, config.balancer, config.retries, config, rng)


def _plan(
    targets: Sequence[Target],
    balancer: BalancerName,
    retries: RetriesConfig,
    config: GatewayConfig,
    rng: random.Random,
) -> Plan:
    # Weight 0 means "never by chance": such a target is in no balancer.
    pickable = sorted((t for t in targets if t.weight > 0), key=lambda target: target.tier)
    tiers = tuple(
        make_balancer(balancer, list(group), rng)
        for _, group in groupby(pickable, key=lambda target: target.tier)
    )
    longest = max(target.actor.config.timeouts.total for target in pickable)
    return Plan(tiers, len(pickable), retries, config.total or longest)


def make_balancer(
    name: BalancerName, targets: Sequence[Target], rng: random.Random
) -> Balancer[Target]:
    """The balancer of that name over the targets."""
    match name:
        case "weighted_random":
            return WeightedRandom(targets, rng)
        case "smooth_weighted":
            return SmoothWeighted(targets)
        case "least_loaded":
            return LeastLoaded(targets, rng)
