"""How many requests may be hedged."""

import pytest

from engine.resilience.hedge_budget import BURST, HedgeBudget


def test_no_hedge_before_requests_have_paid_for_it() -> None:
    """The share holds from the first request on."""
    budget = HedgeBudget(0.25)
    allowed = []
    for _ in range(8):
        budget.request()
        allowed.append(budget.try_take())
    assert allowed == [False, False, False, True] * 2
    assert (budget.requests, budget.taken, budget.denied) == (8, 2, 6)


@pytest.mark.parametrize("share", [0, 0.02, 0.1, 0.5, 1])
def test_hedges_stay_within_their_share(share: float) -> None:
    """However often one asks, and nearly all of the share can be used."""
    budget = HedgeBudget(share)
    for count in range(1, 5_001):
        budget.request()
        while budget.try_take():
            pass
        assert budget.taken <= share * count + 1e-9
    assert budget.taken >= share * 5_000 - 1.001


def test_savings_are_bounded() -> None:
    """A quiet hour does not buy a flood of hedges."""
    budget = HedgeBudget(0.5)
    for _ in range(10_000):
        budget.request()
    assert sum(budget.try_take() for _ in range(100)) == BURST


def test_share_of_nothing_allows_nothing() -> None:
    """Zero switches hedging off."""
    budget = HedgeBudget(0)
    for _ in range(1_000):
        budget.request()
    assert not budget.try_take()
