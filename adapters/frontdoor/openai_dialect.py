"""The wire shapes of the OpenAI API: errors, events of a stream, lists of models."""

from __future__ import annotations

import json
from typing import Any, Protocol

from adapters.frontdoor.failure import Failure
from engine.model_catalogue import ModelEntry
from engine.operations import Chunk, Response

JSON_TYPE = b"application/json"
SSE_TYPE = b"text/event-stream; charset=utf-8"


class Dialect(Protocol):
    """How one family of clients wants answers, streams and errors to look.

    Attributes:
        stream_end: What a stream that is complete ends with.
    """

    stream_end: bytes

    def answer(self, response: Response) -> bytes:
        """The body of a whole answer."""
        ...

    def event(self, chunk: Chunk) -> bytes:
        """One event of a stream, framing included."""
        ...

    def error(self, failure: Failure) -> bytes:
        """The body of an error answer."""
        ...

    def error_event(self, failure: Failure) -> bytes:
        """The event that tells, in a stream, that it is not complete."""
        ...


class OpenAIDialect:
    """What the OpenAI clients read and write."""

    stream_end = b"data: [DONE]\n\n"

    def answer(self, response: Response) -> bytes:
        """The provider's bytes as they came, or its object as JSON."""
        return response.raw if response.raw is not None else encode(response.body)

    def event(self, chunk: Chunk) -> bytes:
        """`data: {…}` and a blank line."""
        data = chunk.data
        if b"\n" in data or b"\r" in data:
            # Each line of an event's data needs its own field name, or the rest is lost.
            data = b"\ndata: ".join(data.splitlines())
        return b"data: %b\n\n" % data

    def error(self, failure: Failure) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return encode(
            {
                "error": {
                    "message": failure.message,
                    "type": failure.type,
                    "param": failure.param,
                    "code": failure.code,
                }
            }
        )

    def error_event(self, failure: Failure) -> bytes:
        """An event whose data has the key `error`, which the clients raise as an exception."""
        return b"data: %b\n\n" % self.error(failure)


OPENAI = OpenAIDialect()


def encode(value: Any) -> bytes:
    """Compact JSON in UTF-8; half a surrogate pair stays an escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def model_object(entry: ModelEntry) -> dict[str, Any]:
    """One model as `GET /v1/models` shows it."""
    return {
        "id": entry.name,
        "object": "model",
        "created": 0,
        "owned_by": ", ".join(entry.providers),
    }
