"""The retry budget as a state machine, and what it means for the load upstream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine import RetryBudgetConfig
from engine.resilience.retry_budget import RetryBudget

ROUNDING = 1e-6
"""Some hundred additions of floats in different orders."""

configs = st.builds(
    RetryBudgetConfig,
    capacity=st.integers(1, 20),
    per_success=st.floats(0, 1),
    per_second=st.floats(0, 10),
    max_share=st.floats(0, 1),
    min_concurrency=st.integers(0, 10),
)


class RetryBudgetMachine(RuleBasedStateMachine):
    """Successes, repeats and their ends in any order."""

    budget: RetryBudget

    @initialize(config=configs)
    def make(self, config: RetryBudgetConfig) -> None:
        self.config = config
        self.now = 1_000.0
        self.budget = RetryBudget(config, lambda: self.now)
        self.level = float(config.capacity)
        self.repeats = self.taken = self.denied = 0
        self.gained = self.spent = 0.0

    def gain(self, tokens: float) -> None:
        self.gained += tokens
        self.level = min(self.config.capacity, self.level + tokens)

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        before = self.now
        self.now += seconds
        self.gain((self.now - before) * self.config.per_second)

    @rule()
    def first_success(self) -> None:
        self.budget.first_successes += 1
        self.gain(self.config.per_success)

    @rule(in_flight=st.integers(0, 30), cost=st.sampled_from([0.5, 1.0]))
    def take(self, in_flight: int, cost: float) -> None:
        allowed = self.budget.try_take(in_flight, cost)
        slots = max(self.config.min_concurrency, self.config.max_share * in_flight)
        if abs(self.level - cost) > ROUNDING:
            assert allowed == (self.level >= cost and self.repeats < slots)
        if allowed:
            assert self.repeats < slots
            self.repeats += 1
            self.taken += 1
            self.spent += cost
            self.level -= cost
        else:
            self.denied += 1

    @precondition(lambda self: self.repeats)
    @rule()
    def end(self) -> None:
        self.budget.give_back_slot()
        self.repeats -= 1

    @precondition(lambda self: not self.repeats)
    @rule()
    def end_twice(self) -> None:
        with pytest.raises(RuntimeError):
            self.budget.give_back_slot()

    @invariant()
    def level_is_within_the_bucket(self) -> None:
        level = self.budget.level
        assert 0 <= level <= self.config.capacity
        assert level == pytest.approx(self.level, abs=ROUNDING)

    @invariant()
    def counts_agree(self) -> None:
        budget = self.budget
        assert budget.repeats == self.repeats >= 0
        assert (budget.taken, budget.denied) == (self.taken, self.denied)

    @invariant()
    def nothing_is_spent_that_was_not_gained(self) -> None:
        assert self.spent <= self.config.capacity + self.gained + ROUNDING


TestRetryBudget = RetryBudgetMachine.TestCase


@given(
    config=configs,
    requests=st.lists(
        st.tuples(st.floats(0, 1), st.lists(st.booleans(), min_size=4, max_size=4)), max_size=200
    ),
    cost=st.sampled_from([0.5, 1.0]),
)
def test_amplification_is_bounded(
    config: RetryBudgetConfig, requests: list[tuple[float, list[bool]]], cost: float
) -> None:
    """Whatever fails when: repeats <= (capacity + gains by success and by time) / cost."""
    now = 0.0
    budget = RetryBudget(config, lambda: now)
    attempts = first_successes = 0
    for pause, failures in requests:
        now += pause
        for number, failed in enumerate(failures):
            if number and not budget.try_take(len(requests), cost):
                break
            attempts += 1
            if number:
                budget.give_back_slot()
            if not failed:
                if not number:
                    first_successes += 1
                    budget.first_successes += 1
                break
    gained = config.per_success * first_successes + config.per_second * now
    bound = (config.capacity + gained) / cost
    assert attempts <= len(requests) + bound + ROUNDING
    assert attempts - len(requests) == budget.taken
