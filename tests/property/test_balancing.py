"""Shares of the balancers: statistics with a reason, and exact bounds."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.balancing.balancer import Balancer
from engine.balancing.least_loaded import LeastLoaded
from engine.balancing.smooth_weighted import SmoothWeighted
from engine.balancing.weighted_random import WeightedRandom

PICKS = 100_000

WEIGHTS: list[list[float]] = [
    [1],
    [1, 1],
    [1, 1000],
    [3, 1],
    [0.1, 0.2, 0.7],
    [5, 1, 1, 1, 1, 1, 1, 1],
    [1e9, 1e9, 1],
    [1e-9, 2e-9],
    [float(n) for n in range(1, 41)],
    [1.0] * 200,
]

# Critical values of chi-square for a chance of 1 in 100,000 of a false alarm, from the
# Wilson-Hilferty approximation, good to 1 % here: df * (1 - 2/(9 df) + z sqrt(2/(9 df)))^3.
Z = 4.265


def critical(freedom: int) -> float:
    """The largest chi-square that chance explains."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + Z * spread**0.5) ** 3 * 1.02 + 1)


@dataclass(eq=False, slots=True)
class Target:
    """A target of a balancer."""

    name: int
    weight: float
    load: float = 0.0
    share: float = 1.0


def targets(weights: list[float]) -> list[Target]:
    """Targets with these weights."""
    return [Target(number, weight) for number, weight in enumerate(weights)]


def everybody(_: Target) -> bool:
    """All targets are eligible."""
    return True


def assert_shares(counts: Counter[int], weights: dict[int, float], picks: int) -> None:
    """Each count within 4 standard deviations of its share; all together by chi-square."""
    total = sum(weights.values())
    chi_square, cells = 0.0, 0
    for name, weight in weights.items():
        share = weight / total
        expected = picks * share
        deviation = (picks * share * (1 - share)) ** 0.5
        # A count below 5 expected is no normal distribution: there one more pick is allowed.
        assert abs(counts[name] - expected) <= 4 * deviation + 1
        if expected >= 5:
            chi_square += (counts[name] - expected) ** 2 / expected
            cells += 1
    if cells > 1:
        assert chi_square <= critical(cells - 1)
    assert sum(counts.values()) == picks


@pytest.mark.parametrize("weights", WEIGHTS, ids=lambda weights: str(weights)[:30])
def test_shares_of_weighted_random(weights: list[float], rng: random.Random) -> None:
    """Over 100,000 seeded picks every share is within 4 standard deviations."""
    balancer = WeightedRandom(targets(weights), rng)
    counts = Counter(pick(balancer) for _ in range(PICKS))
    assert_shares(counts, dict(enumerate(weights)), PICKS)


def pick(balancer: Balancer[Target]) -> int:
    """The name of the picked target, when all are eligible."""
    target = balancer.pick(everybody)
    assert target is not None
    return target.name


@pytest.mark.parametrize("excluded", [[0], [1], [0, 1], [0, 2, 3], [4]])
def test_shares_over_the_eligible_are_renormalised(excluded: list[int], rng: random.Random) -> None:
    """Drawing again for a target that is not eligible gives the weights of the others."""
    weights = [50.0, 30.0, 10.0, 6.0, 4.0]
    balancer = WeightedRandom(targets(weights), rng)
    counts: Counter[int] = Counter()
    for _ in range(PICKS):
        target = balancer.pick(lambda t: t.name not in excluded)
        assert target is not None
        counts[target.name] += 1
    rest = {name: weight for name, weight in enumerate(weights) if name not in excluded}
    assert_shares(counts, rest, PICKS)


@pytest.mark.parametrize("excluded", [[], [0], [3]])
@pytest.mark.parametrize(
    "shares", [[0.1, 1, 1, 1], [0.5, 0.25, 1, 1], [0.1, 0.1, 0.1, 0.1], [0.01, 1, 0.01, 0.01]]
)
def test_shares_of_slow_start_count_exactly(
    shares: list[float], excluded: list[int], rng: random.Random
) -> None:
    """What is picked follows weight times share, whether or not some are not eligible."""
    made = targets([5.0, 3.0, 1.0, 10.0])
    for slow, share in zip(made, shares, strict=True):
        slow.share = share
    balancer = WeightedRandom(made, rng)
    counts: Counter[int] = Counter()
    for _ in range(PICKS):
        target = balancer.pick(lambda t: t.name not in excluded)
        assert target is not None
        counts[target.name] += 1
    effective = {t.name: t.weight * t.share for t in made if t.name not in excluded}
    assert_shares(counts, effective, PICKS)


def test_permutation_of_the_targets_permutes_the_shares(rng: random.Random) -> None:
    """The place in the list has no influence on a target's share."""
    weights = {0: 7.0, 1: 2.0, 2: 1.0}
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        balancer = WeightedRandom([Target(name, weights[name]) for name in order], rng)
        counts = Counter(pick(balancer) for _ in range(PICKS // 4))
        assert_shares(counts, weights, PICKS // 4)


weight_lists = st.lists(
    st.floats(min_value=1e-6, max_value=1e6, allow_nan=False), min_size=1, max_size=20
)


@given(weight_lists, st.integers(), st.sets(st.integers(0, 19)))
def test_random_pick_is_eligible_or_none(
    weights: list[float], seed: int, excluded: set[int]
) -> None:
    """Whatever the weights, only eligible targets are picked, and None only if there is none."""
    rng = random.Random(seed)
    for balancer in (
        WeightedRandom(targets(weights), rng),
        SmoothWeighted(targets(weights)),
        LeastLoaded(targets(weights), rng),
    ):
        for _ in range(20):
            target = balancer.pick(lambda t: t.name not in excluded)
            if set(range(len(weights))) <= excluded:
                assert target is None
            else:
                assert target is not None
                assert target.name not in excluded


@given(weight_lists, st.integers())
def test_random_picks_repeat_with_their_seed(weights: list[float], seed: int) -> None:
    """Same weights and same seed: same picks."""
    first = WeightedRandom(targets(weights), random.Random(seed))
    second = WeightedRandom(targets(weights), random.Random(seed))
    assert [pick(first) for _ in range(30)] == [pick(second) for _ in range(30)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_smooth_shares_are_exact(weights: list[int]) -> None:
    """After any number of picks no count is as far as the number of targets from its share."""
    balancer = SmoothWeighted(targets([float(weight) for weight in weights]))
    total = sum(weights)
    counts: Counter[int] = Counter()
    for picks in range(1, 2 * total + 1):
        counts[pick(balancer)] += 1
        for name, weight in enumerate(weights):
            error = abs(counts[name] - picks * weight / total)
            assert error < max(1, len(weights) - 1)
            if len(weights) == 2:
                assert error <= 0.5 + 1e-9
        if picks % total == 0:
            assert [counts[name] for name in range(len(weights))] == [
                weight * picks // total for weight in weights
            ]


@given(weight_lists)
def test_smooth_bound_holds_for_any_weights(weights: list[float]) -> None:
    """The bound does not depend on the weights being whole numbers."""
    balancer = SmoothWeighted(targets(weights))
    counts: Counter[int] = Counter()
    for picks in range(1, 200):
        counts[pick(balancer)] += 1
        for name, weight in enumerate(weights):
            assert (
                abs(counts[name] - picks * weight / sum(weights)) < max(1, len(weights) - 1) + 1e-6
            )


@given(
    st.lists(st.tuples(st.floats(0.1, 100), st.integers(0, 50)), min_size=1, max_size=12),
    st.integers(),
)
def test_least_loaded_picks_the_smallest_load_for_its_weight(
    given_targets: list[tuple[float, int]], seed: int
) -> None:
    """Nobody with less work for its weight is passed over."""
    made = [Target(n, weight, load) for n, (weight, load) in enumerate(given_targets)]
    picked = LeastLoaded(made, random.Random(seed)).pick(everybody)
    assert picked is not None
    assert (picked.load + 1) / picked.weight == min((t.load + 1) / t.weight for t in made)


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(1, 10)), min_size=1, max_size=8),
)
def test_smooth_shares_are_exact_in_slow_start(given_targets: list[tuple[int, int]]) -> None:
    """The bound holds for weight times share as it does for the weight alone."""
    made = [
        Target(n, weight, share=tenths / 10) for n, (weight, tenths) in enumerate(given_targets)
    ]
    effective = [target.weight * target.share for target in made]
    balancer = SmoothWeighted(made)
    counts: Counter[int] = Counter()
    for picks in range(1, 300):
        counts[pick(balancer)] += 1
        for name, weight in enumerate(effective):
            error = abs(counts[name] - picks * weight / sum(effective))
            assert error < max(1, len(made) - 1) + 1e-6


@given(
    st.lists(
        st.tuples(st.floats(0.1, 100), st.floats(0.1, 1), st.integers(0, 50)),
        min_size=1,
        max_size=12,
    ),
    st.integers(),
)
def test_least_loaded_heeds_slow_start(
    given_targets: list[tuple[float, float, int]], seed: int
) -> None:
    """Nobody with less work for its weight and share is passed over."""
    made = [Target(n, w, load, share) for n, (w, share, load) in enumerate(given_targets)]
    picked = LeastLoaded(made, random.Random(seed)).pick(everybody)
    assert picked is not None
    assert (picked.load + 1) / (picked.weight * picked.share) == min(
        (t.load + 1) / (t.weight * t.share) for t in made
    )
