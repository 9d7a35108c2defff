"""What a caller is told about a failure, and in which shape."""

from __future__ import annotations

import json

import pytest

from adapters.frontdoor.body_limits import BodyTimeoutError, BodyTooLargeError
from adapters.frontdoor.client_advice import wait_fields
from adapters.frontdoor.failure import failure_of
from adapters.frontdoor.openai_dialect import OPENAI
from adapters.frontdoor.request_errors import UnauthorizedError
from engine import (
    BrokenError,
    CallerError,
    Chunk,
    ConfigurationError,
    DeadlineExceededError,
    InvalidRequestError,
    MisconfiguredError,
    NoProviderAvailableError,
    OverloadedError,
    Replay,
    RouterClosedError,
    SilentError,
    StreamTruncatedError,
    TransientError,
)


@pytest.mark.parametrize(
    ("error", "status", "code", "should_retry", "wait", "outcome"),
    [
        (InvalidRequestError("x", param="p", code="c"), 400, "c", False, None, "rejected"),
        (InvalidRequestError("x", status=409), 409, None, None, None, "rejected"),
        (UnauthorizedError(), 401, "invalid_api_key", False, None, "rejected"),
        (CallerError("x", status=422), 422, None, False, None, "failed"),
        (CallerError("x", status=429, retry_after=0.2), 429, None, None, 0.2, "failed"),
        (NoProviderAvailableError("x"), 503, "no_provider_available", None, 1.0, "rejected"),
        (RouterClosedError(), 503, "router_closed", None, 1.0, "rejected"),
        (OverloadedError("x"), 503, "provider_overloaded", None, 1.0, "failed"),
        (OverloadedError("x", retry_after=7.2), 503, "provider_overloaded", None, 7.2, "failed"),
        (OverloadedError("x", retry_after=float("inf")), 503, "provider_overloaded", None, 1.0,
         "failed"),
        (TransientError("x"), 502, "provider_error", None, None, "failed"),
        (SilentError("x"), 504, "provider_timeout", False, None, "failed"),
        (MisconfiguredError("x"), 502, "provider_misconfigured", False, None, "failed"),
        (DeadlineExceededError("x"), 504, "deadline_exceeded", False, None, "failed"),
        (StreamTruncatedError("x"), 502, "stream_truncated", False, None, "truncated"),
        (BodyTooLargeError("x"), 413, "body_too_large", False, None, "rejected"),
        (BodyTimeoutError("x"), 408, "body_timeout", None, None, "rejected"),
        (ConfigurationError("SECRET_ENV"), 500, "internal_error", None, None, "failed"),
        (ZeroDivisionError("SECRET"), 500, "internal_error", None, None, "failed"),
    ],
)  # fmt: skip
def test_what_a_caller_is_told(  # noqa: PLR0917 - the columns of the table
    error: Exception,
    status: int,
    code: str | None,
    should_retry: bool | None,
    wait: float | None,
    outcome: str,
) -> None:
    """Each error has its status, its code, its hint when to come back, and no secret."""
    failure = failure_of(error, "req-1")
    assert (failure.status, failure.code) == (status, code)
    assert (failure.should_retry, failure.wait) == (should_retry, wait)
    assert failure.outcome.value == outcome
    fields = dict(failure.header_fields())
    assert (b"retry-after" in fields) == (status in {429, 503})
    assert fields.get(b"x-should-retry") == (b"false" if should_retry is False else None)
    if wait is not None:
        assert int(fields[b"retry-after"]) >= max(1, wait)
        assert int(fields[b"retry-after-ms"]) >= wait * 1000
    assert "SECRET" not in repr(failure)


def test_long_messages_are_cut() -> None:
    """An upstream cannot fill a caller's log through the gateway."""
    assert len(failure_of(CallerError("x" * 5000), "r").message) == 1024


def test_error_body_is_what_the_clients_read() -> None:
    """The four fields of the OpenAI error object, null where there is nothing to say."""
    body = OPENAI.error(failure_of(InvalidRequestError("wrong \u00e9", param="model"), "r"))
    assert json.loads(body) == {
        "error": {
            "message": "wrong \u00e9",
            "type": "invalid_request_error",
            "param": "model",
            "code": None,
        }
    }


@pytest.mark.parametrize("breaks", [b"\n", b"\r", b"\r\n"])
def test_line_breaks_inside_an_event_are_framed(breaks: bytes) -> None:
    """Each line of an event's data gets its field name, so that nothing is dropped."""
    event = OPENAI.event(Chunk(b'{"a":' + breaks + b"1}"))
    assert event == b'data: {"a":\ndata: 1}\n\n'


def test_failures_say_how_many_attempts_were_made() -> None:
    """A caller that got an error learns how often upstreams were asked for it."""
    error = CallerError("no")
    error.attempts = 3
    assert (b"x-gateway-attempts", b"3") in failure_of(error, "r").header_fields()
    assert b"x-gateway-attempts" not in dict(failure_of(CallerError("no"), "r").header_fields())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TransientError("x", replay=Replay.NOT_ACCEPTED), None),
        (TransientError("x", replay=Replay.MAYBE_ACCEPTED), b"false"),
        (BrokenError("x", replay=Replay.ACCEPTED), b"false"),
        (TransientError("x", should_retry=False), b"false"),
        (TransientError("x", replay=Replay.MAYBE_ACCEPTED, should_retry=True), b"true"),
        (CallerError("x", status=409, should_retry=False), b"false"),
        (CallerError("x", status=400, should_retry=True), b"true"),
        (MisconfiguredError("x", should_retry=True), b"false"),
    ],
)
def test_clients_are_told_not_to_repeat_what_may_be_billed(
    error: Exception, expected: bytes | None
) -> None:
    """No automatic repeat after a failure that may have cost; the provider's own word wins."""
    assert dict(failure_of(error, "r").header_fields()).get(b"x-should-retry") == expected


def test_failures_name_the_other_models_that_were_asked() -> None:
    """A caller that got an error learns which fallbacks were tried, and why no more was."""
    error = TransientError("no")
    error.fallbacks, error.retry_denied = ("small", "f\u00fcnf"), "budget"
    fields = dict(failure_of(error, "r").header_fields())
    assert fields[b"x-gateway-fallback"] == "small, f\u00fcnf".encode("latin-1")
    assert fields[b"x-gateway-retry"] == b"budget"
    assert not {b"x-gateway-fallback", b"x-gateway-retry"} & set(
        dict(failure_of(TransientError("no"), "r").header_fields())
    )


@pytest.mark.parametrize(
    ("seconds", "whole", "milliseconds"),
    [(0.0001, b"1", b"1"), (1.0, b"1", b"1000"), (1.0004, b"2", b"1001"), (59.2, b"60", b"59200")],
)
def test_waits_are_rounded_up(seconds: float, whole: bytes, milliseconds: bytes) -> None:
    """Nobody is told to come back before it makes sense."""
    assert dict(wait_fields(seconds)) == {b"retry-after": whole, b"retry-after-ms": milliseconds}
