"""A further attempt needs leave from its provider's budget and from the router's."""

import pytest

from engine import ConnectError, RetryBudgetConfig, TransientError
from engine.repeat_permits import RepeatPermits
from engine.resilience.retry_budget import RetryBudget


def clock() -> float:
    """Time stands still."""
    return 0.0


def budget(capacity: int = 10, slots: int = 10) -> RetryBudget:
    """A budget that gains nothing by itself."""
    settings = {"capacity": capacity, "per_second": 0, "per_success": 0.5, "max_share": 0}
    return RetryBudget(
        RetryBudgetConfig.model_validate({**settings, "min_concurrency": slots}), clock
    )


def test_both_budgets_pay() -> None:
    """What is taken is taken from both, and both count the slot."""
    own, permits = budget(), RepeatPermits(budget(), lambda: 1)
    assert permits.take(own, 1, TransientError("x")) == (own, permits.shared)
    assert (own.level, permits.shared.level) == (9, 9)
    assert (own.repeats, permits.shared.repeats) == (1, 1)


@pytest.mark.parametrize("failure", [TransientError("x"), None])
def test_a_repeat_and_a_hedge_cost_one(failure: TransientError | None) -> None:
    """A second call is a second call, whatever it is for."""
    own, permits = budget(), RepeatPermits(budget(), lambda: 1)
    permits.take(own, 1, failure)
    assert own.level == 9


def test_going_on_after_a_refused_connection_costs_half() -> None:
    """Who could not be reached did no work."""
    own, permits = budget(), RepeatPermits(budget(), lambda: 1)
    permits.take(own, 1, ConnectError("x"))
    assert (own.level, permits.shared.level) == (9.5, 9.5)


def test_own_budget_that_denies_costs_the_shared_one_nothing() -> None:
    """A provider that may not be asked again takes nothing from the others."""
    own, permits = budget(slots=0), RepeatPermits(budget(), lambda: 1)
    assert permits.take(own, 1, TransientError("x")) is None
    assert (permits.shared.level, permits.shared.repeats) == (10, 0)
    assert (own.denied, permits.shared.denied) == (1, 0)


def test_shared_budget_that_denies_gives_the_own_slot_back() -> None:
    """Nothing is under way after a refusal."""
    own, permits = budget(), RepeatPermits(budget(slots=0), lambda: 1)
    assert permits.take(own, 1, TransientError("x")) is None
    assert (own.repeats, permits.shared.repeats) == (0, 0)
    assert permits.shared.denied == 1


def test_shared_budget_looks_at_all_that_is_in_flight() -> None:
    """Its bound on repeats follows the requests of the whole router."""
    settings = {"capacity": 10, "max_share": 0.5, "min_concurrency": 0}
    shared = RetryBudget(RetryBudgetConfig.model_validate(settings), clock)
    in_flight = 2
    permits = RepeatPermits(shared, lambda: in_flight)
    assert permits.take(budget(), 1, None) is not None
    assert permits.take(budget(), 1, None) is None
    in_flight = 4
    assert permits.take(budget(), 1, None) is not None


def test_first_success_pays_into_both() -> None:
    """What goes well earns the repeats of what does not."""
    own, permits = budget(), RepeatPermits(budget(), lambda: 1)
    permits.take(own, 1, None)
    permits.first_success(own)
    assert (own.level, permits.shared.level) == (9.5, 9.5)
