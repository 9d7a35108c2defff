"""The retry table, row by row, and the backoff."""

import random
from collections.abc import Callable

import anyio
import pytest

from engine import (
    BrokenError,
    CallerError,
    ConnectError,
    ContentFilterError,
    ContextLengthError,
    ErrorClass,
    ExhaustedError,
    MisconfiguredError,
    NoProviderAvailableError,
    OverloadedError,
    ProviderError,
    Replay,
    SilentError,
    StreamTruncatedError,
    TransientError,
)
from engine.resilience.retry import (
    RETRY_RULES,
    backoff,
    fallback_cause,
    may_go_elsewhere,
    may_repeat_here,
    repeating,
)

# error, same provider, another provider, counts against health
TABLE: list[tuple[type[ProviderError], bool, bool, bool]] = [
    (ConnectError, True, True, True),
    (OverloadedError, True, True, False),
    (TransientError, True, True, True),
    (SilentError, False, True, True),
    (BrokenError, False, True, True),
    (MisconfiguredError, False, True, False),
    (CallerError, False, False, False),
    (ContextLengthError, False, False, False),
    (ContentFilterError, False, False, False),
    (StreamTruncatedError, False, False, True),
]


def test_table_has_a_row_for_every_class() -> None:
    """No error class is without a rule."""
    assert set(RETRY_RULES) == set(ErrorClass)


@pytest.mark.parametrize(("error_type", "here", "elsewhere", "health"), TABLE)
def test_row_of_the_table(
    error_type: type[ProviderError], here: bool, elsewhere: bool, health: bool
) -> None:
    """Each class says where a request may go next, when repeating is allowed."""
    error = error_type("x")
    assert may_repeat_here(error, repeat_maybe_accepted=True) is here
    assert may_go_elsewhere(error, repeat_maybe_accepted=True) is elsewhere
    assert RETRY_RULES[error.error_class].counts_as_failure is health


@pytest.mark.parametrize(("error_type", "here", "elsewhere", "health"), TABLE)
@pytest.mark.parametrize("replay", list(Replay))
def test_replay_mark_decides_where_repeating_is_not_allowed(
    error_type: type[ProviderError], here: bool, elsewhere: bool, health: bool, replay: Replay
) -> None:
    """Without leave to repeat, only what was certainly not executed goes on."""
    error = error_type("x", replay=replay)
    safe = replay is Replay.NOT_ACCEPTED
    assert may_repeat_here(error, repeat_maybe_accepted=False) is (here and safe)
    assert may_go_elsewhere(error, repeat_maybe_accepted=False) is (elsewhere and safe)


def test_used_up_quota_is_not_repeated_here() -> None:
    """It is overloaded by its class, but no pause of seconds brings a quota back."""
    assert not may_repeat_here(ExhaustedError("x"), repeat_maybe_accepted=True)
    assert may_go_elsewhere(ExhaustedError("x"), repeat_maybe_accepted=False)


@pytest.mark.parametrize("replay", list(Replay))
@pytest.mark.parametrize("repeat", [False, True])
def test_provider_that_forbids_another_try_is_obeyed(replay: Replay, repeat: bool) -> None:
    """`x-should-retry: false` wins over everything."""
    error = TransientError("x", replay=replay, should_retry=False)
    assert not may_repeat_here(error, repeat_maybe_accepted=repeat)
    assert not may_go_elsewhere(error, repeat_maybe_accepted=repeat)


@pytest.mark.parametrize(
    ("replay", "allowed"),
    [(Replay.NOT_ACCEPTED, True), (Replay.MAYBE_ACCEPTED, True), (Replay.ACCEPTED, False)],
)
def test_provider_that_allows_another_try_settles_what_was_open(
    replay: Replay, allowed: bool
) -> None:
    """`x-should-retry: true` answers "may have been accepted", and nothing else."""
    error = TransientError("x", replay=replay, should_retry=True)
    assert may_go_elsewhere(error, repeat_maybe_accepted=False) is allowed


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ContextLengthError("x"), "context_length"),
        (ContentFilterError("x"), "content_filter"),
        (NoProviderAvailableError("x"), "error"),
        (ConnectError("x"), "error"),
        (OverloadedError("x"), "error"),
        (MisconfiguredError("x"), "error"),
        (SilentError("x"), None),
        (CallerError("x"), None),
        (StreamTruncatedError("x"), None),
        (TransientError("x", should_retry=False), None),
        (ValueError("x"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value,
)
def test_cause_of_a_fallback(error: Exception, cause: str | None) -> None:
    """Which fallbacks a failure leads to, where nothing may be billed twice."""
    assert fallback_cause(error, repeat_maybe_accepted=False) == cause


def test_silence_leads_to_a_fallback_where_repeating_is_allowed() -> None:
    """Another model is another bill, so the same permission counts."""
    assert fallback_cause(SilentError("x"), repeat_maybe_accepted=True) == "error"


@pytest.mark.parametrize("error", [None, ValueError("x"), KeyboardInterrupt()])
def test_what_is_no_providers_failure_is_not_repeated(error: BaseException | None) -> None:
    """Only errors with a row in the table may be tried again."""
    assert not may_repeat_here(error, repeat_maybe_accepted=True)
    assert not may_go_elsewhere(error, repeat_maybe_accepted=True)


@pytest.mark.parametrize("repeat", [1, 2, 3, 6, 7, 30, 10_000])
def test_backoff_is_jitter_over_the_whole_range(repeat: int, rng: random.Random) -> None:
    """Uniform from 0 to 50 ms doubling to 2 s, however many repeats there are."""
    limit = 2.0 if repeat > 6 else 0.05 * 2 ** (repeat - 1)
    pauses = [backoff(repeat, ConnectError("x"), rng) for _ in range(5_000)]
    assert all(0 <= pause <= limit for pause in pauses)
    # The mean of 5,000 uniform draws has a deviation of limit / sqrt(12 * 5,000).
    assert sum(pauses) / 5_000 == pytest.approx(limit / 2, abs=4 * limit / 244.9)


def test_hint_is_a_floor_with_jitter(rng: random.Random) -> None:
    """A provider's own hint is never undercut, and spread by up to half."""
    error = OverloadedError("x", retry_after=3.0)
    pauses = [backoff(1, error, rng) for _ in range(1_000)]
    assert 3.0 <= min(pauses) < 3.1
    assert 4.4 < max(pauses) <= 4.5


def test_small_hint_does_not_shorten_the_backoff(rng: random.Random) -> None:
    """The longer of hint and backoff counts."""
    pauses = [backoff(7, OverloadedError("x", retry_after=0.001), rng) for _ in range(500)]
    assert max(pauses) > 1.5


def allowed(_: ProviderError) -> bool:
    """Every repeat is allowed."""
    return True


async def play(
    errors: list[Exception],
    *,
    repeats: int,
    deadline: float,
    permit: Callable[[ProviderError], bool] = allowed,
) -> tuple[int, float]:
    """Run calls under the policy; how many there were, and how long it took."""
    start, calls = anyio.current_time(), 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        if errors:
            raise errors.pop(0)

    policy = repeating(
        repeats=repeats,
        deadline=start + deadline,
        repeat_maybe_accepted=True,
        clock=anyio.current_time,
        rng=random.Random(1),
        permit=permit,
    )
    await policy(call)
    return calls, anyio.current_time() - start


def test_policy_repeats_until_success(virtual_time: Callable[..., None]) -> None:
    """Failures that may be repeated are, with a pause before each."""

    async def main() -> None:
        calls, took = await play([ConnectError("x") for _ in range(3)], repeats=5, deadline=60)
        assert calls == 4
        assert 0 < took < 0.05 + 0.1 + 0.2

    virtual_time(main)


def test_policy_stops_after_its_repeats(virtual_time: Callable[..., None]) -> None:
    """The last failure itself is raised, not a wrapper."""

    async def main() -> None:
        errors: list[Exception] = [ConnectError(str(number)) for number in range(9)]
        with pytest.raises(ConnectError, match="2"):
            await play(errors, repeats=2, deadline=60)
        assert len(errors) == 6

    virtual_time(main)


def test_policy_does_not_repeat_what_may_not_be(virtual_time: Callable[..., None]) -> None:
    """A failure without the right to a repeat goes up at once."""

    async def main() -> None:
        with pytest.raises(CallerError):
            await play([CallerError("x")], repeats=5, deadline=60)

    virtual_time(main)


def test_policy_begins_no_wait_beyond_the_deadline(virtual_time: Callable[..., None]) -> None:
    """A pause that would end after the deadline is not begun."""

    async def main() -> None:
        start = anyio.current_time()
        with pytest.raises(OverloadedError):
            await play([OverloadedError("x", retry_after=9)], repeats=5, deadline=9)
        assert anyio.current_time() == start

    virtual_time(main)


def test_permit_is_asked_before_each_wait_and_only_then(virtual_time: Callable[..., None]) -> None:
    """What is not repeated for another reason costs nothing; what is denied is not repeated."""

    async def main() -> None:
        asked: list[str] = []

        def permit(error: ProviderError) -> bool:
            asked.append(error.message)
            return len(asked) < 3

        errors: list[Exception] = [ConnectError(str(number)) for number in range(9)]
        start = anyio.current_time()
        with pytest.raises(ConnectError, match="2"):
            await play(errors, repeats=8, deadline=60, permit=permit)
        assert asked == ["0", "1", "2"]
        assert anyio.current_time() - start < 0.15
        for last in (CallerError("x"), OverloadedError("x", retry_after=99)):
            with pytest.raises(type(last)):
                await play([last], repeats=8, deadline=60, permit=permit)
        with pytest.raises(ConnectError):
            await play([ConnectError("x")], repeats=0, deadline=60, permit=permit)
        assert len(asked) == 3

    virtual_time(main)
