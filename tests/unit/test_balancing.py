"""Balancers: what they refuse, ties, and memory; shares are in tests/property."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from engine.balancing.least_loaded import LeastLoaded
from engine.balancing.smooth_weighted import SmoothWeighted
from engine.balancing.weighted_random import WeightedRandom


@dataclass(eq=False, slots=True)
class Target:
    """A target of a balancer."""

    name: str
    weight: float = 1.0
    load: float = 0.0
    share: float = 1.0


def everybody(_: Target) -> bool:
    """All targets are eligible."""
    return True


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, 0.0], [-1.0], [float("nan")]])
def test_balancers_refuse_what_cannot_be_picked(weights: list[float], rng: random.Random) -> None:
    """A balancer is made of at least one target, all with weights above 0."""
    targets = [Target(str(n), weight) for n, weight in enumerate(weights)]
    for make in (
        lambda: WeightedRandom(targets, rng),
        lambda: SmoothWeighted(targets),
        lambda: LeastLoaded(targets, rng),
    ):
        with pytest.raises(ValueError, match="target"):
            make()


def test_nobody_eligible_is_none(rng: random.Random) -> None:
    """With nobody to pick the answer is None, never an exception."""
    targets = [Target("a"), Target("b")]
    for balancer in (
        WeightedRandom(targets, rng),
        SmoothWeighted(targets),
        LeastLoaded(targets, rng),
    ):
        assert balancer.pick(lambda _: False) is None


class Highest(random.Random):
    """Always draws the largest number below 1."""

    def random(self) -> float:
        """The largest float below 1."""
        return 1 - 2**-53


def test_largest_draw_is_the_last_target() -> None:
    """A product that rounds up to the total does not fall off the end."""
    targets = [Target(str(n), 0.1) for n in range(10)]
    balancer = WeightedRandom(targets, Highest())
    assert balancer.pick(everybody) is targets[-1]
    assert balancer.pick(lambda target: target is not targets[-1]) is targets[-2]


def test_rare_target_is_found_when_it_is_the_only_one(rng: random.Random) -> None:
    """A target with a billionth of the weight serves when nobody else can."""
    rare = Target("rare", 1e-9)
    balancer = WeightedRandom([Target("big", 1e9), rare], rng)
    assert balancer.pick(lambda target: target is rare) is rare


def test_smooth_sequence_is_nginx_own_example() -> None:
    """Weights 5, 1, 1 give a a b a c a a, as nginx documents it."""
    targets = [Target("a", 5), Target("b", 1), Target("c", 1)]
    balancer = SmoothWeighted(targets)
    picked = [balancer.pick(everybody) for _ in range(14)]
    assert "".join(target.name for target in picked if target) == "aabacaa" * 2


def test_smooth_gains_no_credit_while_not_eligible() -> None:
    """A target that was away does not get all that it missed in one burst."""
    targets = [Target("a"), Target("b")]
    balancer = SmoothWeighted(targets)
    for _ in range(50):
        balancer.pick(lambda target: target.name == "a")
    burst = [balancer.pick(everybody) for _ in range(10)]
    assert sum(target is targets[1] for target in burst) <= 6


def test_least_loaded_follows_the_load(rng: random.Random) -> None:
    """Placing requests one by one keeps loads in the proportion of the weights."""
    targets = [Target("a", 1), Target("b", 2), Target("c", 5)]
    balancer = LeastLoaded(targets, rng)
    for _ in range(800):
        target = balancer.pick(everybody)
        assert target is not None
        target.load += 1
    assert [round(target.load, -1) for target in targets] == [100, 200, 500]


def test_least_loaded_breaks_ties_evenly(rng: random.Random) -> None:
    """Of equal idle targets none is favoured: 4 standard deviations over 9,000 picks."""
    targets = [Target(name) for name in "abc"]
    balancer = LeastLoaded(targets, rng)
    counts = Counter(target.name for _ in range(9_000) if (target := balancer.pick(everybody)))
    assert all(abs(count - 3_000) <= 4 * (9_000 * 2 / 9) ** 0.5 for count in counts.values())


def test_slow_start_target_alone_serves(rng: random.Random) -> None:
    """A share is relative to the others: who is alone gets everything."""
    targets = [Target("a", share=0.1)]
    for balancer in (
        WeightedRandom(targets, rng),
        SmoothWeighted(targets),
        LeastLoaded(targets, rng),
    ):
        assert all(balancer.pick(everybody) is targets[0] for _ in range(100))


def test_smooth_follows_a_share_that_changes() -> None:
    """A target at half of its weight has a third beside an equal one, and a half later."""
    targets = [Target("a"), Target("b", share=0.5)]
    balancer = SmoothWeighted(targets)
    assert sum(balancer.pick(everybody) is targets[1] for _ in range(30)) == 10
    targets[1].share = 1.0
    assert sum(balancer.pick(everybody) is targets[1] for _ in range(30)) == 15


def test_least_loaded_places_by_weight_and_share(rng: random.Random) -> None:
    """A target in slow start gets work for the part of its weight that counts."""
    targets = [Target("a", 2), Target("b", 4, share=0.25)]
    balancer = LeastLoaded(targets, rng)
    for _ in range(300):
        target = balancer.pick(everybody)
        assert target is not None
        target.load += 1
    assert [target.load for target in targets] == [200, 100]


class Recorded(random.Random):
    """Draws given numbers, one after the other."""

    def __init__(self, draws: tuple[float, ...]) -> None:
        super().__init__(0)
        self.draws = list(draws)

    def random(self) -> float:
        """The next of the numbers."""
        return self.draws.pop(0)


@pytest.mark.parametrize("make", [WeightedRandom, LeastLoaded])
def test_drawn_numbers_repeat_a_pick(make: type, rng: random.Random) -> None:
    """The random numbers of a pick are all that it takes to make the same one again."""
    targets = [Target(str(n), n + 1, load=n % 2, share=0.3 + 0.1 * (n % 3)) for n in range(9)]
    balancer = make(targets, rng)
    for turn in range(200):
        away = targets[turn % 9]
        picked = balancer.pick(lambda target, away=away: target is not away)
        again = Recorded(balancer.drawn)
        assert make(targets, again).pick(lambda target, away=away: target is not away) is picked
        assert again.draws == []
