"""`Generation`: one configuration as it runs, from one reload to the next."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from engine.actor import ProviderActor
from engine.config import GatewayConfig, ProviderConfig
from engine.plan import Plan, make_plans


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """A configuration, the actors that serve it, and the plans over them. Immutable.

    A request keeps the generation it was accepted with to its end, so it never sees half
    of a change.

    Attributes:
        number: 1 for the first, one more with each configuration that is applied.
        config: The configuration.
        actors: Actors of the enabled providers, by name, in the configuration's order.
        plans: Plans of the configured models, by name.
        any_model: Plan for every other name; None where other names are unknown.
        disabled: Actors of providers that were switched off while they ran: they finish
            what they have, are in no plan, and wait with their state to be switched on.
    """

    number: int
    config: GatewayConfig
    actors: Mapping[str, ProviderActor]
    plans: dict[str, Plan]
    any_model: Plan | None
    disabled: Mapping[str, ProviderActor] = field(default_factory=dict)

    def plan_for(self, model: str) -> Plan | None:
        """How requests for that model are served, or None if it is unknown."""
        return self.plans.get(model) or self.any_model

    @property
    def living(self) -> dict[str, ProviderActor]:
        """All actors, those of disabled providers included, in the configuration's order."""
        found = {**self.actors, **self.disabled}
        return {p.name: found[p.name] for p in self.config.providers if p.name in found}


def make_generation(
    number: int,
    config: GatewayConfig,
    actors: Mapping[str, ProviderActor],
    rng: random.Random,
    *,
    previous: Generation | None = None,
) -> Generation:
    """Put a generation together; never waits, so nobody sees it half made.

    Weight and the enabled flag are the configuration's, also for an actor that is kept,
    and for a provider that was handed in with other values.

    Args:
        number: The generation's number.
        config: The configuration.
        actors: By name, the actors of all enabled providers, and of some disabled ones.
        rng: Source of the balancers' choices.
        previous: The generation before. Plans that would be the same are taken over, so
            that a balancer with a memory does not lose it.

    Raises:
        ConfigurationError: If no plan can be made; the actors are as they were.
    """
    before = {name: actor.config for name, actor in actors.items()}
    try:
        for provider in config.providers:
            if provider.name in actors:
                _set_flags(actors[provider.name], provider)
        serving = {p.name: actors[p.name] for p in config.providers if p.enabled}
        plans, any_model = make_plans(config, serving, rng)
    except BaseException:
        for name, actor in actors.items():
            actor.config = before[name]
        raise
    if previous is not None:
        plans = {name: _taken_over(previous.plans.get(name), p) for name, p in plans.items()}
        any_model = any_model and _taken_over(previous.any_model, any_model)
    disabled = {name: actor for name, actor in actors.items() if name not in serving}
    return Generation(
        number, config, MappingProxyType(serving), plans, any_model, MappingProxyType(disabled)
    )


def _set_flags(actor: ProviderActor, provider: ProviderConfig) -> None:
    flags = {"weight": provider.weight, "enabled": provider.enabled}
    if any(getattr(actor.config, name) != value for name, value in flags.items()):
        actor.config = actor.config.model_copy(update=flags)


def _taken_over(old: Plan | None, new: Plan) -> Plan:
    """The old plan if it says the same as the new one."""
    return old if old is not None and _same(old, new) else new


def _same(old: Plan, new: Plan) -> bool:
    return _tiers(old) == _tiers(new) and all(
        getattr(old, each.name) == getattr(new, each.name)
        for each in fields(Plan)
        if each.name not in _FRESH
    )


_FRESH = frozenset({"tiers", "hedges"})
"""What every plan has made anew, whether it says the same or not."""


def _tiers(plan: Plan) -> list[tuple[type, list[tuple[ProviderActor, str | None, float, int]]]]:
    balancers = [tier.balancer for tier in plan.tiers]
    return [
        (type(balancer), [(t.actor, t.model, t.weight, t.tier) for t in balancer.targets])
        for balancer in balancers
    ]
