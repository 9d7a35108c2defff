"""Recorded requests, one JSON object a line, as requests of a simulation.

A line says at least when a request came and for which model. The gateway's own request log
in JSON has these fields, so a log can be played again as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from adapters.configuration import ConfigurationFileError, Finding
from adapters.simulation.requests import Asked, chat_request
from adapters.simulation.scenario import PRIORITIES
from engine.operations import ChatRequest
from engine.priority import Priority

MAX_REQUESTS = 1_000_000
"""Requests of a file; more than this is refused rather than read into memory."""

MAX_FINDINGS = 20
TAIL = 1.0
"""Seconds that a replay goes on after the last request has come."""

DEFAULT_TOKENS = 100
LONGEST = 86_400.0
TOKENS_STEP = 32
"""Sizes are rounded up to this many tokens, so that requests can share their bodies."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Requests in the order in which they came.

    Attributes:
        requests: Each with its instant, counted from the first one.
        duration: Seconds from the first to the last one, and a little more.
    """

    requests: tuple[Asked, ...]
    duration: float

    def again(self) -> list[Asked]:
        """The requests anew, for another run: each run writes its outcome into its own."""
        return [
            Asked(
                asked.at,
                asked.request,
                output_tokens=asked.output_tokens,
                timeout=asked.timeout,
                priority=asked.priority,
                leaves_after=asked.leaves_after,
                seconds=asked.seconds,
            )
            for asked in self.requests
        ]


def load_recording(path: str) -> Recording:
    """Read recorded requests.

    Each line has `at` (seconds) or `time` (RFC 3339, the end of the request as the request
    log has it), and may have `model`, `streamed` or `stream`, `deadline`, `priority`,
    `seconds` or `duration_ms` (how long the answer took), `input_tokens`, `output_tokens`.
    Other fields are passed over, and so are log lines that are about no request.

    Raises:
        ConfigurationFileError: If the file cannot be read, or what is wrong with its lines.
    """
    findings: list[Finding] = []
    found = _read_all(path, findings)
    if not found and not findings:
        findings.append(Finding(path, "there is no request in it"))
    if findings:
        raise ConfigurationFileError(tuple(findings))
    found.sort(key=lambda asked: asked.at)
    first = found[0].at
    for asked in found:
        asked.at -= first
    duration = found[-1].at + TAIL
    if duration > LONGEST:
        raise ConfigurationFileError((Finding(path, "the requests span more than a day"),))
    return Recording(tuple(found), duration)


def _read_all(path: str, findings: list[Finding]) -> list[Asked]:
    found: list[Asked] = []
    bodies: dict[tuple[str, int, int, bool], ChatRequest] = {}
    try:
        for number, line in _lines(path):
            try:
                asked = _read(line, bodies)
            except ValueError as error:
                findings.append(Finding(path, str(error), line=number))
                asked = None
            if asked is not None:
                found.append(asked)
            if len(found) > MAX_REQUESTS:
                findings.append(Finding(path, f"there are more than {MAX_REQUESTS} requests"))
            if len(findings) >= MAX_FINDINGS or len(found) > MAX_REQUESTS:
                break
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        findings.append(Finding(path, f"the file cannot be read: {reason}"))
    return found


def _lines(path: str) -> Iterator[tuple[int, str]]:
    with Path(path).open(encoding="utf-8") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())


def _read(line: str, bodies: dict[tuple[str, int, int, bool], ChatRequest]) -> Asked | None:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        msg = f"is no JSON: {error.msg}"
        raise ValueError(msg) from None
    if not isinstance(data, dict):
        msg = "must be a JSON object"
        raise ValueError(msg)  # noqa: TRY004 - one kind of error for all mistakes of a line
    if "at" not in data and ("event" in data or "model" not in data):
        return None
    seconds = _number(data, "seconds")
    if seconds is None and (milliseconds := _number(data, "duration_ms")) is not None:
        seconds = milliseconds / 1000
    streamed = data.get("streamed", data.get("stream", False))
    if type(streamed) is not bool:
        msg = "streamed must be true or false"
        raise ValueError(msg)
    model = data.get("model", "default")
    if not isinstance(model, str) or not model:
        msg = "model must be a non-empty string"
        raise ValueError(msg)
    given, made = (_tokens(data, name) for name in ("input_tokens", "output_tokens"))
    key = (model, given, made, streamed)
    if key not in bodies:
        bodies[key] = chat_request(model, input_tokens=given, output_tokens=made, streamed=streamed)
    deadline = _number(data, "deadline")
    if deadline == 0:
        msg = "deadline must be above 0"
        raise ValueError(msg)
    return Asked(
        _at(data, seconds),
        bodies[key],
        output_tokens=made,
        timeout=deadline,
        priority=_priority(data.get("priority")),
        seconds=seconds,
    )


def _at(data: dict[str, Any], seconds: float | None) -> float:
    at = _number(data, "at")
    if at is not None:
        return at
    try:
        ended = datetime.fromisoformat(str(data.get("time"))).timestamp()
    except ValueError:
        msg = "needs `at`, seconds, or `time`, such as 2026-01-31T12:00:00.000Z"
        raise ValueError(msg) from None
    # The request log writes a line when a request has ended.
    return ended - (seconds or 0.0)


def _number(data: dict[str, Any], name: str) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        msg = f"{name} must be a number"
        raise ValueError(msg)
    if value < 0:
        msg = f"{name} must not be negative"
        raise ValueError(msg)
    return float(value)


def _tokens(data: dict[str, Any], name: str) -> int:
    tokens = _number(data, name)
    count = DEFAULT_TOKENS if tokens is None else int(min(tokens, 1_000_000))
    return max(1, math.ceil(count / TOKENS_STEP)) * TOKENS_STEP


def _priority(word: Any) -> Priority | None:
    if word is None:
        return None
    if word not in PRIORITIES:
        msg = f"priority must be one of {', '.join(PRIORITIES)}"
        raise ValueError(msg)
    return PRIORITIES[word]
