"""From a plan to a target, or the reasons why nobody."""

import random
from dataclasses import dataclass
from typing import Any, cast

import pytest

from engine import (
    NoProviderAvailableError,
    Operation,
    RetriesConfig,
    UnsupportedOperationError,
)
from engine.balancing.balancer import Balancer
from engine.balancing.weighted_random import WeightedRandom
from engine.dispatcher import Dispatcher
from engine.plan import Plan, Target


@dataclass(slots=True)
class FakeActor:
    """Says what it is told to say."""

    name: str
    reason: str | None = None
    free_in: float = 1.0

    def unavailable(self, operation: Operation) -> str | None:
        return self.reason

    def available_in(self) -> float:
        return self.free_in


def plan(*tiers: list[FakeActor]) -> tuple[Plan, dict[str, Target]]:
    """A plan over fake actors, and its targets by name."""
    targets: dict[str, Target] = {}
    balancers: list[Balancer[Target]] = []
    for number, tier in enumerate(tiers):
        made = [Target(cast("Any", actor), None, 1.0, number) for actor in tier]
        targets |= {target.actor.name: target for target in made}
        balancers.append(WeightedRandom(made, random.Random(1)))
    return Plan(tuple(balancers), len(targets), RetriesConfig(), 10.0), targets


def test_first_tier_with_somebody_serves() -> None:
    """A tier is passed over only when nobody in it can serve."""
    made, targets = plan([FakeActor("a", "down"), FakeActor("b")], [FakeActor("c")])
    for _ in range(20):
        assert Dispatcher().choose(made, Operation.CHAT) is targets["b"]
    made, targets = plan([FakeActor("a", "down")], [FakeActor("c")])
    assert Dispatcher().choose(made, Operation.CHAT) is targets["c"]


def test_excluded_targets_are_not_picked() -> None:
    """What was tried is left out; what remains may be in a lower tier."""
    made, targets = plan([FakeActor("a"), FakeActor("b")], [FakeActor("c")])
    tried = {targets["a"]}
    assert Dispatcher().choose(made, Operation.CHAT, excluded=tried) is targets["b"]
    tried.add(targets["b"])
    assert Dispatcher().choose(made, Operation.CHAT, excluded=tried) is targets["c"]
    tried.add(targets["c"])
    assert Dispatcher().choose(made, Operation.CHAT, excluded=tried) is None


def test_only_the_given_are_considered() -> None:
    """A restriction holds over all tiers, and does not make anybody eligible."""
    made, targets = plan([FakeActor("a"), FakeActor("b")], [FakeActor("c"), FakeActor("d", "down")])
    assert Dispatcher().choose(made, Operation.CHAT, only=[targets["c"]]) is targets["c"]
    assert Dispatcher().choose(made, Operation.CHAT, only=[targets["d"]]) is None
    assert Dispatcher().choose(made, Operation.CHAT, only=[]) is None


def test_refusal_names_every_reason() -> None:
    """Each provider stands in the error with its own word, in the text and as data."""
    made, _ = plan([FakeActor("a", "mailbox_full", 4.0)], [FakeActor("b", "overloaded", 2.5)])
    error = Dispatcher().refusal(made, Operation.CHAT, "m")
    assert isinstance(error, NoProviderAvailableError)
    assert error.passed_over == {"a": "mailbox_full", "b": "overloaded"}
    assert "a: mailbox_full, b: overloaded" in error.message
    assert error.reason == "no_provider_available"
    assert error.retry_after == 2.5


@pytest.mark.parametrize(("free_in", "hint"), [(0.0, 0.1), (5.0, 5.0), (9_999.0, 300.0)])
def test_hint_is_neither_now_nor_never(free_in: float, hint: float) -> None:
    """`Retry-After` lies between a tenth of a second and five minutes."""
    made, _ = plan([FakeActor("a", "down", free_in)])
    assert Dispatcher().refusal(made, Operation.CHAT, "m").retry_after == hint


@pytest.mark.parametrize(
    ("reason", "status"), [("mailbox_full", 503), ("rate_limited", 429), ("down", 503)]
)
def test_single_reason_is_the_errors_own(reason: str, status: int) -> None:
    """Where all say the same, the error says it; a rate limit is a 429."""
    made, _ = plan([FakeActor("a", reason), FakeActor("b", reason)])
    error = Dispatcher().refusal(made, Operation.CHAT, "m")
    assert (error.code, error.status) == (reason, status)
    assert NoProviderAvailableError("other").status == 503


def test_unsupported_operation_is_the_callers_mistake() -> None:
    """Only when nobody at all offers it."""
    made, _ = plan([FakeActor("a", "unsupported_operation")])
    assert isinstance(Dispatcher().refusal(made, Operation.CHAT, "m"), UnsupportedOperationError)
    made, _ = plan([FakeActor("a", "unsupported_operation"), FakeActor("b", "down")])
    assert isinstance(Dispatcher().refusal(made, Operation.CHAT, "m"), NoProviderAvailableError)


def test_long_refusals_are_cut() -> None:
    """The text names eight providers at most; the data has them all."""
    made, _ = plan([FakeActor(f"p{number}", "down") for number in range(50)])
    error = Dispatcher().refusal(made, Operation.CHAT, "m")
    assert isinstance(error, NoProviderAvailableError)
    assert error.message.count("down") == 8
    assert len(error.passed_over) == 50
