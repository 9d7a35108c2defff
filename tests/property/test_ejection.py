"""Provider health as a state machine, beside a model that ticks through time."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.config import EjectionConfig
from engine.errors import (
    ActorCrashedError,
    AdapterError,
    BrokenError,
    CallerError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    DeadlineExceededError,
    ExhaustedError,
    GatewayError,
    MisconfiguredError,
    OverloadedError,
    SilentError,
    StreamTruncatedError,
    TransientError,
)
from engine.resilience.health import HealthReason, ProviderHealth
from engine.resilience.signs_of_life import KEPT_STARTS, SAMPLES

TICK = 0.25
"""All instants are multiples of it, so that sums of them are exact in floating point."""

WINDOW = 10.0
STRETCH = 1.125

FAILURES: list[Callable[[], GatewayError]] = [
    lambda: ConnectError("x"),
    lambda: TransientError("x"),
    lambda: SilentError("x"),
    lambda: BrokenError("x"),
    lambda: AdapterError("x"),
    lambda: ActorCrashedError("x"),
    lambda: StreamTruncatedError("x"),
]
NEUTRAL: list[Callable[[], GatewayError]] = [
    lambda: CallerError("x"),
    lambda: ContextLengthError("x"),
    lambda: ContentFilterError("x"),
    lambda: DeadlineExceededError("x"),
]
HINTS = st.sampled_from([None, 0.0, 2.0, 45.0])


class SteadyStretch(random.Random):
    """Draws every ejection out by the same factor."""

    def uniform(self, a: float, b: float) -> float:
        """The same factor each time."""
        assert a <= STRETCH <= b
        return STRETCH


@dataclass(eq=False)
class Running:
    """An attempt under way."""

    began: float
    probe: bool
    alive: bool = False


class Doubling:
    """The model of a pause."""

    def __init__(self, first: float, longest: float) -> None:
        self.first, self.longest = first, longest
        self.until, self.times = 0.0, 0

    def close(self, now: float, hint: float | None) -> None:
        """Close by the hint, or for twice as long as before."""
        if hint:
            self.until = max(self.until, now + hint)
        elif self.until <= now:
            self.until = now + min(self.longest, self.first * 2**self.times)
            self.times += 1


class Model:
    """What health should be, by the rules read aloud; time passes tick by tick."""

    def __init__(self, config: EjectionConfig) -> None:
        self.config = config
        self.now = 1_000.0
        self.cause: str | None = None
        self.until = 0.0
        self.n = 0
        self.ejections = 0
        self.healthy_for = 0.0
        self.slow_for: float | None = None
        self.in_a_row = 0
        self.failed_checks = 0
        self.attempts: list[tuple[float, bool]] = []
        self.overloaded = Doubling(1.0, 30.0)
        self.exhausted = Doubling(60.0, 3_600.0)
        self.misconfigured = Doubling(30.0, 600.0)
        self.may_eject = True
        self.running: list[Running] = []
        self.silent_starts: list[float] = []
        self.times: list[float] = []

    def tick(self) -> None:
        """A quarter of a second passes."""
        self.now += TICK
        if self.cause is None:
            self.healthy_for += TICK
            if self.healthy_for == WINDOW:
                self.n, self.healthy_for = max(0, self.n - 1), 0.0
        if self.slow_for is not None:
            self.slow_for += TICK
            if self.slow_for >= self.config.slow_start:
                self.slow_for = None

    @property
    def out(self) -> bool:
        """Whether its time out of rotation is not over."""
        return self.cause is not None and self.now < self.until

    @property
    def probing(self) -> bool:
        """Whether a probe is under way."""
        return any(attempt.probe for attempt in self.running)

    @property
    def share(self) -> float:
        """The slow start factor."""
        if self.slow_for is None:
            return 1.0
        return max(0.1, self.slow_for / self.config.slow_start)

    def reason(self, in_flight: int) -> str | None:
        """Why it must not be picked."""
        if self.out and self.cause != "ejected":
            return self.cause
        for word, pause in (("exhausted", self.exhausted), ("overloaded", self.overloaded)):
            if pause.until > self.now:
                return word
        if self.out:
            return "ejected"
        if self.cause is not None:
            return "probing" if self.probing else None
        if in_flight >= self.config.unproven_concurrency:
            unproven = self.in_a_row > 0 or self.share < 1
            return "unproven" if unproven or self.silent else None
        return None

    @property
    def silent(self) -> bool:
        """Whether so many take longer than all but one in a thousand such groups would."""
        needed = self.config.unproven_concurrency
        open_for = [self.now - start for start in self.silent_starts][needed - 1 : needed]
        return any(seconds > self.patience for seconds in open_for)

    @property
    def patience(self) -> float:
        """How long they may be silent: the smallest time that enough answers stay within."""
        within = sorted(self.times[-SAMPLES:])
        for number, seconds in enumerate(within, start=1):
            longer = max(0.0, 1 - number / len(within))
            if longer**self.config.unproven_concurrency <= 1 / 1_000:
                return max(0.25, seconds)
        return 1.0

    def alive(self, attempt: Running) -> None:
        """A first sign of life."""
        attempt.alive = True
        self.times.append(self.now - attempt.began)
        self.silent_starts = [start for start in self.silent_starts if start > attempt.began]

    def eject(self) -> None:
        """Out by a rule."""
        self.n = min(self.n + 1, max(1, -int(-self.config.max // self.config.base)))
        seconds = min(self.config.max, self.config.base * self.n * STRETCH)
        self.leave("ejected", self.now + seconds)
        self.ejections += 1

    def leave(self, cause: str, until: float) -> None:
        """Out of rotation."""
        self.cause, self.until, self.slow_for = cause, until, None

    def come_back(self) -> None:
        """Return by slow start."""
        self.cause, self.healthy_for = None, 0.0
        self.slow_for = 0.0 if self.config.slow_start else None
        self.misconfigured = Doubling(30.0, 600.0)
        self.forget()

    def forget(self) -> None:
        """Nothing of the past counts."""
        self.in_a_row, self.failed_checks, self.attempts = 0, 0, []

    def rate(self) -> tuple[int, int]:
        """Attempts and failures in the ten parts of the window up to the one of now."""
        since = self.now // (WINDOW / 10) - 10
        recent = [failed for at, failed in self.attempts if at // (WINDOW / 10) > since]
        return len(recent), sum(recent)

    def failed(self, attempt: Running) -> None:
        """A failure that counts."""
        self.in_a_row += 1
        self.attempts.append((self.now, True))
        if self.cause is not None:
            if attempt.probe and not self.out:
                self.eject()
            return
        self.healthy_for = 0.0
        attempts, failures = self.rate()
        rules = self.config
        by_rate = attempts >= rules.min_requests and failures / attempts >= rules.failure_rate
        if (rules.consecutive_failures and self.in_a_row >= rules.consecutive_failures) or (
            rules.failure_rate and by_rate and self.may_eject
        ):
            self.eject()

    def refused(self, attempt: Running) -> None:
        """The provider refuses us."""
        if self.out and self.cause == "ejected_by_hand":
            return
        if self.cause == "misconfigured" and (self.out or not attempt.probe):
            return
        self.misconfigured.close(self.now, None)
        until = max(self.misconfigured.until, self.until if self.out else 0.0)
        self.leave("misconfigured", until)


class HealthMachine(RuleBasedStateMachine):
    """Time, attempts and their ends, checks and people's orders, in any order."""

    @initialize(
        config=st.builds(
            EjectionConfig,
            consecutive_failures=st.integers(0, 4),
            failure_rate=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
            window=st.just(WINDOW),
            min_requests=st.integers(1, 6),
            base=st.sampled_from([1.0, 5.0]),
            max=st.sampled_from([0.5, 8.0, 30.0]),
            slow_start=st.sampled_from([0.0, 10.0, 30.0]),
            unproven_concurrency=st.integers(1, 3),
        )
    )
    def make(self, config: EjectionConfig) -> None:
        self.config = config
        self.model = Model(self.config)
        self.rng = SteadyStretch()
        self.health = ProviderHealth(self.config, self.rng, may_eject=lambda: self.model.may_eject)

    @property
    def now(self) -> float:
        """The instant."""
        return self.model.now

    @rule(ticks=st.one_of(st.integers(1, 8), st.integers(1, 200)))
    def wait(self, ticks: int) -> None:
        for _ in range(ticks):
            self.model.tick()

    @precondition(lambda self: len(self.model.running) < 8)
    @rule()
    def begin(self) -> None:
        model = self.model
        allowed = model.cause == "ejected" or not model.out
        expected = model.cause is not None and not model.probing and allowed
        probe = self.health.begin(self.now)
        assert probe is expected
        self.health.note_start(self.now)
        model.silent_starts.append(self.now)
        model.running.append(Running(self.now, probe))

    def take(self, data: st.DataObject) -> Running:
        """An attempt that ends now."""
        attempt = data.draw(st.sampled_from(self.model.running))
        self.model.running.remove(attempt)
        return attempt

    @precondition(lambda self: any(not attempt.alive for attempt in self.model.running))
    @rule(data=st.data())
    def show_life(self, data: st.DataObject) -> None:
        silent = [attempt for attempt in self.model.running if not attempt.alive]
        attempt = data.draw(st.sampled_from(silent))
        self.health.note_alive(self.now, self.now - attempt.began)
        self.model.alive(attempt)

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        model, attempt = self.model, self.take(data)
        seconds = None if attempt.alive else self.now - attempt.began
        self.health.note_success(self.now, seconds, attempt.probe)
        if not attempt.alive:
            model.alive(attempt)
        model.attempts.append((self.now, False))
        model.in_a_row = model.overloaded.times = model.exhausted.times = 0
        if attempt.probe and (model.cause == "ejected" or (model.cause and not model.out)):
            model.come_back()

    @precondition(lambda self: self.model.running)
    @rule(data=st.data(), error=st.sampled_from(FAILURES))
    def fail(self, data: st.DataObject, error: Callable[[], GatewayError]) -> None:
        attempt = self.take(data)
        self.health.note_failure(error(), self.now, attempt.probe)
        self.model.failed(attempt)

    @precondition(lambda self: self.model.running)
    @rule(data=st.data(), error=st.sampled_from(NEUTRAL))
    def fail_for_other_reasons(
        self, data: st.DataObject, error: Callable[[], GatewayError]
    ) -> None:
        attempt, failure = self.take(data), error()
        self.health.note_failure(failure, self.now, attempt.probe)
        if not isinstance(failure, DeadlineExceededError):
            self.model.silent_starts.clear()

    @precondition(lambda self: self.model.running)
    @rule(data=st.data(), hint=HINTS, exhausted=st.booleans())
    def be_put_off(self, data: st.DataObject, hint: float | None, exhausted: bool) -> None:
        attempt = self.take(data)
        kind = ExhaustedError if exhausted else OverloadedError
        self.health.note_failure(kind("x", retry_after=hint), self.now, attempt.probe)
        pause = self.model.exhausted if exhausted else self.model.overloaded
        pause.close(self.now, hint)
        self.model.silent_starts.clear()

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def be_refused(self, data: st.DataObject) -> None:
        attempt = self.take(data)
        error = MisconfiguredError("x", provider="p", upstream_status=401)
        self.health.note_failure(error, self.now, attempt.probe)
        self.model.silent_starts.clear()
        self.model.refused(attempt)

    @precondition(lambda self: self.model.running)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.health.note_nothing(self.now, self.take(data).probe)

    @rule(ok=st.booleans(), failures=st.integers(1, 3))
    def check(self, ok: bool, failures: int) -> None:
        self.health.note_check(ok, self.now, failures)
        model = self.model
        if ok:
            model.failed_checks = 0
            if model.cause == "ejected":
                model.come_back()
            return
        model.failed_checks += 1
        if model.failed_checks >= failures and not model.out:
            model.eject()

    @rule(seconds=st.one_of(st.none(), st.sampled_from([0.0, 3.0, 60.0])))
    def eject(self, seconds: float | None) -> None:
        self.health.eject(self.now, seconds)
        until = self.now + seconds if seconds is not None else float("inf")
        if self.model.cause not in {None, "ejected_by_hand"}:
            until = max(until, self.model.until)
        self.model.leave("ejected_by_hand", until)

    @rule()
    def restore(self) -> None:
        self.health.restore(self.now)
        model = self.model
        if model.cause is not None:
            model.come_back()
        model.n = 0
        model.overloaded, model.exhausted = Doubling(1.0, 30.0), Doubling(60.0, 3_600.0)
        model.forget()

    @rule(may_eject=st.booleans())
    def cap_ejections(self, may_eject: bool) -> None:
        self.model.may_eject = may_eject

    @rule()
    def look(self) -> None:
        """Asking may tidy up; the invariants ask a copy, so that it is not always tidy."""
        self.health.unavailable(self.now, 0)
        self.health.share(self.now)
        self.health.status(self.now)

    @invariant()
    def health_is_as_the_model_says(self) -> None:
        if not hasattr(self, "health"):
            return
        health = self.copied()
        for in_flight in (0, 1, 2, 3, len(self.model.running), 50):
            assert health.unavailable(self.now, in_flight) == self.model.reason(in_flight)
        self.check_time_left(self.copied())
        self.check_status(self.copied())
        assert sum(attempt.probe for attempt in self.model.running) <= 1
        assert len(health.signs._samples) <= SAMPLES
        assert len(health.signs._starts) <= KEPT_STARTS
        assert len(health._window._past) <= 9
        assert len(health.failed) <= 10

    def copied(self) -> ProviderHealth:
        """A copy to ask, with the same configuration and chance."""
        kept = {id(self.config): self.config, id(self.rng): self.rng}
        return copy.deepcopy(self.health, kept)

    def check_time_left(self, health: ProviderHealth) -> None:
        """What is asked for the time agrees with what is asked for the reason."""
        left = health.available_in(self.now)
        reason = health.unavailable(self.now, 0)
        assert (left > 0) is (reason is not None)
        assert reason != HealthReason.EJECTED or left <= self.config.max
        status = health.status(self.now)
        assert status.seconds_left is None or status.seconds_left > 0

    def check_status(self, health: ProviderHealth) -> None:
        """The snapshot holds what the model holds."""
        model, full = self.model, health.full_share
        share, status = health.share(self.now), health.status(self.now)
        assert status.share == share == model.share
        assert 0.1 <= share <= 1
        assert not full or share == 1
        assert status.consecutive_failures == model.in_a_row
        attempts, failures = model.rate()
        assert status.failure_rate == (failures / attempts if attempts else None)
        assert status.ejections == model.ejections
        assert (status.state == "healthy") is (status.reason is None)
        assert health._ejection.in_a_row(self.now) == model.n
        assert model.n <= max(1, self.config.max / self.config.base + 1)


TestHealth = HealthMachine.TestCase
