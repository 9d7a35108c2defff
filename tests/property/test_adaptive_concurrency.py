"""The adaptive limit as a state machine: within its bounds, one step at a time."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine import AdaptiveConcurrencyConfig
from engine.resilience.adaptive_concurrency import UNKNOWN_LATENCY, AdaptiveConcurrency


class AdaptiveConcurrencyMachine(RuleBasedStateMachine):
    """Successes and drops in any order and at any speed."""

    limiter: AdaptiveConcurrency

    @initialize(initial=st.integers(1, 50), least=st.integers(1, 20), maximum=st.integers(1, 50))
    def make(self, initial: int, least: int, maximum: int) -> None:
        self.now = 1_000.0
        self.least, self.maximum = min(least, maximum), maximum
        self.limiter = AdaptiveConcurrency(
            AdaptiveConcurrencyConfig(initial=initial, min=least), maximum, lambda: self.now
        )
        self.latencies: list[float] = []
        self.quiet_until = 0.0
        self.successes = self.drops = 0

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(used=st.floats(0, 1), seconds=st.floats(0, 60), times=st.integers(1, 60))
    def succeed(self, used: float, seconds: float, times: int) -> None:
        for _ in range(times):
            before = self.limiter.limit
            in_flight = max(1, round(before * used))
            self.limiter.note_success(in_flight, seconds)
            self.latencies.append(seconds)
            if in_flight * 2 < before:
                assert self.limiter.limit == before
                continue
            self.successes += 1
            if self.successes < before:
                assert self.limiter.limit == before
            else:
                assert self.limiter.limit == min(before + 1, self.maximum)
                self.successes = 0

    @rule(asks_clock=st.booleans())
    def drop(self, asks_clock: bool) -> None:
        before = self.limiter.limit
        self.limiter.note_drop(None if asks_clock else self.now)
        self.drops += 1
        after = self.limiter.limit
        if self.now < self.quiet_until:
            assert after == before
            return
        assert after == max(self.least, before - (before + 9) // 10)
        last = sorted(self.latencies[-100:])
        self.quiet_until = self.now + (last[len(last) // 2] if last else UNKNOWN_LATENCY)
        self.successes = 0

    @invariant()
    def limit_is_within_its_bounds(self) -> None:
        assert 1 <= self.least <= self.limiter.limit <= self.maximum
        assert self.limiter.drops == self.drops


TestAdaptiveConcurrency = AdaptiveConcurrencyMachine.TestCase
