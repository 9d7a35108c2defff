"""`Plan`: for one model name, who can serve it, in which order and by which rules."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from engine.actor import ProviderActor
from engine.balancing.balancer import Balancer
from engine.balancing.least_loaded import LeastLoaded
from engine.balancing.smooth_weighted import SmoothWeighted
from engine.balancing.weighted_random import WeightedRandom
from engine.config import (
    BalancerName,
    FallbacksConfig,
    GatewayConfig,
    HedgingConfig,
    ModelConfig,
    RetriesConfig,
)
from engine.resilience.hedge_budget import HedgeBudget


class Target:
    """One place that can serve a model: an actor, and the model's name there.

    Attributes:
        actor: The provider's actor.
        model: The model's name there; None for the name that was asked for.
        weight: Its share within its tier.
        tier: Lower numbers are used first.
        share: The part of its weight that counts, as the dispatcher saw it when it looked at
            the target last: less than 1 in slow start. One look serves one whole pick.
        label: What it is called in records: the provider's name, and the model's if the
            provider stands in the plan more than once.
        index: Its place in its tier.
        stage: Its tier's place among the tiers of the plan.
    """

    __slots__ = ("actor", "index", "label", "model", "share", "stage", "tier", "weight")

    def __init__(
        self, actor: ProviderActor, model: str | None, weight: float, tier: int = 0
    ) -> None:
        self.actor = actor
        self.model = model
        self.weight = weight
        self.tier = tier
        self.share = 1.0
        self.label = actor.name
        self.index = self.stage = 0

    @property
    def load(self) -> float:
        """Requests that the actor has in hand or in its mailbox."""
        return self.actor.in_flight + len(self.actor.mailbox)

    def __repr__(self) -> str:
        return f"Target({self.actor.name!r}, model={self.model!r}, weight={self.weight:g})"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A target as a request's record tells of it, without the actor behind it.

    Attributes:
        label: What the target is called; unique in its plan.
        provider: Name of the provider.
        model: The model's name there; None for the name that was asked for.
        weight: Its share within its tier.
        tier: Lower numbers are used first.
    """

    label: str
    provider: str
    model: str | None
    weight: float
    tier: int


@dataclass(frozen=True, slots=True)
class Tier:
    """One tier of a plan.

    Attributes:
        balancer: Picks among its targets.
        candidates: The same targets, in the same order, for records.
    """

    balancer: Balancer[Target]
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How requests for one model are served.

    Attributes:
        model: The model's public name; None for every name.
        tiers: The first tier first; only targets that may be picked.
        targets: How many targets the tiers hold together.
        retries: What may be tried again.
        total: Deadline of a request that brings none, seconds.
        fallbacks: Other models that may answer instead.
        hedging: Whether and when a second provider is asked; None for never.
        hedges: Bounds how many requests are hedged.
        upstream_streaming: Whether unstreamed answers are read as streams where they can be.
    """

    model: str | None
    tiers: tuple[Tier, ...]
    targets: int
    retries: RetriesConfig
    total: float
    fallbacks: FallbacksConfig
    hedging: HedgingConfig | None = None
    hedges: HedgeBudget | None = None
    upstream_streaming: bool = False


def make_plans(
    config: GatewayConfig, actors: Mapping[str, ProviderActor], rng: random.Random
) -> tuple[dict[str, Plan], Plan | None]:
    """The plans of all configured models, and the plan for every other name.

    Without configured models every enabled provider serves every name; with them, other
    names are unknown and the second value is None. The actors learn from it how many of
    those that serve the same model may be ejected for their failure rate.
    """
    plans: dict[str, Plan] = {}
    any_model: Plan | None = None
    if config.models:
        for model in config.models:
            targets = [
                Target(
                    actors[target.provider],
                    target.model,
                    actors[target.provider].config.weight
                    if target.weight is None
                    else target.weight,
                    target.tier,
                )
                for target in model.targets
                if target.provider in actors
            ]
            plans[model.name] = _plan(targets, model, config, rng)
    else:
        everybody = [Target(actor, None, actor.config.weight) for actor in actors.values()]
        any_model = _plan(everybody, None, config, rng)
    _bound_ejections([*plans.values(), *([any_model] if any_model else [])], config.max_ejected)
    return plans, any_model


def _plan(
    targets: Sequence[Target], model: ModelConfig | None, config: GatewayConfig, rng: random.Random
) -> Plan:
    # Weight 0 means "never by chance": such a target is in no balancer.
    pickable = sorted((t for t in targets if t.weight > 0), key=lambda target: target.tier)
    name = (model and model.balancer) or config.balancer
    often = Counter(target.actor.name for target in pickable)
    tiers: list[Tier] = []
    for _, group in groupby(pickable, key=lambda target: target.tier):
        members = list(group)
        for index, target in enumerate(members):
            target.index, target.stage = index, len(tiers)
            if often[target.actor.name] > 1:
                target.label = f"{target.actor.name}/{target.model or '*'}/{target.tier}"
        candidates = tuple(
            Candidate(t.label, t.actor.name, t.model, t.weight, t.tier) for t in members
        )
        tiers.append(Tier(make_balancer(name, members, rng), candidates))
    totals = [total for total in (model and model.total, config.total) if total]
    hedging = model.hedging if model else None
    return Plan(
        model=model.name if model else None,
        tiers=tuple(tiers),
        targets=len(pickable),
        retries=(model and model.retries) or config.retries,
        total=min(totals, default=max(t.actor.config.timeouts.total for t in pickable)),
        fallbacks=model.fallbacks if model else FallbacksConfig(),
        hedging=hedging,
        hedges=HedgeBudget(hedging.max_share) if hedging else None,
        upstream_streaming=model is not None and model.upstream_streaming == "auto",
    )


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


def _bound_ejections(plans: Sequence[Plan], share: float) -> None:
    """Give every actor its say on whether one more of its peers may be ejected by rate."""
    groups: dict[ProviderActor, list[tuple[ProviderActor, ...]]] = {}
    for plan in plans:
        peers = tuple(
            {target.actor: None for tier in plan.tiers for target in tier.balancer.targets}
        )
        for actor in peers:
            groups.setdefault(actor, []).append(peers)
    for actor, those in groups.items():
        actor.health.may_eject = _allowance(those, share)


def _allowance(groups: Sequence[tuple[ProviderActor, ...]], share: float) -> Callable[[], bool]:
    def may_eject() -> bool:
        return all(
            sum(1 for peer in peers if peer.health.ejected) < math.ceil(share * len(peers))
            for peers in groups
        )

    return may_eject
