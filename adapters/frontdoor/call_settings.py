"""What a caller says about its request in header fields: how long, how urgent, and which one.

```
x-request-timeout-ms: 2500        its own deadline, milliseconds
x-gateway-priority: sheddable     what may be shed first: critical, sheddable_plus, sheddable
Idempotency-Key: 0190-5f21        the same request, however often it is sent
```
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapters.frontdoor.access import presented_key
from engine.errors import InvalidRequestError
from engine.priority import Priority

TIMEOUT_HEADER: Final = "x-request-timeout-ms"
"""Header field by which a caller gives its own deadline, milliseconds."""
PRIORITY_HEADER: Final = "x-gateway-priority"
"""Header field by which a caller says that others matter more than it does."""

_FIELDS: Final = (TIMEOUT_HEADER.encode(), PRIORITY_HEADER.encode(), b"idempotency-key")
_MILLISECONDS: Final = re.compile(rb"[0-9]{1,12}(?:\.[0-9]{1,6})?")
# The highest class is not for whoever asks for it: everybody would.
_PRIORITIES: Final = {
    priority.word.encode(): priority for priority in Priority if priority >= Priority.CRITICAL
}
_RESERVED: Final = Priority.CRITICAL_PLUS.word


@dataclass(frozen=True, slots=True, repr=False)
class CallSettings:
    """The settings of one call.

    Attributes:
        timeout: Seconds from the request's head to its answer; None leaves it to the engine.
        priority: How much it matters when not all can be served.
        idempotency_key: What tells that it is the same request; None for no such thing.
        idempotency_scope: Whose key it is: a digest of the API key, empty without one.
    """

    timeout: float | None = None
    priority: Priority = Priority.CRITICAL
    idempotency_key: str | None = None
    idempotency_scope: str = ""

    def __repr__(self) -> str:
        # Neither the idempotency key nor the digest: both are the caller's own.
        return f"CallSettings(timeout={self.timeout}, priority={self.priority.word})"


_ORDINARY: Final = CallSettings()


def call_settings(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> CallSettings:
    """Read the settings from a request's header fields, before its body is read.

    Three looks into a dictionary for a request that has none of them.

    Args:
        scope: The request's ASGI scope.
        headers: Its header fields, names in lower case.

    Raises:
        InvalidRequestError: If a field says something else than it may.
    """
    if headers.keys().isdisjoint(_FIELDS):
        return _ORDINARY
    timeout, priority, key = map(headers.get, _FIELDS)
    return CallSettings(
        timeout=None if timeout is None else _seconds(timeout),
        priority=Priority.CRITICAL if priority is None else _priority(priority),
        # Latin-1 takes every byte; the engine says which characters a key may have.
        idempotency_key=None if key is None else key.decode("latin-1"),
        idempotency_scope="" if key is None else _owner(scope, headers),
    )


def _owner(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str:
    """Whose idempotency key it is."""
    caller = presented_key(scope, headers)
    return "" if caller is None else hashlib.sha256(caller).hexdigest()


def _seconds(given: bytes) -> float:
    seconds = float(given) / 1000 if _MILLISECONDS.fullmatch(given) else math.nan
    if not seconds > 0:
        msg = f"the header {TIMEOUT_HEADER} must be a positive number of milliseconds"
        raise InvalidRequestError(msg, param=TIMEOUT_HEADER, code="invalid_value")
    return seconds


def _priority(given: bytes) -> Priority:
    word = given.lower()
    priority = _PRIORITIES.get(word)
    if priority is not None:
        return priority
    known = ", ".join(name.decode() for name in _PRIORITIES)
    if word == _RESERVED.encode():
        msg = f"the header {PRIORITY_HEADER} can only lower a priority: it takes {known}"
    else:
        msg = f"the header {PRIORITY_HEADER} takes one of {known}"
    raise InvalidRequestError(msg, param=PRIORITY_HEADER, code="invalid_value")
