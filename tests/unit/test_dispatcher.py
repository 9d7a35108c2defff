"""From a plan to a target, or the reasons why nobody."""

import random
from dataclasses import dataclass
from typing import Any, cast

import pytest

from engine import (
    FallbacksConfig,
    NoProviderAvailableError,
    Operation,
    Priority,
    RetriesConfig,
    UnsupportedOperationError,
)
from engine.balancing.weighted_random import WeightedRandom
from engine.dispatcher import Asked, Dispatcher
from engine.plan import Candidate, Plan, Target, Tier

CHAT = Asked(Operation.CHAT)


@dataclass(slots=True, eq=False)
class FakeActor:
    """Says what it is told to say."""

    name: str
    reason: str | None = None
    free_in: float = 1.0
    share: float = 1.0
    looks: int = 0

    def unavailable(
        self,
        operation: Operation,
        priority: Priority,
        remaining: float,
        *,
        forgiven: frozenset[str] = frozenset(),
    ) -> str | None:
        self.looks += 1
        return None if self.reason in forgiven else self.reason

    def available_in(self, remaining: float) -> float:
        return self.free_in


def plan(*tiers: list[FakeActor]) -> tuple[Plan, dict[str, Target]]:
    """A plan over fake actors, and its targets by name."""
    targets: dict[str, Target] = {}
    made_tiers: list[Tier] = []
    for number, tier in enumerate(tiers):
        made = [Target(cast("Any", actor), None, 1.0, number) for actor in tier]
        for index, target in enumerate(made):
            target.index, target.stage = index, number
        targets |= {target.actor.name: target for target in made}
        candidates = tuple(Candidate(t.label, t.label, None, 1.0, number) for t in made)
        made_tiers.append(Tier(WeightedRandom(made, random.Random(1)), candidates))
    return Plan(
        "m", tuple(made_tiers), len(targets), RetriesConfig(), 10.0, FallbacksConfig()
    ), targets


def chosen(made: Plan, asked: Asked = CHAT) -> Target | None:
    """Who is chosen."""
    choice = Dispatcher().choose(made, asked)
    return None if choice is None else choice.target


def test_first_tier_with_somebody_serves() -> None:
    """A tier is passed over only when nobody in it can serve."""
    made, targets = plan([FakeActor("a", "down"), FakeActor("b")], [FakeActor("c")])
    for _ in range(20):
        assert chosen(made) is targets["b"]
    made, targets = plan([FakeActor("a", "down")], [FakeActor("c")])
    assert chosen(made) is targets["c"]


def test_excluded_targets_are_not_picked() -> None:
    """What was tried is left out; what remains may be in a lower tier."""
    made, targets = plan([FakeActor("a"), FakeActor("b")], [FakeActor("c")])
    tried = {targets["a"]}
    asked = Asked(Operation.CHAT, excluded=tried)
    assert chosen(made, asked) is targets["b"]
    tried.add(targets["b"])
    assert chosen(made, asked) is targets["c"]
    tried.add(targets["c"])
    assert chosen(made, asked) is None


def test_only_the_given_are_considered() -> None:
    """A restriction holds over all tiers, and does not make anybody eligible."""
    made, targets = plan([FakeActor("a"), FakeActor("b")], [FakeActor("c"), FakeActor("d", "down")])
    assert chosen(made, Asked(Operation.CHAT, only=[targets["c"]])) is targets["c"]
    assert chosen(made, Asked(Operation.CHAT, only=[targets["d"]])) is None
    assert chosen(made, Asked(Operation.CHAT, only=[])) is None


def test_refusal_names_every_reason() -> None:
    """Each provider stands in the error with its own word, in the text and as data."""
    made, _ = plan([FakeActor("a", "mailbox_full", 4.0)], [FakeActor("b", "overloaded", 2.5)])
    error = Dispatcher().refusal(made, CHAT, "m")
    assert isinstance(error, NoProviderAvailableError)
    assert error.passed_over == {"a": "mailbox_full", "b": "overloaded"}
    assert "a: mailbox_full, b: overloaded" in error.message
    assert error.reason == "no_provider_available"
    assert error.retry_after == 2.5


@pytest.mark.parametrize(("free_in", "hint"), [(0.0, 0.1), (5.0, 5.0), (9_999.0, 300.0)])
def test_hint_is_neither_now_nor_never(free_in: float, hint: float) -> None:
    """`Retry-After` lies between a tenth of a second and five minutes."""
    made, _ = plan([FakeActor("a", "down", free_in)])
    assert Dispatcher().refusal(made, CHAT, "m").retry_after == hint


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("mailbox_full", 503),
        ("queue_too_long", 503),
        ("rate_limited", 429),
        ("deadline_too_short", 504),
        ("down", 503),
    ],
)
def test_single_reason_is_the_errors_own(reason: str, status: int) -> None:
    """Where all say the same, the error says it: a rate limit is a 429, too little time a 504."""
    made, _ = plan([FakeActor("a", reason), FakeActor("b", reason)])
    error = Dispatcher().refusal(made, CHAT, "m")
    assert (error.code, error.status) == (reason, status)
    assert NoProviderAvailableError("other").status == 503


def test_unsupported_operation_is_the_callers_mistake() -> None:
    """Only when nobody at all offers it."""
    made, _ = plan([FakeActor("a", "unsupported_operation")])
    assert isinstance(Dispatcher().refusal(made, CHAT, "m"), UnsupportedOperationError)
    made, _ = plan([FakeActor("a", "unsupported_operation"), FakeActor("b", "down")])
    assert isinstance(Dispatcher().refusal(made, CHAT, "m"), NoProviderAvailableError)


def test_long_refusals_are_cut() -> None:
    """The text names eight providers at most; the data has them all."""
    made, _ = plan([FakeActor(f"p{number}", "down") for number in range(50)])
    error = Dispatcher().refusal(made, CHAT, "m")
    assert isinstance(error, NoProviderAvailableError)
    assert error.message.count("down") == 8
    assert len(error.passed_over) == 50


def test_proven_targets_go_first_and_the_unproven_before_the_next_tier() -> None:
    """Who has not proven itself serves only where no better one of its tier does."""
    made, targets = plan([FakeActor("a", "unproven"), FakeActor("b")], [FakeActor("c")])
    for _ in range(20):
        choice = Dispatcher().choose(made, CHAT)
        assert choice is not None
        assert (choice.target, choice.resort) == (targets["b"], "healthy")
    made, targets = plan([FakeActor("a", "unproven"), FakeActor("b", "down")], [FakeActor("c")])
    choice = Dispatcher().choose(made, CHAT)
    assert choice is not None
    assert (choice.target, choice.resort) == (targets["a"], "unproven")
    assert choice.passed_over == {"b": "down"}


@pytest.mark.parametrize("reason", ["ejected", "probing"])
def test_last_resort_takes_an_ejected_one_before_refusing(reason: str) -> None:
    """Only when no tier has anybody else; other reasons stay reasons."""
    made, targets = plan([FakeActor("a", reason)], [FakeActor("b")])
    assert chosen(made) is targets["b"]
    made, targets = plan([FakeActor("a", "exhausted"), FakeActor("b", reason)])
    choice = Dispatcher().choose(made, CHAT)
    assert choice is not None
    assert (choice.target, choice.resort) == (targets["b"], "last_resort")


@pytest.mark.parametrize("reason", ["ejected_by_hand", "misconfigured", "exhausted", "overloaded"])
def test_last_resort_forgives_no_other_reason(reason: str) -> None:
    """What people took out, what refuses us and what asked for a pause is left alone."""
    made, _ = plan([FakeActor("a", reason)], [FakeActor("b", reason)])
    assert chosen(made) is None


def test_excluded_targets_get_no_last_resort() -> None:
    """Who has failed this very request is not tried again as a last resort."""
    made, targets = plan([FakeActor("a", "ejected"), FakeActor("b", "ejected")])
    asked = Asked(Operation.CHAT, excluded=[targets["a"]])
    for _ in range(20):
        assert chosen(made, asked) is targets["b"]


def test_each_target_is_looked_at_once_in_a_pick() -> None:
    """What was said first holds, however often the balancer draws the same target."""
    out = [FakeActor("a", "down"), FakeActor("b", "down")]
    made, _ = plan([*out, FakeActor("c", "down")])
    for _ in range(50):
        assert chosen(made) is None
    assert [actor.looks for actor in out] == [50, 50]


def test_facts_are_there_only_for_a_record() -> None:
    """Shares cost a look at each target, so they are noted where a record is kept."""
    made, _ = plan([FakeActor("a", share=0.5)])
    plain = Dispatcher().choose(made, CHAT)
    assert plain is not None
    assert set(plain.facts) == {"drew"}
    told = Dispatcher().choose(made, Asked(Operation.CHAT, recorded=True))
    assert told is not None
    assert told.facts["share"] == {"a": 0.5}
    assert told.facts["drew"]
