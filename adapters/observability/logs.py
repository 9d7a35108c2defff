"""The request log: one line for each request, typed fields only, never a prompt or a key."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal, TextIO

from adapters.observability.line_writer import CAPACITY, LineWriter

MAX_TEXT = 256
"""Characters of a field that are written; callers choose the model's name and the id."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What is logged of one request. There is no other field, so nothing else can leak.

    Attributes:
        request_id: The request's id.
        method: HTTP method.
        route: The route's pattern, such as `/v1/models/{id}`; never the path or its query.
        status: HTTP status of the answer.
        outcome: `completed`, `failed`, `truncated`, `cancelled` or `rejected`.
        model: The model's public name, as asked for.
        provider: Name of the provider that answered.
        attempts: Upstream calls.
        duration_ms: From the first byte of the request to the end of the answer.
        overhead_ms: The part of it that no upstream call was running.
        stream: Whether the answer was streamed.
        error_code: `error.code` of the answer.
    """

    request_id: str
    method: str
    route: str
    status: int
    outcome: str | None = None
    model: str | None = None
    provider: str | None = None
    attempts: int | None = None
    duration_ms: float | None = None
    overhead_ms: float | None = None
    stream: bool | None = None
    error_code: str | None = None


# Kept, because `json.dumps` makes an encoder for each call with separators.
encode_json = json.JSONEncoder(separators=(",", ":")).encode

_FIELDS = tuple(field.name for field in fields(RequestRecord))
_Entry = tuple[int, RequestRecord]


class RequestLog:
    """Writes request records as JSON for machines or as short lines for people.

    Args:
        form: `json`, `pretty`, or `none`, which writes nothing.
        stream: Where to; stdout when not given.
        capacity: Lines that may wait for a slow stream; what comes on top is dropped.
    """

    def __init__(
        self,
        form: Literal["pretty", "json", "none"],
        *,
        stream: TextIO | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self._told_dropped = 0
        self._form = form
        self._writer: LineWriter[_Entry] | None = None
        if form != "none":
            self._writer = LineWriter(stream or sys.stdout, self._line, capacity=capacity)

    def write(self, record: RequestRecord) -> None:
        """Log one request; never blocks, never raises, costs about a microsecond."""
        if self._writer is not None:
            self._writer.put((time.time_ns(), record))

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return 0 if self._writer is None else self._writer.dropped

    def close(self, timeout: float = 1.0) -> bool:
        """Write what waits; at most `timeout` seconds. Blocks: call it outside of a loop.

        Returns:
            Whether everything was written.
        """
        return True if self._writer is None else self._writer.close(timeout)

    def _line(self, entry: _Entry) -> str:
        line = json_line(*entry) if self._form == "json" else pretty_line(*entry)
        dropped = self.dropped
        if dropped == self._told_dropped:
            return line
        lost, self._told_dropped = dropped - self._told_dropped, dropped
        return f"{_lost_line(lost, entry[0], self._form)}{line}"


def json_line(time_ns: int, record: RequestRecord) -> str:
    """One JSON object with its newline; fields without a value are left out.

    Args:
        time_ns: When, nanoseconds since 1970.
        record: The request.
    """
    shown: dict[str, object] = {"time": instant(time_ns)}
    for name in _FIELDS:
        value = getattr(record, name)
        if isinstance(value, str):
            shown[name] = value[:MAX_TEXT]
        elif isinstance(value, float):
            shown[name] = round(value, 3)
        elif value is not None:
            shown[name] = value
    return encode_json(shown) + "\n"


def pretty_line(time_ns: int, record: RequestRecord) -> str:
    """One line for people, with its newline. Control characters are written as escapes.

    Args:
        time_ns: When, nanoseconds since 1970.
        record: The request.
    """
    words = [instant(time_ns)[11:23], str(record.status), record.method, record.route]
    if record.model is not None:
        words.append(record.model if record.provider is None else f"{record.model} via")
    if record.provider is not None:
        words.append(record.provider)
    if record.duration_ms is not None:
        words.append(f"{record.duration_ms:.1f}ms")
    if record.overhead_ms is not None:
        words.append(f"(overhead {record.overhead_ms:.1f}ms)")
    if record.attempts is not None and record.attempts > 1:
        words.append(f"{record.attempts} attempts")
    if record.stream:
        words.append("stream")
    if record.outcome is not None:
        words.append(record.outcome)
    if record.error_code is not None:
        words.append(f"[{record.error_code}]")
    words.append(record.request_id)
    return " ".join(visible(word[:MAX_TEXT]) for word in words) + "\n"


def visible(text: str) -> str:
    """Text that cannot end the line or steer the terminal: others choose some of it."""
    if text.isascii() and text.isprintable():
        return text
    return text.encode("ascii", "backslashreplace").decode("ascii").translate(_CONTROLS)


_CONTROLS = {number: f"\\x{number:02x}" for number in (*range(32), 127)}


def instant(time_ns: int) -> str:
    """The moment in UTC as RFC 3339 with milliseconds; `time_ns` counts from 1970."""
    seconds, rest = divmod(time_ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000_000:03d}Z"


@lru_cache(maxsize=8)
def _second(seconds: int) -> str:
    """The second as text; a busy server writes hundreds of lines in each."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _lost_line(count: int, time_ns: int, form: str) -> str:
    if form == "json":
        lost = {"time": instant(time_ns), "event": "log_lines_dropped", "count": count}
        return encode_json(lost) + "\n"
    return f"{instant(time_ns)[11:23]} {count} log lines were dropped\n"
