"""What a provider's headers say of trying again: whether, and after how long."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

MAX_RETRY_AFTER = 300.0
"""Seconds; a longer hint counts as this, so that a wrong one cannot close a provider for good."""

_NUMBER = re.compile(r"\d{1,15}(?:\.\d{0,9})?", re.ASCII)


def utc_now() -> datetime:
    """The wall clock, which only an HTTP date is ever compared with."""
    return datetime.now(UTC)


def parse_retry_after(
    headers: Mapping[str, str], *, now: Callable[[], datetime] = utc_now
) -> float | None:
    """Seconds to wait by an answer's headers, or None if they say nothing usable.

    `retry-after-ms` (milliseconds, as OpenAI sends it) goes before `Retry-After`
    (RFC 9110 section 10.2.3: seconds, or a date), whose seconds may have a fraction. A
    date in the past gives 0. A date is compared with the answer's own `Date` where there
    is one, so that a provider whose clock is wrong is understood as well.

    Args:
        headers: The answer's headers, with names that are found in lower case.
        now: The wall clock.
    """
    for name, unit in (("retry-after-ms", 1_000.0), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if _NUMBER.fullmatch(text):
            return min(float(text) / unit, MAX_RETRY_AFTER)
    until = _parse_date(text)
    if until is None:
        return None
    since = _parse_date(headers.get("date", "")) or now()
    return min(max((until - since).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _parse_date(text: str) -> datetime | None:
    if not text or not text[0].isalpha():
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def parse_should_retry(headers: Mapping[str, str]) -> bool | None:
    """What `x-should-retry` says, as OpenAI and Anthropic send it; None if nothing usable.

    Args:
        headers: The answer's headers, with names that are found in lower case.
    """
    return {"true": True, "false": False}.get(headers.get("x-should-retry", "").strip().lower())
