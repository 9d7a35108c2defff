"""`ProviderHealth`: what one provider's attempts came to, and whether it may be picked."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from engine.config import EjectionConfig
from engine.errors import (
    ErrorClass,
    ExhaustedError,
    GatewayError,
    MisconfiguredError,
    OverloadedError,
    ProviderError,
)
from engine.resilience.ejection import Ejection
from engine.resilience.failure_window import FailureWindow
from engine.resilience.health_log import HealthLog
from engine.resilience.health_status import LAST_RESORT, SOFT, HealthReason, HealthStatus
from engine.resilience.pause import Pause
from engine.resilience.retry import RETRY_RULES
from engine.resilience.signs_of_life import SignsOfLife

__all__ = ["LAST_RESORT", "SOFT", "HealthReason", "HealthStatus", "ProviderHealth"]

OVERLOADED_FIRST = 1.0
OVERLOADED_LONGEST = 30.0
EXHAUSTED_FIRST = 60.0
EXHAUSTED_LONGEST = 3_600.0

QUOTA = "a quota or a spending limit is used up"

PROBE_GUESS = 1.0
"""Seconds after which to ask again while a probe is under way: nobody knows its end."""


class ProviderHealth:
    """Passive health of one provider: counts, pauses, ejection, and signs of life.

    Every instant is a reading of the router's clock that the caller took. While all is
    well each call costs a few attribute checks.

    Attributes:
        completed: Attempts that succeeded.
        failed: Attempts that failed, by error class; bounded by the number of classes.
        consecutive_failures: Failures since the last success.
        suspect: Whether anything at all differs from a provider that is well: the one attribute
            that the way of an ordinary request looks at.
        signs: How soon its attempts show life.
        may_eject: Whether one more provider may be ejected for its failure rate.

    Args:
        config: The rules of ejection.
        rng: Source of jitter.
        may_eject: See above; asked only when the rule applies.
        name: The provider's name, for the log.
    """

    def __init__(
        self,
        config: EjectionConfig,
        rng: random.Random,
        *,
        may_eject: Callable[[], bool] = lambda: True,
        name: str = "unknown",
    ) -> None:
        self.completed = 0
        self.failed: dict[ErrorClass, int] = {}
        self.consecutive_failures = 0
        self.may_eject = may_eject
        self._config = config
        self._unproven_concurrency = config.unproven_concurrency
        self._log = HealthLog(name)
        self._ejection = Ejection(config, rng, self._log)
        self._overloaded = Pause(OVERLOADED_FIRST, OVERLOADED_LONGEST)
        self._exhausted = Pause(EXHAUSTED_FIRST, EXHAUSTED_LONGEST)
        self._window = FailureWindow(config.window)
        self.signs = SignsOfLife(config.unproven_concurrency)
        self._failed_checks = 0
        self._was_exhausted = False
        self.suspect = False

    # ── what the dispatcher asks ─────────────────────────────────────────────────

    def unavailable(self, now: float, in_flight: int) -> str | None:
        """The `HealthReason` for which it must not be picked; None if it may be.

        Args:
            now: The instant.
            in_flight: Attempts that run at the provider.
        """
        if self.suspect:
            reason = self._why_not(now, in_flight)
            if reason is None:
                self._look_whether_all_is_well(now)
            return reason
        if in_flight >= self._unproven_concurrency and self.signs.silent(now):
            return HealthReason.UNPROVEN
        return None

    def available_in(self, now: float) -> float:
        """Seconds until it makes sense to ask again; 0 if it is available.

        Infinite for a provider that was ejected by hand without an end.
        """
        reason = self._why_not(now, 0) if self.suspect else None
        if reason is None:
            return 0.0
        if reason is HealthReason.PROBING:
            return PROBE_GUESS
        ejected = 0.0 if self._ejection.cause is None else self._ejection.until
        return max(ejected, self._overloaded.until, self._exhausted.until) - now

    @property
    def full_share(self) -> bool:
        """Whether `share` is 1 for sure; says False for a slow start that ended unnoticed."""
        return not self.suspect or self._ejection.full_share

    def share(self, now: float) -> float:
        """The part of its weight that counts: below 1 in slow start, never below 0.1."""
        if not self.suspect or self._ejection.has_grown(now):
            return 1.0
        return self._ejection.share(now)

    def _why_not(self, now: float, in_flight: int) -> HealthReason | None:
        ejection = self._ejection
        if ejection.cause is not None or max(self._exhausted.until, self._overloaded.until) > now:
            return self._closed(now)
        unproven = self.consecutive_failures > 0 or ejection.share(now) < 1
        if in_flight < self._unproven_concurrency:
            return None
        return HealthReason.UNPROVEN if unproven or self.signs.silent(now) else None

    def _look_whether_all_is_well(self, now: float) -> None:
        # Apart from `_why_not`, which a snapshot asks too: those are taken in the thread
        # of a metrics exporter as well, where nothing may be changed.
        self.suspect = (
            self._ejection.cause is not None
            or self.consecutive_failures > 0
            or not self._ejection.has_grown(now)
            or not (self._overloaded.idle(now) and self._exhausted.idle(now))
        )

    def _closed(self, now: float) -> HealthReason | None:
        cause = self._ejection.cause
        closed = self._ejection.closed(now)
        # What nobody may pass over goes first, or the last resort would overrule it.
        if closed and cause is not HealthReason.EJECTED:
            return cause
        if self._exhausted.until > now:
            return HealthReason.EXHAUSTED
        if self._overloaded.until > now:
            return HealthReason.OVERLOADED
        if closed:
            return cause
        return HealthReason.PROBING if self._ejection.probing else None

    @property
    def ejected(self) -> bool:
        """Whether its failures took it out of rotation, or it has yet to prove itself again."""
        return self._ejection.cause is HealthReason.EJECTED

    # ── what the attempts tell ───────────────────────────────────────────────────

    def begin(self, now: float) -> bool:
        """A request was handed to the provider's actor.

        Returns:
            Whether it is the live probe; whoever ends it must say so.
        """
        return self.suspect and self._ejection.begin(now)

    def note_start(self, now: float) -> None:
        """An attempt begins: the request was sent on, out of the mailbox."""
        self.signs.note_start(now)

    def note_alive(self, now: float, seconds: float) -> None:
        """An attempt that began `seconds` ago showed its first sign of life."""
        self.signs.note(now, seconds)

    def note_success(self, now: float, seconds: float | None, probe: bool = False) -> None:
        """An attempt succeeded.

        Args:
            now: The instant.
            seconds: How long ago it began, if this is its first sign of life; None after
                `note_alive` (a stream), so that its time is not counted twice.
            probe: What `begin` answered for it.
        """
        self.completed += 1
        self._window.note_success(now)
        if seconds is not None:
            self.signs.note(now, seconds)
        if self.suspect or probe:
            self.consecutive_failures = 0
            self._overloaded.reset()
            self._exhausted.reset()
            if self._was_exhausted and self._exhausted.until <= now:
                self._was_exhausted = False
                self._log.back("its quota serves again", 0.0)
            if probe:
                self._ejection.probing = False
                if self._ejection.probe_succeeded(now):
                    self._forget()

    def note_nothing(self, now: float, probe: bool = False) -> None:  # noqa: ARG002
        """An attempt ended without telling anything: the next one may be the probe."""
        if probe:
            self._ejection.probing = False

    def note_failure(self, error: GatewayError | None, now: float, probe: bool = False) -> None:
        """An attempt failed; an error that says nothing of the provider is passed over.

        Args:
            error: The failure.
            now: The instant.
            probe: What `begin` answered for the attempt.
        """
        if probe:
            self._ejection.probing = False
        if not isinstance(error, ProviderError):
            return
        self.failed[error.error_class] = self.failed.get(error.error_class, 0) + 1
        if RETRY_RULES[error.error_class].counts_as_failure:
            self.suspect = True
            self._count_failure(error, now, probe=probe)
            return
        self.signs.note_refusal()
        if isinstance(error, ExhaustedError):
            self.suspect = True
            self._close_exhausted(error, now)
        elif isinstance(error, OverloadedError):
            self.suspect = True
            self._overloaded.close(now, error.retry_after)
        elif isinstance(error, MisconfiguredError):
            self.suspect = True
            # The status and never the text, which may hold a part of the key.
            status = error.upstream_status or "unknown"
            self._ejection.close_misconfigured(now, f"it refuses us (status {status})", probe=probe)

    def _count_failure(self, error: ProviderError, now: float, *, probe: bool) -> None:
        self.consecutive_failures += 1
        self._window.note_failure(now)
        ejection = self._ejection
        if ejection.cause is not None:
            if probe:
                ejection.probe_failed(now, f"its probe failed ({error.error_class})")
            return
        ejection.note_failure(now)
        in_a_row, limit = self.consecutive_failures, self._config.consecutive_failures
        if 0 < limit <= in_a_row:
            ejection.eject(now, f"{in_a_row} failures in a row, the last: {error.error_class}")
            return
        attempts, failures = self._window.totals(now)
        if (
            self._config.failure_rate > 0
            and attempts >= self._config.min_requests
            and failures >= self._config.failure_rate * attempts
            and self.may_eject()
        ):
            ejection.eject(
                now, f"{failures} of {attempts} attempts failed within {self._config.window:g} s"
            )

    def _close_exhausted(self, error: ExhaustedError, now: float) -> None:
        was_open = self._exhausted.until <= now
        self._exhausted.close(now, error.retry_after)
        if was_open:
            # Those in flight hear the same refusal, and say nothing new.
            self._was_exhausted = True
            self._log.exhausted(self._exhausted.until - now, QUOTA)

    # ── checks, and what people do ───────────────────────────────────────────────

    def note_check(self, ok: bool, now: float, failures: int, *, why: str | None = None) -> None:
        """An active check ended.

        Args:
            ok: Whether the provider is well. If so, an ejection by rule ends early; one by
                hand does not, nor does `misconfigured`: a check may need no key.
            now: The instant.
            failures: Failed checks in a row that eject.
            why: A word for what went wrong; none that the provider chose.
        """
        if ok:
            self._failed_checks = 0
            if self._ejection.cause is HealthReason.EJECTED:
                self._ejection.bring_back(now, "a check found it well")
                self._forget()
            return
        self._failed_checks += 1
        if self._failed_checks >= failures and not self._ejection.closed(now):
            self.suspect = True
            last = "" if why is None else f", the last: {why}"
            self._ejection.eject(now, f"{self._failed_checks} failed checks in a row{last}")

    def eject(self, now: float, seconds: float | None = None) -> None:
        """Take it out by hand, for some seconds (then one probe decides) or until `restore`."""
        self.suspect = True
        self._ejection.eject_by_hand(now, seconds)

    def restore(self, now: float) -> None:
        """End every closing and forget what led to it; who was out comes back by slow start."""
        if self._ejection.cause is None and self._exhausted.until > now:
            self._log.back("by hand", 0.0)
        self._was_exhausted = False
        self._ejection.restore(now)
        self._overloaded.clear()
        self._exhausted.clear()
        self._forget()

    def _forget(self) -> None:
        self.consecutive_failures = 0
        self._failed_checks = 0
        # Or the failures that ejected it would do so again at its first new one.
        self._window.clear()

    # ── what others read ─────────────────────────────────────────────────────────

    @property
    def mean_seconds(self) -> float | None:
        """Moving mean of the seconds to the first sign of life; None if unknown."""
        return self.signs.mean_seconds

    def quantile(self, part: float) -> float | None:
        """Seconds within which that part of the last attempts showed life; None if unknown."""
        return self.signs.quantile(part)

    def status(self, now: float) -> HealthStatus:
        """A snapshot; changes nothing, so that any thread may take one."""
        why_not = self._why_not(now, 0)
        attempts, failures = self._window.totals(now)
        state, reason, left = self._state(why_not, now)
        return HealthStatus(
            state=state,
            reason=reason,
            seconds_left=left if left is not None and 0 < left < math.inf else None,
            consecutive_failures=self.consecutive_failures,
            failure_rate=failures / attempts if attempts else None,
            ejections=self._ejection.total,
            share=self._ejection.share(now),
        )

    def _state(self, why_not: str | None, now: float) -> tuple[str, str | None, float | None]:
        """The word for the state, its reason and the seconds that are left of it."""
        ejection = self._ejection
        if why_not is HealthReason.EXHAUSTED:
            return why_not, QUOTA, self._exhausted.until - now
        if why_not is HealthReason.OVERLOADED:
            return why_not, "it asked for a pause", self._overloaded.until - now
        if ejection.cause is not None:
            left = ejection.until - now if ejection.closed(now) else None
            return why_not or "half_open", ejection.reason, left
        if ejection.share(now) < 1:
            return "slow_start", "back from an ejection", ejection.slow_start_left(now)
        return "healthy", None, None
