"""The bytes that travel in the benchmarks: fixed, so that results can be compared."""

from __future__ import annotations

import json
from typing import Any, Final

ANSWER_BYTES: Final = 600
REQUEST_BYTES: Final = 300
EVENTS: Final = 22
"""Chunks of a stream, first and last included; the end marker comes on top."""

EVENT_GAP: Final = 0.002
"""Seconds between two events of a paced stream: 500 tokens a second."""

PACED_MODEL: Final = "paced-stream"
"""Asking for this model makes the upstream pace its events; others come all at once."""

DONE: Final = b"[DONE]"

_MESSAGE: Final = {"role": "assistant", "content": ""}
_ANSWER: Final[dict[str, Any]] = {
    "id": "chatcmpl-0123456789abcdef",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "benchmark-model",
    "choices": [{"index": 0, "message": _MESSAGE, "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 42, "completion_tokens": 64, "total_tokens": 106},
    "system_fingerprint": "fp_0123456789",
}


def _dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _words(count: int) -> str:
    """So many characters of plain words."""
    return ("a fast gateway adds little to what a model costs " * (count // 49 + 1))[:count]


def _answer() -> bytes:
    missing = ANSWER_BYTES - len(_dump(_ANSWER))
    choice = {**_ANSWER["choices"][0], "message": {**_MESSAGE, "content": _words(missing)}}
    return _dump({**_ANSWER, "choices": [choice]})


def _chunk(delta: dict[str, str], finish_reason: str | None) -> bytes:
    return _dump(
        {
            "id": _ANSWER["id"],
            "object": "chat.completion.chunk",
            "created": _ANSWER["created"],
            "model": _ANSWER["model"],
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        }
    )


ANSWER: Final = _answer()
"""A chat answer of `ANSWER_BYTES` bytes."""

CHUNKS: Final = (
    _chunk({"role": "assistant", "content": ""}, None),
    *(_chunk({"content": f"word{number:02} "}, None) for number in range(EVENTS - 2)),
    _chunk({}, "stop"),
)
"""The data of `EVENTS` stream events."""


def request_body(
    *, streamed: bool = False, paced: bool = False, model: str = "benchmark-model"
) -> bytes:
    """A chat request of `REQUEST_BYTES` bytes."""
    body: dict[str, Any] = {
        "model": PACED_MODEL if paced else model,
        "messages": [{"role": "user", "content": ""}],
        "temperature": 0.2,
        "max_tokens": 64,
        "stream": streamed,
    }
    body["messages"][0]["content"] = _words(REQUEST_BYTES - len(_dump(body)))
    return _dump(body)


def request_message(port: int, body: bytes, *fields: tuple[str, str]) -> bytes:
    """A whole HTTP/1.1 request for a chat completion at this port of the loopback interface.

    Args:
        port: Where it goes.
        body: What is asked.
        fields: Further header fields, name and value.
    """
    more = "".join(f"{name}: {value}\r\n" for name, value in fields)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\n"
        f"host: 127.0.0.1:{port}\r\n"
        "accept: */*\r\n"
        "user-agent: benchmark\r\n"
        "content-type: application/json\r\n"
        f"content-length: {len(body)}\r\n"
        f"{more}\r\n"
    )
    return head.encode("ascii") + body


def event(data: bytes) -> bytes:
    """One server-sent event."""
    return b"data: " + data + b"\n\n"


def http_chunk(data: bytes) -> bytes:
    """One piece of a body with chunked transfer coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)
