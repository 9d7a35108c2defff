"""What an answer tells a client's own retry loop: when to come back, or not to.

The OpenAI and Anthropic clients repeat 408, 409, 429 and everything from 500 on by themselves,
twice unless told otherwise. They obey ``x-should-retry`` above all, then ``retry-after-ms``, then
``Retry-After``.
"""

import math
from typing import Final

Header = tuple[bytes, bytes]

ASK_LATER: Final = frozenset({429, 503})
"""Statuses that always say when to come back."""

_REPEATED_BY_CLIENTS: Final = frozenset({408, 409, 429})
_SERVER_ERROR: Final = 500
_VERSION_NOT_SUPPORTED: Final = 505


def cannot_help(status: int) -> bool:
    """Tell whether the same request would get the same answer: it is the caller's mistake."""
    if status >= _SERVER_ERROR:
        return status == _VERSION_NOT_SUPPORTED
    return status not in _REPEATED_BY_CLIENTS


def wait_fields(seconds: float) -> list[Header]:
    """Say after how many seconds another try makes sense; never less than that."""
    # RFC 9110 knows whole seconds only, and rounding down would bring everybody back too early.
    return [
        (b"retry-after", b"%d" % max(1, math.ceil(seconds))),
        (b"retry-after-ms", b"%d" % max(1, math.ceil(seconds * 1000))),
    ]


def repeat_field(*, repeats: bool) -> Header:
    """Say whether the client should send the request again by itself."""
    return (b"x-should-retry", b"true" if repeats else b"false")
