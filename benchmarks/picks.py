"""The pick alone: a balancer over real targets, and the dispatcher around it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import anyio

from benchmarks.instant import InstantProvider, instant_config
from benchmarks.spread import Spread, rounds_of
from engine.actor import ProviderActor
from engine.config import BalancerName
from engine.dispatcher import Asked, Dispatcher
from engine.operations import Operation
from engine.plan import Plan, make_plans
from engine.resilience.deadline import DeadlineWheel
from engine.status import ActorState
from engine.telemetry import Telemetry

BALANCERS: tuple[BalancerName, ...] = get_args(BalancerName)
FEWEST_PICKS = 50


@dataclass(frozen=True, slots=True)
class PickCost:
    """CPU seconds of one pick.

    Attributes:
        balancer: `Balancer.pick`, with every target eligible.
        dispatcher: `Dispatcher.choose`, which asks each actor that is looked at.
    """

    balancer: Spread
    dispatcher: Spread


async def pick_cost(balancer: BalancerName, targets: int, *, picks: int, rounds: int) -> PickCost:
    """Measure one balancer; runs on an event loop because actors need one to exist."""
    plan = _plan(balancer, targets)
    # Two of the balancers look at every target, so that many picks would take for ever.
    count = max(FEWEST_PICKS, picks // (1 if balancer == "weighted_random" else targets))
    pick, dispatcher, asked = plan.tiers[0].balancer.pick, Dispatcher(), Asked(Operation.CHAT)
    return PickCost(
        rounds_of(rounds, lambda: _seconds(lambda: pick(_everybody), count)),
        rounds_of(rounds, lambda: _seconds(lambda: dispatcher.choose(plan, asked), count)),
    )


def _everybody(_: object) -> bool:
    return True


def _seconds(call: Callable[[], object], count: int) -> float:
    """CPU seconds of one call, less those of a call that does nothing."""
    return max(0.0, _loop(call, count) - _loop(_nothing, count))


def _nothing() -> None:
    return None


def _loop(call: Callable[[], object], count: int) -> float:
    begin = time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - begin) / count


def _plan(balancer: BalancerName, targets: int) -> Plan:
    config = instant_config(targets).model_copy(update={"balancer": balancer})
    rng, wheel = random.Random(1), DeadlineWheel(anyio.current_time)
    actors = {}
    for provider in config.providers:
        actor = ProviderActor(
            InstantProvider(provider),
            clock=anyio.current_time,
            rng=rng,
            wheel=wheel,
            telemetry=Telemetry(),
        )
        actor.state = ActorState.SERVING
        actors[provider.name] = actor
    _, plan = make_plans(config, actors, rng)
    assert plan is not None
    return plan
