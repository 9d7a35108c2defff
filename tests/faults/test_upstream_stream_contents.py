"""Answers that are whole as bytes, and wrong in what they say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from fault_lab import COMPLETED, Fault, Seen, make_tests
from raw_upstream import (
    ANSWER,
    DONE,
    EVENTS,
    LAST_CHUNK,
    SSE_HEAD,
    WHOLE,
    Peer,
    Script,
    chunk,
    event,
)

BROKEN = Seen("broken", "maybe_accepted", 502, "provider_protocol_error", cut=False)
FAILED = Seen("transient", "maybe_accepted", 500, "provider_error", cut=False)
OVERLOADED = Seen("overloaded", "not_accepted", 503, "provider_overloaded", state="overloaded",
                  closed_for=1, cut=False)  # fmt: skip
REFUSED = Seen("misconfigured", code="provider_misconfigured", state="misconfigured",
               closed_for=30, cut=False)  # fmt: skip
CUT = Seen("after_commit", "accepted", 200, "stream_truncated", committed=True, elsewhere=False,
           text="we")  # fmt: skip
CUT_AT_THE_END = replace(CUT, text="well")
END = event(None, finish="stop")


def saying(body: bytes, events: bytes) -> Script:
    """Answer every request with these bytes, correctly framed."""

    async def script(peer: Peer) -> None:
        while await peer.read_request():
            if peer.streamed:
                await peer.send(SSE_HEAD + chunk(events) + LAST_CHUNK)
            else:
                await peer.answer(body)

    return script


def go_on_after_the_end(events: bytes) -> Script:
    """Send these events, and keep the stream open."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(SSE_HEAD + chunk(events))
        await peer.hold()

    return script


def error(kind: str) -> bytes:
    """The error object of an answer with status 200."""
    return json.dumps({"error": {"message": "no", "type": kind}}).encode()


def error_event(kind: str, name: bytes = b"") -> bytes:
    """An event that holds an error."""
    return name + b"data: " + error(kind) + b"\n\n"


def answer(**fields: Any) -> bytes:
    """A whole answer with other fields."""
    return json.dumps({**ANSWER, **fields}).encode()


NO_FINISH = {"index": 0, "message": {"role": "assistant", "content": "well"}}
SAYS_NOTHING = event("") * 3 + DONE
NO_CHOICES = b'data: {"id":"answer-1","choices":[]}\n\n' + DONE
NAMED = b"event: error\n"

FAULTS = [
    Fault("U42", "no choices", saying(answer(choices=[]), NO_CHOICES), BROKEN, BROKEN),
    Fault("U42", "empty deltas and nothing else", saying(WHOLE, SAYS_NOTHING), None, BROKEN),
    Fault("U42", "no usage, and another model's name",
          saying(answer(usage=None, model="other"), EVENTS.replace(b'"well"', b'"other"')),
          COMPLETED, COMPLETED, note="Passed on; without usage, tokens are not counted."),
    Fault("U42", "no finish reason", saying(answer(choices=[NO_FINISH]), event("we") + event("ll")
          + DONE), COMPLETED, COMPLETED, note="The end marker is enough."),
    Fault("U42", "no end marker", saying(WHOLE, event("we") + event("ll") + END), None, COMPLETED,
          note="Some servers send none: the finish reason of each choice is enough, and the caller "
          "gets its end marker from the gateway."),
    Fault("U42", "neither end marker nor finish reason", saying(WHOLE, event("we") + event("ll")),
          None, CUT_AT_THE_END),
    Fault("U43", "error with status 200 before the first output",
          saying(error("server_error"), error_event("server_error") + DONE), FAILED, FAILED),
    Fault("U43", "named error event first",
          saying(error("server_error"), error_event("server_error", NAMED)), FAILED, FAILED),
    Fault("U43", "error event after a role and before the first output",
          saying(WHOLE, event("") + error_event("server_error")), None, FAILED),
    Fault("U43", "overloaded, said with status 200",
          saying(error("overloaded_error"), error_event("overloaded_error")), OVERLOADED,
          OVERLOADED),
    Fault("U43", "bad key, said with status 200",
          saying(error("authentication_error"), error_event("authentication_error")), REFUSED,
          REFUSED),
    Fault("U43", "error event after the first output",
          saying(WHOLE, event("we") + error_event("overloaded_error") + DONE), None, CUT,
          note="The caller gets the gateway's own error event, and no end marker."),
    Fault("U44", "two end markers", saying(WHOLE, EVENTS + DONE), None, COMPLETED),
    Fault("U44", "data after the end marker", saying(WHOLE, EVENTS + event("surplus")), None,
          COMPLETED),
    Fault("U44", "stream stays open after the end marker", go_on_after_the_end(EVENTS), None,
          replace(COMPLETED, cut=True),
          note="The caller's stream ends at the marker; the connection is cut after 0.1 s."),
    Fault("U44", "a chunk twice", saying(WHOLE, event("we") + EVENTS), None,
          replace(COMPLETED, text="wewell"),
          note="Passed on: nothing in a chunk tells a repetition from a text that repeats."),
]  # fmt: skip

globals().update(make_tests(FAULTS))
