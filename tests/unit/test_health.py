"""Pauses that a provider asks for, refusals, unproven and silent providers, and times."""

import logging
import random
from typing import Any

import pytest

from engine.config import EjectionConfig
from engine.errors import (
    CallerError,
    ConnectError,
    ErrorClass,
    ExhaustedError,
    MisconfiguredError,
    OverloadedError,
    TransientError,
)
from engine.resilience.health import LAST_RESORT, SOFT, HealthReason, ProviderHealth
from engine.resilience.signs_of_life import KEPT_STARTS, SignsOfLife


@pytest.fixture
def health() -> ProviderHealth:
    """Health by the default rules."""
    return ProviderHealth(EjectionConfig(), random.Random(1), name="main")


def pauses(health: ProviderHealth, error: Any, times: int, now: float = 100.0) -> list[float]:
    """How long it is closed by each of so many errors, each after the pause before it."""
    result = []
    for _ in range(times):
        health.note_failure(error, now)
        result.append(health.available_in(now))
        now += result[-1]
        assert health.unavailable(now, 0) is None
    return result


def test_a_provider_that_is_well_is_available(health: ProviderHealth) -> None:
    """Nothing keeps a new provider from being picked, at any number in flight."""
    assert health.unavailable(100.0, 0) is None
    assert health.available_in(100.0) == 0
    assert health.share(100.0) == 1.0
    assert health.full_share
    assert not health.begin(100.0)
    status = health.status(100.0)
    assert (status.state, status.reason, status.seconds_left) == ("healthy", None, None)


def test_every_reason_is_hard_soft_or_a_last_resort() -> None:
    """The reasons that may be passed over are two disjoint parts of all."""
    assert sorted(SOFT) == ["unproven"]
    assert sorted(LAST_RESORT) == ["ejected", "probing"]
    assert set(HealthReason) > SOFT | LAST_RESORT


def test_attempts_are_counted_by_class(health: ProviderHealth) -> None:
    """Every failed attempt counts in its class, whether or not it is the provider's fault."""
    health.note_success(100.0, 0.1)
    health.note_failure(CallerError("x"), 100.0)
    health.note_failure(ConnectError("x"), 100.0)
    health.note_failure(ConnectError("x"), 100.0)
    health.note_failure(None, 100.0)
    assert health.completed == 1
    assert health.failed == {ErrorClass.CALLER: 1, ErrorClass.CONNECT: 2}


# ── overloaded, exhausted ────────────────────────────────────────────────────────


def test_hint_closes_until_its_instant(health: ProviderHealth) -> None:
    """A provider is left alone for as long as it asks for."""
    health.note_failure(OverloadedError("x", retry_after=7), 100.0)
    assert health.unavailable(106.9, 0) == "overloaded"
    assert health.available_in(105.0) == 2.0
    assert health.status(105.0).seconds_left == 2.0
    assert health.unavailable(107.0, 0) is None


def test_later_of_two_hints_counts(health: ProviderHealth) -> None:
    """A shorter hint does not open what a longer one closed."""
    health.note_failure(OverloadedError("x", retry_after=20), 100.0)
    health.note_failure(OverloadedError("x", retry_after=1), 101.0)
    assert health.available_in(101.0) == 19.0


@pytest.mark.parametrize("hint", [None, 0.0])
def test_overload_without_a_hint_closes_for_a_moment_that_doubles(
    health: ProviderHealth, hint: float | None
) -> None:
    """A second, doubling to half a minute; a hint of no time at all is none."""
    error = OverloadedError("x", retry_after=hint)
    assert pauses(health, error, 7) == [1, 2, 4, 8, 16, 30, 30]


def test_one_wave_of_refusals_counts_once(health: ProviderHealth) -> None:
    """Many attempts in flight that hear the same refusal do not double the pause."""
    for _ in range(50):
        health.note_failure(OverloadedError("x"), 100.0)
    assert health.available_in(100.0) == 1.0


@pytest.mark.parametrize(("error", "first"), [(OverloadedError("x"), 1), (ExhaustedError("x"), 60)])
def test_success_resets_the_doubling(
    health: ProviderHealth, error: OverloadedError, first: float
) -> None:
    """After a success the next pause is a short one again."""
    pauses(health, error, 4)
    health.note_success(2_000.0, 0.1)
    assert pauses(health, error, 2, now=2_000.0) == [first, 2 * first]


def test_exhausted_is_closed_for_long(health: ProviderHealth) -> None:
    """A minute, doubling to an hour, while nothing says when the quota comes back."""
    assert pauses(health, ExhaustedError("x"), 8) == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_exhausted_has_its_own_reason_and_obeys_a_hint(health: ProviderHealth) -> None:
    """People see that it is a quota, and until when."""
    health.note_failure(ExhaustedError("x", retry_after=12), 100.0)
    assert health.unavailable(111.0, 0) == "exhausted"
    status = health.status(100.0)
    assert (status.state, status.seconds_left) == ("exhausted", 12.0)
    assert status.reason == "a quota or a spending limit is used up"
    assert health.unavailable(112.0, 0) is None


def test_restore_opens_what_a_refusal_closed(health: ProviderHealth) -> None:
    """An operator who raised the quota need not wait."""
    pauses(health, ExhaustedError("x"), 3)
    health.note_failure(ExhaustedError("x"), 1_000.0)
    health.note_failure(OverloadedError("x"), 1_000.0)
    health.restore(1_000.0)
    assert health.unavailable(1_000.0, 0) is None
    assert health.share(1_000.0) == 1.0
    health.note_failure(ExhaustedError("x"), 1_000.0)
    assert health.available_in(1_000.0) == 60.0


def test_hint_while_ejected_keeps_the_later_instant(health: ProviderHealth) -> None:
    """An ejected provider that asks for a longer pause gets it."""
    for _ in range(5):
        health.note_failure(TransientError("x"), 100.0)
    health.note_failure(OverloadedError("x", retry_after=50), 100.0)
    assert health.available_in(100.0) == 50.0
    assert health.unavailable(100.0, 0) == "overloaded"
    assert health.unavailable(150.0, 0) is None
    assert health.begin(150.0)


def test_short_hint_does_not_end_an_ejection(health: ProviderHealth) -> None:
    """When the pause is over, the ejection goes on."""
    for _ in range(5):
        health.note_failure(TransientError("x"), 100.0)
    health.note_failure(OverloadedError("x", retry_after=1), 100.0)
    assert health.unavailable(101.0, 0) == "ejected"
    assert health.available_in(100.0) >= 5.0


def test_overloaded_probe_is_no_result(health: ProviderHealth) -> None:
    """A probe that is put off leaves the provider half open, after the pause."""
    health.eject(100.0, 1.0)
    assert health.begin(101.0)
    health.note_failure(OverloadedError("x", retry_after=3), 101.0, probe=True)
    assert health.unavailable(101.0, 0) == "overloaded"
    assert health.unavailable(104.0, 0) is None
    assert health.begin(104.0)


# ── misconfigured ────────────────────────────────────────────────────────────────


def refusal() -> MisconfiguredError:
    """What a provider says to a bad key."""
    return MisconfiguredError(
        "Incorrect API key provided: sk-canary", provider="main", upstream_status=401
    )


def test_misconfigured_doubles_and_tries_one_probe_each_time(health: ProviderHealth) -> None:
    """Half a minute, doubling to ten, and a single live request in between."""
    health.note_failure(refusal(), 100.0)
    now, closed = 100.0, []
    for _ in range(7):
        assert health.unavailable(now, 0) == "misconfigured"
        closed.append(health.available_in(now))
        now += closed[-1]
        assert health.unavailable(now, 0) is None
        assert health.begin(now)
        assert health.unavailable(now, 1) == "probing"
        health.note_failure(refusal(), now, probe=True)
    assert closed == [30, 60, 120, 240, 480, 600, 600]


def test_repaired_key_heals_by_itself(health: ProviderHealth) -> None:
    """A probe that succeeds brings the provider back, and the next closing is a short one."""
    health.note_failure(refusal(), 100.0)
    assert health.begin(130.0)
    health.note_success(130.0, 0.1, probe=True)
    assert health.unavailable(130.0, 0) is None
    health.note_failure(refusal(), 200.0)
    assert health.available_in(200.0) == 30.0


def test_restore_opens_a_misconfigured_provider(health: ProviderHealth) -> None:
    """An operator who put the key right need not wait."""
    health.note_failure(refusal(), 100.0)
    health.restore(101.0)
    assert health.unavailable(101.0, 0) is None


def test_good_check_does_not_prove_the_key(health: ProviderHealth) -> None:
    """A health endpoint answers without a key."""
    health.note_failure(refusal(), 100.0)
    health.note_check(True, 101.0, 3)
    assert health.unavailable(101.0, 0) == "misconfigured"


def test_misconfigured_is_said_once_loudly_and_without_the_text(
    health: ProviderHealth, caplog: pytest.LogCaptureFixture
) -> None:
    """One line a closing names provider and status; what the provider wrote stays out."""
    with caplog.at_level(logging.ERROR, logger="engine.health"):
        for _ in range(20):
            health.note_failure(refusal(), 100.0)
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "main" in record.getMessage()
    assert "401" in record.getMessage()
    assert "canary" not in caplog.text
    assert "canary" not in repr(health.status(100.0))


def test_misconfigured_does_not_overrule_a_hand(health: ProviderHealth) -> None:
    """What an operator ejected stays ejected by hand."""
    health.eject(100.0, 60.0)
    health.note_failure(refusal(), 101.0)
    assert health.unavailable(101.0, 0) == "ejected_by_hand"


def test_misconfigured_overrules_an_ejection(health: ProviderHealth) -> None:
    """A bad key is no case for the last resort."""
    for _ in range(5):
        health.note_failure(TransientError("x"), 100.0)
    health.note_failure(refusal(), 100.0)
    assert health.unavailable(100.0, 0) == "misconfigured"


# ── unproven, silent ─────────────────────────────────────────────────────────────


def test_a_failure_makes_unproven_until_a_success(health: ProviderHealth) -> None:
    """After one failure, ten attempts in flight are enough until one succeeds."""
    health.note_failure(TransientError("x"), 100.0)
    assert health.unavailable(100.0, 9) is None
    assert health.unavailable(100.0, 10) == "unproven"
    assert health.available_in(100.0) == 0
    health.note_success(100.0, 0.1)
    assert health.unavailable(100.0, 10) is None


def served(health: ProviderHealth, *, seconds: float) -> float:
    """Twenty attempts a second for a minute, all answered; the instant at which the next begins."""
    now = 100.0
    while now < 160.0:
        health.note_start(now)
        health.note_success(now + seconds, seconds)
        now += 0.05
    return now


def begin(health: ProviderHealth, now: float, attempts: int = 10) -> None:
    """So many attempts begin."""
    for _ in range(attempts):
        health.note_start(now)


def test_silence_makes_unproven(health: ProviderHealth) -> None:
    """Ten attempts that all take longer than half of the answers do are suspicious."""
    now = served(health, seconds=1.0)
    begin(health, now)
    assert health.unavailable(now + 0.99, 20) is None
    assert health.unavailable(now + 1.01, 20) == "unproven"
    assert health.unavailable(now + 1.01, 9) is None


def test_nine_silent_attempts_are_not_enough(health: ProviderHealth) -> None:
    """However long nine take, it may be chance."""
    now = served(health, seconds=1.0)
    begin(health, now, 9)
    assert health.unavailable(now + 500.0, 20) is None


def test_a_sign_of_life_speaks_for_all_that_began_before_it(health: ProviderHealth) -> None:
    """One attempt that lives is enough, if it began with the silent ones or after them."""
    now = served(health, seconds=1.0)
    begin(health, now)
    health.note_start(now + 1.0)
    health.note_alive(now + 1.1, 0.1)
    assert health.unavailable(now + 60.0, 20) is None


def test_life_of_what_began_before_does_not_count(health: ProviderHealth) -> None:
    """Attempts from before a fault are answered for seconds after it, and tell nothing of it."""
    now = served(health, seconds=1.0)
    begin(health, now)
    health.note_success(now + 1.01, 1.02)
    health.note_alive(now + 1.02, 5.0)
    assert health.unavailable(now + 1.02, 20) == "unproven"


def test_attempts_that_were_given_up_do_not_make_it_silent_for_ever(
    health: ProviderHealth,
) -> None:
    """Callers who leave leave their starts, which the next sign of life removes."""
    now = served(health, seconds=1.0)
    for _ in range(5_000):
        now += 0.001
        health.note_start(now)
        health.note_nothing(now)
    assert len(health.signs._starts) == KEPT_STARTS
    assert health.unavailable(now + 1_000.0, 9) is None
    health.note_start(now + 1_000.0)
    health.note_success(now + 1_001.0, 1.0)
    assert len(health.signs._starts) == 0
    assert health.unavailable(now + 1_001.0, 20) is None


def test_short_silence_is_never_suspicious(health: ProviderHealth) -> None:
    """Below a quarter of a second a pause of our own process would look like silence."""
    now = served(health, seconds=0.01)
    begin(health, now)
    assert health.unavailable(now + 0.249, 60) is None
    assert health.unavailable(now + 0.251, 60) == "unproven"


def test_new_provider_may_be_silent_for_a_second(health: ProviderHealth) -> None:
    """Where no time is known, the limit is fixed."""
    begin(health, 100.0)
    assert health.unavailable(101.0, 64) is None
    assert health.unavailable(101.1, 64) == "unproven"


def test_long_streams_are_not_silent(health: ProviderHealth) -> None:
    """Sixty streams that have begun to speak are not waited for, however long they last."""
    for number in range(60):
        health.note_start(100.0 + number)
        health.note_alive(100.2 + number, 0.2)
    assert health.unavailable(1_000.0, 60) is None


def test_refusals_are_signs_of_life(health: ProviderHealth) -> None:
    """Who answers 400 is not silent."""
    now = served(health, seconds=1.0)
    begin(health, now)
    health.note_failure(CallerError("x"), now + 0.9)
    assert health.unavailable(now + 60.0, 20) is None


@pytest.mark.parametrize(
    ("attempts", "rank"), [(1, 128), (2, 124), (3, 116), (10, 64), (64, 14), (10_000, 1)]
)
def test_fewer_attempts_must_be_silent_for_longer(attempts: int, rank: int) -> None:
    """The chance of a false alarm is a thousandth, however many attempts are configured."""
    signs = SignsOfLife(attempts)
    for number in range(1, 129):
        signs.note(100.0, float(number))
    for _ in range(attempts):
        signs.note_start(100.0)
    assert not signs.silent(100.0 + rank)
    assert signs.silent(100.1 + rank)


@pytest.mark.parametrize("rate", [12, 40, 100])
@pytest.mark.parametrize("spread", [0.01, 0.1, 0.8, 1.5])
def test_well_provider_hardly_ever_looks_silent(rate: int, spread: float) -> None:
    """By times that hardly differ, and by times that differ by far: one instant in a thousand."""
    rng, signs = random.Random(rate), SignsOfLife(10)
    events: list[tuple[float, float | None]] = []
    for number in range(120 * rate):
        start = 100.0 + (number + rng.random()) / rate
        seconds = rng.lognormvariate(0.0, spread)
        events += [(start, None), (start + seconds, seconds)]
    alarms = 0
    for now, took in sorted(events, key=lambda event: event[0]):
        if took is None:
            alarms += signs.silent(now)
            signs.note_start(now)
        else:
            signs.note(now, took)
    assert alarms <= 120 * rate / 1_000


# ── times ────────────────────────────────────────────────────────────────────────


def test_times_are_unknown_at_first(health: ProviderHealth) -> None:
    """No sample, no number."""
    assert health.mean_seconds is None
    assert health.quantile(0.5) is None


def test_mean_follows_the_times(health: ProviderHealth) -> None:
    """The first time is the mean; each further one moves it by an eighth."""
    health.note_alive(100.0, 1.0)
    assert health.mean_seconds == 1.0
    health.note_success(101.0, 2.0)
    assert health.mean_seconds == pytest.approx(1.125)
    health.note_success(102.0, None)
    assert health.mean_seconds == pytest.approx(1.125)


def test_quantiles_are_those_of_the_last_128(health: ProviderHealth) -> None:
    """Older times no longer count."""
    for number in range(1_000):
        health.note_alive(100.0 + number, number / 1_000)
    assert health.quantile(0.5) == pytest.approx(0.872 + 0.063)
    assert health.quantile(0.95) == pytest.approx(0.872 + 0.121)
    assert health.quantile(1.0) == 0.999


def test_quantiles_of_few_times_are_fresh(health: ProviderHealth) -> None:
    """The very first times count at once."""
    for seconds in (0.3, 0.1, 0.2):
        health.note_alive(100.0, seconds)
        assert health.quantile(1.0) == 0.3
    assert health.quantile(0.5) == 0.2
    assert health.quantile(0.01) == 0.1


# ── the log ──────────────────────────────────────────────────────────────────────


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, and that it is all from here."""
    assert {record.name for record in caplog.records} <= {"engine.health"}
    return [record.getMessage() for record in caplog.records]


def test_ejection_and_return_are_one_line_each(
    health: ProviderHealth, caplog: pytest.LogCaptureFixture
) -> None:
    """Name, reason and seconds; neither the failures before nor those in flight add a line."""
    for _ in range(50):
        health.note_failure(TransientError("canary"), 100.0)
    until = 100.0 + health.available_in(100.0)
    assert health.begin(until)
    health.note_success(until, 0.1, probe=True)
    for _ in range(50):
        health.note_success(until, 0.1)
    left, back = lines(caplog)
    seconds = until - 100.0
    assert left == (
        f"provider main is ejected for {seconds:.1f} s: 5 failures in a row, the last: transient"
    )
    assert back == ("provider main is back in rotation: its probe succeeded; full share in 30.0 s")
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_each_failed_probe_is_a_line(
    health: ProviderHealth, caplog: pytest.LogCaptureFixture
) -> None:
    """The next ejection says for how long it is."""
    for _ in range(5):
        health.note_failure(TransientError("canary"), 100.0)
    assert health.begin(110.0)
    health.note_failure(ConnectError("canary"), 110.0, probe=True)
    assert "its probe failed (connect)" in lines(caplog)[1]
    assert len(lines(caplog)) == 2


def test_exhausted_is_said_once_a_pause_and_when_it_serves_again(
    health: ProviderHealth, caplog: pytest.LogCaptureFixture
) -> None:
    """Refusals in flight say nothing new, nor does an answer that was begun before."""
    for _ in range(20):
        health.note_failure(ExhaustedError("canary", retry_after=90), 100.0)
    health.note_success(101.0, 0.1)
    health.note_success(191.0, 0.1)
    health.note_success(192.0, 0.1)
    assert lines(caplog) == [
        "provider main is closed as exhausted for 90.0 s: a quota or a spending limit is used up",
        "provider main is back in rotation: its quota serves again; full share in 0.0 s",
    ]


def test_pause_that_a_busy_provider_asks_for_is_not_said(
    health: ProviderHealth, caplog: pytest.LogCaptureFixture
) -> None:
    """That is everyday life, and would be a line for every 429."""
    for second in range(50):
        health.note_failure(OverloadedError("canary", retry_after=1), 100.0 + second)
        health.note_success(100.5 + second, 0.1)
    assert lines(caplog) == []


def test_what_people_do_is_said(health: ProviderHealth, caplog: pytest.LogCaptureFixture) -> None:
    """By hand out, for a while or for good, and back; nothing where nothing changes."""
    health.restore(99.0)
    health.eject(100.0, 60.0)
    health.eject(101.0)
    health.restore(102.0)
    health.note_failure(ExhaustedError("canary"), 103.0)
    health.restore(104.0)
    assert lines(caplog) == [
        "provider main is ejected for 60.0 s: by hand",
        "provider main is ejected until it is restored: by hand",
        "provider main is back in rotation: by hand; full share in 30.0 s",
        "provider main is closed as exhausted for 60.0 s: a quota or a spending limit is used up",
        "provider main is back in rotation: by hand; full share in 0.0 s",
    ]


def test_checks_are_said_when_they_change_something(
    health: ProviderHealth, caplog: pytest.LogCaptureFixture
) -> None:
    """Every check is no line, three failed ones are, and so is the way back."""
    for at in range(5):
        health.note_check(False, 100.0 + at, 3, why="timeout")
    for at in range(5):
        health.note_check(True, 105.0 + at, 3)
    left, back = lines(caplog)
    assert left.endswith("3 failed checks in a row, the last: timeout")
    assert "a check found it well" in back


def test_no_text_of_a_provider_is_ever_logged(
    health: ProviderHealth, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the failure, what the provider wrote, and so a key or a prompt, stays out."""
    kinds = (TransientError, ConnectError, ExhaustedError, OverloadedError, CallerError)
    now = 100.0
    for kind in kinds:
        for _ in range(5):
            health.note_failure(kind("sk-canary said the prompt"), now)
        health.note_failure(refusal(), now)
        now += 1_000.0
        health.restore(now)
    assert len(caplog.records) >= 6
    assert "canary" not in caplog.text
    assert "prompt" not in caplog.text


def test_snapshot_changes_nothing(health: ProviderHealth) -> None:
    """An exporter takes snapshots in a thread of its own, at instants of its own."""
    for _ in range(5):
        health.note_failure(TransientError("x"), 100.0)
    for at in (99.0, 100.0, 200.0, 10_000.0):
        health.status(at)
    assert health.unavailable(100.0, 0) == "ejected"
    assert health.begin(110.0)
    health.note_success(110.0, 0.1, probe=True)
    health.status(10_000.0)
    assert not health.full_share
    assert health.share(111.0) == 0.1
    health.note_failure(TransientError("x"), 111.0)
    health.status(10_000.0)
    assert health.status(111.0).failure_rate == 1.0
