"""`HealthReason`, `HealthStatus`: the words for why a provider must not be picked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HealthReason(StrEnum):
    """Why a provider must not be picked; one word each, for people and for metrics."""

    OVERLOADED = "overloaded"
    EXHAUSTED = "exhausted"
    MISCONFIGURED = "misconfigured"
    EJECTED = "ejected"
    EJECTED_BY_HAND = "ejected_by_hand"
    PROBING = "probing"
    UNPROVEN = "unproven"


SOFT: frozenset[str] = frozenset({HealthReason.UNPROVEN})
"""Reasons to prefer others; who has no other reason serves when nobody else can."""

LAST_RESORT: frozenset[str] = frozenset({HealthReason.EJECTED, HealthReason.PROBING})
"""Reasons that are passed over when all targets have one of them: a small chance beats
none. At most `unproven_concurrency` attempts at a time then."""


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """One provider's health at one instant.

    Attributes:
        state: A `HealthReason`, or `healthy`, `half_open` (waits for its live probe) or
            `slow_start` (grows back to its share).
        reason: What brought it there, in words for people; None while it is healthy.
        seconds_left: Seconds until the state ends by itself; None if it has no such end.
        consecutive_failures: Failures since the last success.
        failure_rate: Part of the attempts in the window that failed; None without attempts.
        ejections: How often its failures ejected it so far.
        share: The part of its weight that counts now; above 0, at most 1.
    """

    state: str
    reason: str | None
    seconds_left: float | None
    consecutive_failures: int
    failure_rate: float | None
    ejections: int
    share: float
