"""`turn_away`: those who wait at a provider that has closed are let go, so as not to meet it."""

from __future__ import annotations

from engine.envelope import Envelope
from engine.errors import OverloadedError, ProviderClosedError
from engine.mailbox import Mailbox
from engine.resilience.health import HealthReason, ProviderHealth

LEAST_RETRY_AFTER = 0.1
MOST_RETRY_AFTER = 300.0
"""Seconds, as in every refusal: who is closed for good might be restored at any time."""


def turn_away(
    mailbox: Mailbox[Envelope], health: ProviderHealth, now: float
) -> list[tuple[Envelope, OverloadedError]]:
    """Take out of the mailbox of a closed provider whoever should not wait for it.

    Repeats stay during a pause that the provider asked for: they wait it out because
    nobody else could take them.

    Args:
        mailbox: The provider's.
        health: What says whether it is closed.
        now: The instant.

    Returns:
        The envelopes with the error that each is to be answered with; empty while the
        provider is open, or half open with a probe under way.
    """
    reason = health.unavailable(now, 0)
    if reason is None or reason is HealthReason.PROBING:
        return []
    paused = reason is HealthReason.OVERLOADED
    kind = OverloadedError if paused else ProviderClosedError
    retry_after = min(max(health.available_in(now), LEAST_RETRY_AFTER), MOST_RETRY_AFTER)
    turned_away: list[tuple[Envelope, OverloadedError]] = []
    for envelope in list(mailbox):
        if paused and envelope.prior_failure is not None:
            continue
        mailbox.withdraw(envelope)
        provider = envelope.config.name
        error = kind(
            f"provider {provider!r} was closed ({reason}) before it served the request",
            provider=provider,
            code="provider_closed",
            retry_after=retry_after,
        )
        turned_away.append((envelope, error))
    return turned_away
