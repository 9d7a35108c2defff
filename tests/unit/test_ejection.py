"""When a provider is ejected, for how long, and how it returns."""

import random
from typing import Any

import pytest

from engine.config import EjectionConfig
from engine.errors import (
    ActorCrashedError,
    AdapterError,
    BrokenError,
    CallerError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    OverloadedError,
    ProviderError,
    SilentError,
    StreamTruncatedError,
    TransientError,
)
from engine.resilience.failure_window import FailureWindow
from engine.resilience.health import ProviderHealth


def make(*, rate: float = 0.0, **rules: Any) -> ProviderHealth:
    """Health by the default rules, but for these; without a rule for the rate."""
    return ProviderHealth(EjectionConfig(failure_rate=rate, **rules), random.Random(1))


def fail(health: ProviderHealth, now: float, times: int = 5) -> None:
    """So many failures."""
    for _ in range(times):
        health.note_failure(TransientError("x"), now)


def serve(health: ProviderHealth, now: float, times: int = 1) -> None:
    """So many successes."""
    for _ in range(times):
        health.note_success(now, 0.1)


def ejected(**rules: Any) -> tuple[ProviderHealth, float]:
    """A provider that was ejected at 100, and the instant at which it is half open."""
    health = make(**rules)
    fail(health, 100.0)
    return health, 100.0 + health.available_in(100.0)


# ── rules ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error",
    [
        ConnectError,
        TransientError,
        SilentError,
        BrokenError,
        AdapterError,
        ActorCrashedError,
        StreamTruncatedError,
    ],
)
def test_failures_in_a_row_eject(error: type[ProviderError]) -> None:
    """Five failures in a row eject, and not four, whatever their class."""
    health = make()
    for _ in range(4):
        health.note_failure(error("x"), 100.0)
    assert health.unavailable(100.0, 0) is None
    health.note_failure(error("x"), 100.0)
    assert health.unavailable(100.0, 0) == "ejected"
    assert health.status(100.0).reason == f"5 failures in a row, the last: {error.error_class}"


@pytest.mark.parametrize(
    "error", [CallerError("x"), ContextLengthError("x"), ContentFilterError("x"), None]
)
def test_errors_that_say_nothing_of_the_provider_never_eject(error: ProviderError | None) -> None:
    """A caller's mistakes are no failures of the provider."""
    health = make(rate=0.1, min_requests=1)
    for _ in range(100):
        health.note_failure(error, 100.0)
    assert health.unavailable(100.0, 0) is None
    assert health.status(100.0).failure_rate is None


def test_overload_is_no_failure() -> None:
    """A provider that says "not now" is closed for a while but never ejected."""
    health = make(rate=0.1, min_requests=1)
    for _ in range(100):
        health.note_failure(OverloadedError("x"), 100.0)
    assert health.unavailable(100.0, 0) == "overloaded"
    assert not health.ejected


def test_a_success_breaks_the_row() -> None:
    """Four failures, a success and four failures are not five in a row."""
    health = make()
    for _ in range(10):
        fail(health, 100.0, 4)
        serve(health, 100.0)
    assert health.unavailable(100.0, 0) is None


def test_a_rule_of_zero_is_off() -> None:
    """With both rules off nothing ejects."""
    health = make(consecutive_failures=0)
    fail(health, 100.0, 1_000)
    assert health.unavailable(100.0, 0) is None


def test_failure_rate_ejects() -> None:
    """Half of ten attempts in the window eject, and not of nine."""
    health = make(rate=0.5)
    for at in range(4):
        serve(health, 100.0 + at)
        fail(health, 100.0 + at, 1)
    serve(health, 104.0)
    assert health.unavailable(104.0, 0) is None
    fail(health, 104.0, 1)
    assert health.unavailable(104.0, 0) == "ejected"
    assert health.status(104.0).reason == "5 of 10 attempts failed within 30 s"


def test_failure_rate_forgets_what_left_the_window() -> None:
    """Failures of half a minute ago do not count with the new ones."""
    health = make(rate=0.5)
    fail(health, 100.0, 4)
    serve(health, 100.0, 5)
    fail(health, 131.0, 1)
    assert health.unavailable(131.0, 0) is None


def test_failure_rate_asks_whether_one_more_may_be_ejected() -> None:
    """The cap holds the rate rule back, but not the rule of failures in a row."""
    allowed = False
    health = ProviderHealth(
        EjectionConfig(consecutive_failures=20, min_requests=5),
        random.Random(1),
        may_eject=lambda: allowed,
    )
    fail(health, 100.0, 19)
    assert health.unavailable(100.0, 0) is None
    fail(health, 100.0, 1)
    assert health.unavailable(100.0, 0) == "ejected"


def test_window_slides() -> None:
    """Nothing is counted that is older than the window, all of its last nine tenths is."""
    window = FailureWindow(10.0)
    for second in range(100, 120):
        window.note_failure(second + 0.5)
    assert window.totals(119.9) == (10, 10)
    assert window.totals(121.9) == (8, 8)
    window.note_success(128.0)
    assert window.totals(128.0) == (2, 1)
    assert window.totals(1e9) == (0, 0)


# ── time out ─────────────────────────────────────────────────────────────────────


def test_ejection_time_grows_is_jittered_and_has_an_end() -> None:
    """The n-th ejection in a row lasts n times the base, up to a fifth more, never over max."""
    rng = random.Random(7)
    spread = set()
    for _ in range(50):
        health = ProviderHealth(EjectionConfig(), rng)
        fail(health, 100.0)
        now = 100.0
        for n in range(1, 12):
            left = health.available_in(now)
            assert min(30.0, 5.0 * n) - 1e-9 <= left <= min(30.0, 6.0 * n) + 1e-9
            spread.add(round(left, 6))
            now += left
            assert health.begin(now)
            health.note_failure(TransientError("x"), now, probe=True)
        assert health.status(now).ejections == 12
    assert len(spread) > 100


def test_each_healthy_window_takes_one_ejection_back() -> None:
    """After two windows without a failure the third ejection is as short as the first."""
    health, now = ejected()
    for _ in range(2):
        assert health.begin(now)
        health.note_failure(TransientError("x"), now, probe=True)
        now += health.available_in(now)
    assert health.begin(now)
    health.note_success(now, 0.1, probe=True)
    now += 91.0
    fail(health, now)
    assert 5.0 <= health.available_in(now) <= 6.0


def test_a_failure_begins_the_healthy_window_anew() -> None:
    """With a failure every 20 seconds, no window of 30 is healthy."""
    health, now = ejected()
    health.begin(now)
    health.note_success(now, 0.1, probe=True)
    for _ in range(10):
        now += 20.0
        fail(health, now, 1)
        serve(health, now)
    fail(health, now)
    assert health.available_in(now) >= 10.0


# ── half open ────────────────────────────────────────────────────────────────────


def test_half_open_lets_one_probe_through() -> None:
    """After its time exactly one live request tries the provider out."""
    health, now = ejected()
    assert health.unavailable(now - 0.01, 0) == "ejected"
    assert health.unavailable(now, 0) is None
    assert health.status(now).state == "half_open"
    assert health.begin(now)
    assert health.unavailable(now, 1) == "probing"
    assert health.available_in(now) == 1.0
    assert not health.begin(now)


def test_probe_that_succeeds_brings_the_provider_back() -> None:
    """Success of the probe ends the ejection, and its old failures no longer count."""
    health, now = ejected(rate=0.1, min_requests=5)
    assert health.begin(now)
    health.note_success(now, 0.1, probe=True)
    assert health.unavailable(now, 0) is None
    assert health.status(now).state == "slow_start"
    assert health.status(now).consecutive_failures == 0
    fail(health, now, 1)
    assert not health.ejected


def test_probe_that_is_cancelled_is_no_result() -> None:
    """The next request may be the probe when the caller of the first has left."""
    health, now = ejected()
    assert health.begin(now)
    health.note_nothing(now, probe=True)
    assert health.unavailable(now, 0) is None
    assert health.begin(now)


@pytest.mark.parametrize("error", [CallerError("x"), None])
def test_probe_that_says_nothing_is_given_back(error: ProviderError | None) -> None:
    """A caller's mistake does not decide about the provider."""
    health, now = ejected()
    assert health.begin(now)
    health.note_failure(error, now, probe=True)
    assert health.status(now).state == "half_open"
    assert health.begin(now)


def test_late_ends_of_other_attempts_do_not_decide() -> None:
    """Only the probe opens or closes a half-open provider."""
    health, now = ejected()
    assert health.begin(now)
    serve(health, now)
    assert health.unavailable(now, 1) == "probing"
    fail(health, now)
    health.note_success(now, 0.1, probe=True)
    assert not health.ejected


def test_early_probe_can_only_help() -> None:
    """An attempt that is made as a last resort brings back, but does not eject for longer."""
    health, half_open = ejected()
    assert health.begin(101.0)
    health.note_failure(TransientError("x"), 101.0, probe=True)
    assert health.available_in(101.0) == pytest.approx(half_open - 101.0)
    assert health.status(101.0).ejections == 1
    assert health.begin(102.0)
    health.note_success(102.0, 0.1, probe=True)
    assert health.unavailable(102.0, 0) is None


# ── slow start ───────────────────────────────────────────────────────────────────


def returned(**rules: Any) -> ProviderHealth:
    """A provider whose probe succeeded at 200."""
    health, _ = ejected(**rules)
    assert health.begin(200.0)
    health.note_success(200.0, 0.1, probe=True)
    return health


def test_slow_start_grows_to_the_full_share() -> None:
    """The share is a tenth at first, then the part of the slow start that has passed."""
    health = returned()
    assert not health.full_share
    assert [health.share(200.0 + at) for at in (0, 1, 15, 24)] == pytest.approx(
        [0.1, 0.1, 0.5, 0.8]
    )
    assert health.status(215.0).seconds_left == pytest.approx(15.0)
    assert health.share(230.0) == 1.0
    assert health.full_share


def test_slow_start_may_be_off() -> None:
    """With slow_start 0 the provider returns to its full share at once."""
    health = returned(slow_start=0)
    assert health.full_share
    assert health.share(200.0) == 1.0
    assert health.status(200.0).state == "healthy"


def test_slow_start_bounds_the_attempts_in_flight() -> None:
    """Until slow start is over, a provider with ten in flight is unproven."""
    health = returned()
    assert health.unavailable(201.0, 9) is None
    assert health.unavailable(201.0, 10) == "unproven"
    health.note_alive(230.0, 0.1)
    assert health.unavailable(230.0, 10) is None


# ── checks, and by hand ──────────────────────────────────────────────────────────


def test_failed_checks_in_a_row_eject() -> None:
    """Three failed checks in a row eject, a good one between them begins anew."""
    health = make()
    for ok in (False, False, True, False, False):
        health.note_check(ok, 100.0, 3)
    assert health.unavailable(100.0, 0) is None
    health.note_check(False, 100.0, 3)
    assert health.unavailable(100.0, 0) == "ejected"
    assert health.status(100.0).reason == "3 failed checks in a row"


def test_good_check_ends_an_ejection_early() -> None:
    """A check that finds the provider well brings it back by slow start."""
    health, _ = ejected()
    health.note_check(True, 101.0, 3)
    assert health.unavailable(101.0, 0) is None
    assert health.share(101.0) == 0.1


def test_failed_checks_go_on_ejecting() -> None:
    """No live request is spent on a provider whose checks still fail."""
    health = make()
    for _ in range(3):
        health.note_check(False, 100.0, 3)
    half_open = 100.0 + health.available_in(100.0)
    health.note_check(False, half_open, 3)
    assert health.unavailable(half_open, 0) == "ejected"
    assert health.available_in(half_open) >= 10.0


def test_ejection_by_hand_lasts_until_restore() -> None:
    """Neither time nor checks nor attempts end it, but `restore` does, by slow start."""
    health = make()
    health.eject(100.0)
    health.note_check(True, 101.0, 3)
    serve(health, 102.0)
    assert health.unavailable(1e9, 0) == "ejected_by_hand"
    assert health.available_in(1e9) == float("inf")
    assert health.status(1e9).seconds_left is None
    assert not health.begin(1e9)
    health.restore(1e9)
    assert health.unavailable(1e9, 0) is None
    assert health.share(1e9) == 0.1


def test_ejection_by_hand_for_some_seconds_ends_with_a_probe() -> None:
    """After its time, one live request shows whether the provider is back."""
    health = make()
    health.eject(100.0, 60.0)
    assert health.status(110.0).seconds_left == 50.0
    assert health.unavailable(160.0, 0) is None
    assert health.begin(160.0)
    assert health.unavailable(160.0, 1) == "probing"


def test_ejection_by_hand_heals_before_it_begins() -> None:
    """Healthy windows before an ejection by hand count, the time outside does not."""
    health = returned()
    health.eject(265.0)
    health.restore(10_000.0)
    fail(health, 10_000.0)
    assert health.available_in(10_000.0) <= 6.0


def test_restore_forgets_the_past() -> None:
    """After `restore` the next ejection is a first one, and old failures do not count."""
    health, now = ejected()
    for _ in range(4):
        assert health.begin(now)
        health.note_failure(TransientError("x"), now, probe=True)
        now += health.available_in(now)
    health.restore(now)
    fail(health, now, 4)
    assert not health.ejected
    fail(health, now, 1)
    assert health.available_in(now) <= 6.0
