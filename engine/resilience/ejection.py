"""`Ejection`: out of rotation, half open with one live probe, and the slow way back."""

from __future__ import annotations

import math
import random

from engine.config import EjectionConfig
from engine.resilience.health_log import HealthLog
from engine.resilience.health_status import HealthReason
from engine.resilience.pause import Pause

JITTER = 1.2
"""An ejection is drawn out by up to a fifth, so that providers (and routers) that were
struck together do not come back together."""

SMALLEST_SHARE = 0.1
"""With what slow start begins (Envoy's `min_weight_percent`)."""

MISCONFIGURED_FIRST = 30.0
MISCONFIGURED_LONGEST = 600.0


class Ejection:
    """Whether one provider is out, for which cause, and how it returns.

    After its time an ejection is half open: one live attempt, the probe, decides. An
    attempt that is made all the same before that (nobody else is left) is taken for an
    early probe: if it succeeds the provider is back, if not nothing gets worse.

    Attributes:
        cause: `ejected`, `ejected_by_hand` or `misconfigured`; None while in rotation.
        until: Instant from which on it is half open.
        reason: What happened, in words; None while in rotation.
        probing: Whether a probe is under way.
        full_share: Whether no slow start is under way.
        total: Ejections by rule so far.

    Args:
        config: The rules.
        rng: Source of the jitter.
        log: Told when it goes out and when it is back.
    """

    __slots__ = (
        "_base",
        "_healthy_since",
        "_in_a_row",
        "_log",
        "_max",
        "_misconfigured",
        "_most",
        "_returned",
        "_rng",
        "_slow_start",
        "_window",
        "cause",
        "full_share",
        "probing",
        "reason",
        "total",
        "until",
    )

    def __init__(self, config: EjectionConfig, rng: random.Random, log: HealthLog) -> None:
        self.cause: HealthReason | None = None
        self.until = 0.0
        self.reason: str | None = None
        self.probing = False
        self.full_share = True
        self.total = 0
        self._base = config.base
        self._max = config.max
        self._window = config.window
        self._slow_start = config.slow_start
        self._rng = rng
        self._log = log
        # Counting on would not lengthen an ejection any more, only the way back down.
        self._most = max(1, math.ceil(config.max / config.base))
        self._in_a_row = 0
        self._healthy_since = 0.0
        self._returned = 0.0
        self._misconfigured = Pause(MISCONFIGURED_FIRST, MISCONFIGURED_LONGEST)

    def closed(self, now: float) -> bool:
        """Whether it is out and its time is not over."""
        return self.cause is not None and now < self.until

    def in_a_row(self, now: float) -> int:
        """How many base times the last ejection lasted; one less for each healthy window."""
        if self._in_a_row and self.cause is None:
            windows = int((now - self._healthy_since) / self._window)
            if windows > 0:
                self._in_a_row = max(0, self._in_a_row - windows)
                self._healthy_since += windows * self._window
        return self._in_a_row

    def share(self, now: float) -> float:
        """The slow start factor, Envoy's with aggression 1: max(0.1, t / slow_start)."""
        if self.full_share:
            return 1.0
        passed = (now - self._returned) / self._slow_start
        return min(1.0, max(SMALLEST_SHARE, passed))

    def has_grown(self, now: float) -> bool:
        """Whether the full share is back; notes it, so that `share` need not be asked again."""
        self.full_share = self.full_share or self.share(now) >= 1
        return self.full_share

    def slow_start_left(self, now: float) -> float:
        """Seconds until the full share is back."""
        return 0.0 if self.full_share else max(0.0, self._returned + self._slow_start - now)

    # ── out ──────────────────────────────────────────────────────────────────────

    def note_failure(self, now: float) -> None:
        """A failure in rotation: a healthy window begins anew."""
        self.in_a_row(now)
        self._healthy_since = now

    def eject(self, now: float, reason: str) -> None:
        """Eject for min(max, base * n * U(1, 1.2)) seconds, by a rule."""
        self._in_a_row = min(self._most, self.in_a_row(now) + 1)
        self.total += 1
        stretched = self._base * self._in_a_row * self._rng.uniform(1.0, JITTER)
        self._leave(HealthReason.EJECTED, now, now + min(self._max, stretched), reason)

    def eject_by_hand(self, now: float, seconds: float | None) -> None:
        """Eject for some seconds, or until `restore`; a rule's later instant is kept."""
        self.in_a_row(now)
        until = math.inf if seconds is None else now + seconds
        if self.cause not in {None, HealthReason.EJECTED_BY_HAND}:
            until = max(until, self.until)
        self._leave(HealthReason.EJECTED_BY_HAND, now, until, "by hand")

    def close_misconfigured(self, now: float, reason: str, *, probe: bool) -> bool:
        """Close because the provider refuses us; True if it was not closed for that already."""
        if self.cause is HealthReason.MISCONFIGURED and not (probe and now >= self.until):
            return False
        if self.cause is HealthReason.EJECTED_BY_HAND and now < self.until:
            return False
        self.in_a_row(now)
        until = self.until if self.closed(now) else now
        self._misconfigured.close(now)
        until = max(until, self._misconfigured.until)
        self._leave(HealthReason.MISCONFIGURED, now, until, reason)
        return True

    def _leave(self, cause: HealthReason, now: float, until: float, reason: str) -> None:
        # The caller has settled `in_a_row`: time that is spent outside heals nothing.
        self.cause = cause
        self.until = until
        self.reason = reason
        self.full_share = True
        self._log.left(cause, until - now, reason)

    # ── half open, and back ──────────────────────────────────────────────────────

    def begin(self, now: float) -> bool:
        """An attempt begins; True if it is the probe."""
        if self.cause is None or self.probing:
            return False
        if now < self.until and self.cause is not HealthReason.EJECTED:
            return False
        self.probing = True
        return True

    def probe_failed(self, now: float, reason: str) -> None:
        """The probe failed: eject again, unless it was an early one."""
        if self.cause is not None and now >= self.until:
            self.eject(now, reason)

    def probe_succeeded(self, now: float) -> bool:
        """The probe succeeded; True if that brings the provider back."""
        back = self.cause is HealthReason.EJECTED or (self.cause is not None and now >= self.until)
        if back:
            self.bring_back(now, "its probe succeeded")
        return back

    def bring_back(self, now: float, why: str) -> None:
        """Return to rotation, by slow start."""
        self.cause = None
        self.until = 0.0
        self.reason = None
        self._misconfigured.clear()
        self._healthy_since = self._returned = now
        self.full_share = self._slow_start == 0
        self._log.back(why, self._slow_start)

    def restore(self, now: float) -> None:
        """Return by hand: earlier ejections are forgiven. Does nothing in rotation."""
        if self.cause is not None:
            self.bring_back(now, "by hand")
        self._in_a_row = 0
