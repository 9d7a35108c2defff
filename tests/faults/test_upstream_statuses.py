"""What an upstream says by the status of its answer: the table of the error classes, played."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from fault_calls import CANARY_KEY
from fault_lab import Fault, Seen, make_tests
from raw_upstream import Peer, Script

OVERLOADED = Seen("overloaded", status=429, code="provider_overloaded", state="overloaded",
                  cut=False)  # fmt: skip
EXHAUSTED = Seen("overloaded", status=429, code="provider_exhausted", state="exhausted",
                 closed_for=60, cut=False)  # fmt: skip
FAILED = Seen("transient", code="provider_error", cut=False)
REFUSED = Seen("misconfigured", code="provider_misconfigured", state="misconfigured",
               closed_for=30, cut=False)  # fmt: skip
CALLER = Seen("caller", elsewhere=False, cut=False)


def body_of(message: str = "no", **fields: Any) -> bytes:
    """OpenAI's error body."""
    return json.dumps({"error": {"message": message, **fields}}).encode()


def saying(
    status: int, *head: bytes, body: bytes = b"", kind: bytes = b"application/json"
) -> Script:
    """Answer every request with this status."""
    lines = b"".join(line + b"\r\n" for line in head)

    async def script(peer: Peer) -> None:
        while await peer.read_request():
            await peer.answer(body or body_of(), status=b"%d X" % status, head=lines, kind=kind)

    return script


def overloaded(seconds: float | None, closed: float | None = None) -> Seen:
    """429 with a hint that is understood as these seconds."""
    return replace(OVERLOADED, retry_after=seconds, closed_for=closed or seconds)


def http_date(seconds: float) -> bytes:
    """A date, from the date that the answer itself has."""
    return format_datetime(SENT + timedelta(seconds=seconds), usegmt=True).encode()


SENT = datetime(2020, 2, 3, 4, 5, 6, tzinfo=UTC)
DATE = b"date: " + format_datetime(SENT, usegmt=True).encode()


def both(id_: str, name: str, script: Script, seen: Seen, note: str = "") -> Fault:
    """A fault that a stream meets as an unstreamed call does."""
    return Fault(id_, name, script, seen, seen, note=note)


RATE_LIMITS = [
    both("U32", "429 with Retry-After in seconds", saying(429, b"retry-after: 40"), overloaded(40),
         "Nobody waits for it while somebody else can serve; alone it is waited for if it fits "
         "the deadline and `max_retries` allows."),
    both("U32", "429 with Retry-After as a date",
         saying(429, DATE, b"retry-after: " + http_date(40)), overloaded(40),
         "Compared with the answer's own date, so that a provider's wrong clock does no harm."),
    both("U32", "429 with retry-after-ms",
         saying(429, b"retry-after-ms: 40000", b"retry-after: 7"), overloaded(40)),
    both("U32", "429 with a date in the past",
         saying(429, DATE, b"retry-after: " + http_date(-40)), overloaded(0, 1),
         "A hint of no time counts as none: closed for 1 s, doubling to 30 s."),
    both("U32", "429 with an absurd Retry-After", saying(429, b"retry-after: 99999999"),
         overloaded(300), "Capped at 300 s."),
    both("U32", "429 with a negative Retry-After", saying(429, b"retry-after: -5"),
         overloaded(None, 1)),
    both("U32", "429 with words for Retry-After", saying(429, b"retry-after: soon"),
         overloaded(None, 1)),
    both("U33", "429 without Retry-After", saying(429), overloaded(None, 1)),
    both("U33", "429 because a quota is used up",
         saying(429, b"retry-after: 1", body=body_of(code="insufficient_quota")),
         replace(EXHAUSTED, closed_for=1, retry_after=1),
         "No request waits for it, but the provider is asked again when its hint is over. Without "
         "a hint it is closed for 60 s, doubling to an hour."),
    both("U33", "429 because of a spending limit",
         saying(429, body=body_of("You have reached your spend limit", type="rate_limit_error")),
         EXHAUSTED, "Known by its words alone: Anthropic gives it the type of a rate limit."),
]  # fmt: skip

SERVER_ERRORS = [
    both("U34", "500", saying(500), replace(FAILED, status=500)),
    both("U34", "502 with a proxy's HTML", saying(502, body=b"<html>", kind=b"text/html"),
         replace(FAILED, status=502), "The HTML is not passed on."),
    both("U34", "504", saying(504), replace(FAILED, status=504)),
    both("U34", "503", saying(503), replace(overloaded(None, 1), status=503)),
    both("U34", "503 with Retry-After", saying(503, b"retry-after: 40"),
         replace(overloaded(40), status=503)),
    both("U34", "529", saying(529), replace(overloaded(None, 1), status=503),
         "Anthropic's word for overloaded; callers get a 503, which their clients know."),
    both("U34", "500 that must not be tried again", saying(500, b"x-should-retry: false"),
         replace(FAILED, status=500, elsewhere=False),
         "`x-should-retry: false` always wins, elsewhere too: the provider knows something of "
         "this request."),
    both("U34", "500 that may be tried again", saying(500, b"x-should-retry: true"),
         replace(FAILED, status=500)),
    both("U35", "408", saying(408), FAILED),
    both("U35", "425", saying(425), FAILED),
    both("U35", "409", saying(409), replace(CALLER, status=409),
         "A conflict is the caller's: with what it is, only the caller can know."),
]  # fmt: skip

REFUSALS = [
    both("U36", "400", saying(400), replace(CALLER, status=400),
         "In the provider's own words, with its type and code."),
    both("U36", "400 because the prompt is too long",
         saying(400, body=body_of(code="context_length_exceeded")),
         Seen("context_length", status=400, code="context_length_exceeded", elsewhere=False,
              cut=False), "Goes to the models under `fallbacks.context_length`, if there are any."),
    both("U36", "400 because of a content policy",
         saying(400, body=body_of(code="content_filter")),
         Seen("content_filter", "accepted", 400, "content_filter", elsewhere=False, cut=False),
         "Goes to the models under `fallbacks.content_filter`, if there are any."),
    both("U36", "404 of the caller's own id", saying(404, body=body_of("No such file: file-1")),
         replace(CALLER, status=404)),
    both("U36", "404 of a model", saying(404, body=body_of(code="model_not_found")), REFUSED,
         "The model's name there is the operator's to write."),
    both("U36", "413", saying(413), replace(CALLER, status=413)),
    both("U36", "415", saying(415), replace(CALLER, status=415)),
    both("U36", "422", saying(422, body=b'{"detail":[{"loc":["body","n"],"msg":"too big"}]}'),
         replace(CALLER, status=422)),
    both("U37", "401 that shows the key",
         saying(401, body=body_of(f"Incorrect API key provided: {CANARY_KEY}")), REFUSED,
         "A 502 for the caller, whose own key is in order. Closed for 30 s, doubling to 10 "
         "minutes, with an error in the log; `restore` ends it at once."),
    both("U37", "403", saying(403), REFUSED),
]  # fmt: skip

FAULTS = RATE_LIMITS + SERVER_ERRORS + REFUSALS

globals().update(make_tests(FAULTS))
