"""Who is taken out of the mailbox of a provider that has closed, and what it is told."""

import math
import random
from collections.abc import Callable

import pytest
from scripted import CHAT

from engine import (
    ChatRequest,
    EjectionConfig,
    ExhaustedError,
    GatewayError,
    MisconfiguredError,
    OverloadedError,
    ProviderClosedError,
    ProviderConfig,
    Replay,
    TransientError,
)
from engine.envelope import Envelope
from engine.mailbox import Mailbox
from engine.resilience.deadline import DeadlineWheel
from engine.resilience.health import ProviderHealth
from engine.resilience.retry import may_go_elsewhere, may_repeat_here
from engine.turning_away import turn_away

Closing = Callable[[ProviderHealth], None]


def waiting(*, repeats: int = 0) -> Mailbox[Envelope]:
    """A mailbox with two new requests and so many repeats."""
    wheel = DeadlineWheel(lambda: 100.0)
    config = ProviderConfig.model_validate({"name": "a", "type": "mock"})
    mailbox: Mailbox[Envelope] = Mailbox("a", 128)
    for prior in [None, None, *[OverloadedError("busy")] * repeats]:
        envelope = Envelope(
            ChatRequest.from_body(CHAT), "m", "id", config=config, wheel=wheel,
            deadline=200.0, now=100.0, prior_failure=prior,
        )  # fmt: skip
        mailbox.offer(envelope)
    return mailbox


def told(error: GatewayError, times: int = 1) -> Closing:
    """A closing by failures."""

    def close(health: ProviderHealth) -> None:
        for _ in range(times):
            health.note_failure(error, 100.0)

    return close


@pytest.fixture
def health() -> ProviderHealth:
    """Health by the default rules."""
    return ProviderHealth(EjectionConfig(), random.Random(1), name="a")


@pytest.mark.parametrize(
    ("close", "reason", "retry_after"),
    [
        (told(MisconfiguredError("no")), "misconfigured", 30),
        (told(ExhaustedError("quota", retry_after=7)), "exhausted", 7),
        (told(OverloadedError("busy", retry_after=0.01)), "overloaded", 0.1),
        (lambda health: health.eject(100.0, 20.0), "ejected_by_hand", 20),
        (lambda health: health.eject(100.0), "ejected_by_hand", 300),
    ],
)
def test_closed_provider_turns_all_away(
    health: ProviderHealth, close: Closing, reason: str, retry_after: float
) -> None:
    """Everybody hears why, that nothing was sent, and a finite time to come back."""
    mailbox = waiting()
    close(health)
    turned_away = turn_away(mailbox, health, 100.0)
    assert len(turned_away) == 2
    for _, error in turned_away:
        assert (error.provider, error.code, error.status) == ("a", "provider_closed", 503)
        assert error.replay is Replay.NOT_ACCEPTED
        assert reason in error.message
        assert error.retry_after == pytest.approx(retry_after)
        assert math.isfinite(error.retry_after or math.inf)
        assert may_go_elsewhere(error, repeat_maybe_accepted=False)
    status = mailbox.status(100.0)
    assert (status.depth, status.offered, status.taken, status.withdrawn) == (0, 2, 0, 2)


def test_ejected_provider_is_not_asked_again(health: ProviderHealth) -> None:
    """A repeat would hold a worker for the whole ejection."""
    told(TransientError("500"), 5)(health)
    for _, error in turn_away(waiting(), health, 100.0):
        assert isinstance(error, ProviderClosedError)
        assert not may_repeat_here(error, repeat_maybe_accepted=True)


def test_pause_leaves_the_repeats_that_wait_it_out(health: ProviderHealth) -> None:
    """New requests go elsewhere, or come back as repeats; those stay."""
    mailbox = waiting(repeats=3)
    told(OverloadedError("busy", retry_after=5))(health)
    turned_away = turn_away(mailbox, health, 100.0)
    assert [envelope.prior_failure for envelope, _ in turned_away] == [None, None]
    assert all(may_repeat_here(error, repeat_maybe_accepted=False) for _, error in turned_away)
    assert len(mailbox) == 3


def test_ejection_turns_repeats_away_as_well(health: ProviderHealth) -> None:
    """What waits there has no hope, whatever it has been through."""
    told(TransientError("500"), 5)(health)
    assert len(turn_away(waiting(repeats=3), health, 100.0)) == 5


@pytest.mark.parametrize("failures", [0, 4])
def test_open_provider_keeps_all(health: ProviderHealth, failures: int) -> None:
    """Failures that do not eject turn nobody away."""
    mailbox = waiting()
    told(TransientError("500"), failures)(health)
    assert turn_away(mailbox, health, 100.0) == []
    assert len(mailbox) == 2


def test_half_open_provider_keeps_all(health: ProviderHealth) -> None:
    """While the probe is under way, and before it, its end is awaited."""
    mailbox = waiting()
    health.eject(100.0, 5.0)
    assert turn_away(mailbox, health, 105.0) == []
    assert health.begin(105.0)
    assert turn_away(mailbox, health, 106.0) == []
