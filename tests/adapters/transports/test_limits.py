"""The limits of a call, read off a request."""

from typing import Any

import httpx
import pytest

from adapters.transports.limits import DEFAULT_LIMITS, CallLimits, limits_of
from adapters.transports.tls import shared_tls_context


def request_with(extensions: dict[str, Any]) -> httpx.Request:
    return httpx.Request("GET", "http://localhost/", extensions=extensions)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, DEFAULT_LIMITS),
        ({"connect": 1, "read": 2, "write": 3, "pool": 4}, CallLimits(1, 2, 3, 4)),
        ({"read": 2}, DEFAULT_LIMITS._replace(read=2)),
        ({"connect": None}, DEFAULT_LIMITS),
        ({"connect": 0, "read": -1}, DEFAULT_LIMITS._replace(connect=0.001, read=0.001)),
        ({"read": float("inf")}, DEFAULT_LIMITS._replace(read=86_400)),
    ],
)
def test_limits_are_finite(given: dict[str, Any], expected: CallLimits) -> None:
    """What is missing, unlimited or used up becomes a finite limit above zero."""
    assert limits_of(request_with({"timeout": given})) == expected


def test_limits_have_defaults() -> None:
    """A request that says nothing gets the defaults."""
    assert limits_of(request_with({})) == CallLimits(connect=5, read=60, write=30, pool=5)


def test_tls_context_is_one_and_strict() -> None:
    """Everybody shares one context, which verifies names and refuses old TLS."""
    context = shared_tls_context()
    assert context is shared_tls_context()
    assert context.check_hostname
    assert context.minimum_version.name == "TLSv1_2"
