"""The faults that a mock provider can show, each as a transport would show the real one."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable
from typing import Any, Final

import anyio
import httpx

Step = tuple[float, bytes | Exception]
"""Seconds to wait (infinite: for ever), and then what comes."""

DONE: Final = b"data: [DONE]\n\n"
WITH_RETRY_AFTER: Final = frozenset({429, 503, 529})

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream; charset=utf-8"
_HTML: Final = b"<!DOCTYPE html><html><body><h1>Bad gateway</h1></body></html>"
_BLOCK: Final = b" " * 65_536
# Endless and slow faults wait a little, so that they do not take the whole machine.
_TRICKLE: Final = 0.01

_LOST: Final[dict[str, Callable[[], httpx.TransportError]]] = {
    "refused": lambda: httpx.ConnectError("[Errno 111] Connection refused"),
    "dns": lambda: httpx.ConnectError("[Errno -2] Name or service not known"),
    "tls": lambda: httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] verify failed"),
    "connect_timeout": lambda: httpx.ConnectTimeout("timed out"),
    "pool_timeout": lambda: httpx.PoolTimeout("no free connection"),
    "reset_before": lambda: httpx.ReadError("[Errno 104] Connection reset by peer"),
    "closed_early": lambda: httpx.RemoteProtocolError("disconnected without a response"),
    "write_error": lambda: httpx.WriteError("[Errno 32] Broken pipe"),
    "read_timeout": lambda: httpx.ReadTimeout("timed out"),
}
_WAITS: Final = {"connect_timeout": "connect", "pool_timeout": "pool", "read_timeout": "read"}

_STATUSES: Final = {
    "redirect": 302,
    "quota_429": 429,
    "model_not_found": 404,
    "context_length": 400,
    "content_filter": 400,
}
_WORDS: Final = {
    "quota_429": ("You exceeded your current quota.", "insufficient_quota"),
    "model_not_found": ("The model `mock-model` does not exist.", "model_not_found"),
    "context_length": (
        "This model's maximum context length is 128 tokens, but your messages are longer.",
        "context_length_exceeded",
    ),
    "content_filter": ("The request was refused by the content policy.", "content_filter"),
    "http_401": ("Incorrect API key provided.", "invalid_api_key"),
    "http_429": ("Rate limit reached.", "rate_limit_exceeded"),
}


async def raise_below_http(fault: str, request: httpx.Request) -> None:
    """Hang or raise, if the fault lies below HTTP; time-outs come when they are due.

    Raises:
        httpx.TransportError: What a transport raises for this fault.
    """
    if fault == "hang":
        await anyio.sleep_forever()
    if fault not in _LOST:
        return
    limit = request.extensions.get("timeout", {}).get(_WAITS.get(fault))
    if limit:
        await anyio.sleep(limit)
    lost = _LOST[fault]
    raise lost()


def status_of(fault: str) -> int | None:
    """The HTTP status of a fault, or None if it shows with 200."""
    return int(fault[5:]) if fault.startswith("http_") else _STATUSES.get(fault)


def words_of_status(fault: str) -> tuple[str, str | None]:
    """Message and code of a status fault."""
    return _WORDS.get(fault, (f"The mock answers {status_of(fault)}.", None))


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def spoil_whole(
    fault: str, body: dict[str, Any], error: dict[str, Any]
) -> tuple[str, Iterable[Step]]:
    """Content type and steps of an answer that is not streamed, with a fault in it."""
    raw = json.dumps(body, separators=(",", ":")).encode()
    half = raw[: len(raw) // 2]
    choices = "data" if "data" in body else "choices"
    reset = httpx.ReadError("[Errno 104] Connection reset by peer")
    short = httpx.RemoteProtocolError("peer closed connection without complete message body")
    spoiled: dict[str, Iterable[Step]] = {
        "html": [(0, _HTML)],
        "not_json": [(0, b"upstream connect error")],
        "empty": [],
        "cut_json": [(0, half)],
        "early_end": [(0, half)],
        "empty_choices": [(0, json.dumps({**body, choices: []}).encode())],
        "error_200": [(0, json.dumps(error).encode())],
        "error_event_first": [(0, json.dumps(error).encode())],
        "error_event_mid": [(0, json.dumps(error).encode())],
        "reset_after": [(0, half), (0, reset)],
        "cut_stream": [(0, half), (0, short)],
        "stall_first": [(math.inf, b"")],
        "stall_stream": [(0, half), (math.inf, b"")],
        "garbled_first": [(0, b"\xff" + raw)],
        "garbled_event": [(0, half + b"\xff\xfe"), (0, raw)],
        "oversized_event": itertools.repeat((0.0, _BLOCK), 1_000),
        "endless_stream": itertools.repeat((_TRICKLE, b" ")),
        "slow_trickle": [(_TRICKLE, raw[at : at + 1]) for at in range(len(raw))],
        "wrong_content_type": [(0, b"data: " + raw + b"\n\n")],
    }
    content_type = {"html": "text/html", "wrong_content_type": _EVENTS}.get(fault, _JSON)
    return content_type, spoiled.get(fault, [(0, raw)])


def spoil_stream(
    fault: str, steps: list[Step], whole: dict[str, Any], error: dict[str, Any]
) -> tuple[str, Iterable[Step]]:
    """Content type and steps of a stream with a fault in it."""
    if fault in ("html", "not_json", "empty_choices", "error_200", "wrong_content_type"):
        return _spoil_before_stream(fault, whole, error)
    # Behind the role and the first word, before the last: something was said by then.
    middle = max(2, len(steps) // 2)
    begun = steps[:middle]
    rest = steps[middle:]
    reset = httpx.ReadError("[Errno 104] Connection reset by peer")
    short = httpx.RemoteProtocolError("incomplete chunked read")
    garbage = b'data: {"choices":[{"delta":\xff\xfe}\n\n'
    spoiled: dict[str, Iterable[Step]] = {
        "empty": [],
        "cut_json": [*begun, (0, event(whole)[:40])],
        "reset_after": [*begun, (0, reset)],
        "cut_stream": [*begun, (0, event(whole)[:40]), (0, short)],
        "early_end": begun,
        "stall_first": [(math.inf, b"")],
        "stall_stream": [*begun, (math.inf, b"")],
        "error_event_first": [(0, event(error))],
        "error_event_mid": [*begun, (0, event(error))],
        "garbled_first": [(0, garbage), *steps],
        "garbled_event": [*begun, (0, garbage), *rest],
        "oversized_event": itertools.chain(
            begun, [(0.0, b"data: ")], itertools.repeat((0.0, _BLOCK), 100)
        ),
        "endless_stream": itertools.chain(
            begun, itertools.repeat((_TRICKLE, _words_only(steps[middle - 1][1])))
        ),
        "slow_trickle": (
            (_TRICKLE, what[at : at + 1])
            for _, what in steps
            if isinstance(what, bytes)
            for at in range(len(what))
        ),
        "no_done": steps[:-1],
        "double_done": [*steps, (0, b"data: {\n\n"), (0, DONE)],
    }
    return _EVENTS, spoiled.get(fault, steps)


def _words_only(what: bytes | Exception) -> bytes:
    return what if isinstance(what, bytes) else b": nothing\n\n"


def _spoil_before_stream(
    fault: str, whole: dict[str, Any], error: dict[str, Any]
) -> tuple[str, Iterable[Step]]:
    raw = json.dumps(whole).encode()
    empty = event({**whole, "choices": []})
    spoiled: dict[str, tuple[str, Iterable[Step]]] = {
        "html": ("text/html", [(0, _HTML)]),
        "not_json": (_EVENTS, [(0, b"data: upstream connect error\n\n")]),
        "empty_choices": (_EVENTS, [(0, empty), (0, DONE)]),
        "error_200": (_JSON, [(0, json.dumps(error).encode())]),
        "wrong_content_type": (_JSON, [(0, raw)]),
    }
    return spoiled[fault]
