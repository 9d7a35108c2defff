"""JSON bodies of requests and answers: read strictly, written back with the fewest changes.

The happy path is the C scanner of the standard library and a few searches for single
byte strings. What JSON allows but a gateway must not (a field twice, half a surrogate
pair, deep nesting) is checked exactly only when such a search says that it is possible.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from engine.errors import InvalidRequestError
from engine.operations import Request

MAX_DEPTH = 200
"""Levels of nesting that a request may have. Real tool schemas stay below 30."""

_ROUTED = ("model", "stream", "messages", "prompt", "input")
"""Fields that must not stand twice: we would read the last, a provider maybe the first."""

_ROUTED_KEYS = tuple(f'"{name}"'.encode() for name in _ROUTED)

# One alternative for each thing that a backslash can begin: a whole surrogate pair, half
# a pair (the only group), anything else. So an escaped backslash before "ud800" is no half.
_HALF_PAIR = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F])|.)",
    re.DOTALL,
)
_MODEL_VALUE = re.compile(rb'[ \t\n\r]*:[ \t\n\r]*("(?:[^"\\]|\\.)*")', re.DOTALL)
_BLANKS = re.compile(r"[ \t\n\r]*")


class _RefusedError(ValueError):
    """A value that the syntax allows and we do not; the text never holds the value."""


def _refuse_constant(name: str) -> NoReturn:
    msg = f"{name} is no JSON number"
    raise _RefusedError(msg)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        msg = "a number is too large"
        raise _RefusedError(msg)
    return number


_REQUEST_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)
# Answers hold many floats (embeddings), and a hook costs 0.15 microseconds for each.
_ANSWER_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def parse_request_body(raw: bytes) -> dict[str, Any]:
    """Read the JSON object of a request.

    Integers stay exact. Refused are: anything but UTF-8, a byte order mark, NaN and
    infinite numbers, half surrogate pairs, a routed field (`model`, `stream`,
    `messages`, `prompt`, `input`) twice at the top, more than `MAX_DEPTH` levels, and
    anything but an object at the top.

    Raises:
        InvalidRequestError: If the body is refused. The text says why and where, and
            never holds a part of the body.
    """
    try:
        body = _decode(raw)
    except (ValueError, RecursionError) as error:
        failure = _unreadable(error, raw)
    else:
        return _checked(body, raw)
    # Outside of the handler: what was caught holds the whole body.
    raise failure


def _unreadable(error: Exception, raw: bytes) -> InvalidRequestError:
    """Why a body cannot be read, without any of it."""
    if isinstance(error, RecursionError):
        return _too_deep()
    if isinstance(error, UnicodeDecodeError):
        return _invalid(f"the body is not UTF-8: a wrong byte at position {error.start}")
    if isinstance(error, json.JSONDecodeError):
        msg = f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        return _invalid(msg if raw.strip() else "the body is empty")
    # The interpreter refuses integers of more than 4,300 digits with a bare ValueError.
    reason = str(error) if isinstance(error, _RefusedError) else "a number is too long"
    return _invalid(f"the body is not acceptable JSON: {reason}")


def _checked(body: Any, raw: bytes) -> dict[str, Any]:
    if type(body) is not dict:
        msg = "the body must be a JSON object"
        raise _invalid(msg)
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH and _depth_exceeds(body, MAX_DEPTH):
        raise _too_deep()
    return body


def _decode(raw: bytes) -> Any:
    text = raw.decode()
    if text.startswith("\ufeff"):
        msg = "it begins with a byte order mark"
        raise _RefusedError(msg)
    if (b"\\ud" in raw or b"\\uD" in raw) and _has_half_pair(raw):
        msg = "an escape holds half of a surrogate pair"
        raise _RefusedError(msg)
    # A letter can only be spelled as itself or as an escape that begins with \u00.
    if b"\\u00" in raw or any(raw.count(key) > 1 for key in _ROUTED_KEYS):
        return _decode_without_repeats(text)
    return _REQUEST_DECODER.decode(text)


def _has_half_pair(raw: bytes) -> bool:
    return any(match.group(1) for match in _HALF_PAIR.finditer(raw))


def _decode_without_repeats(text: str) -> Any:
    """Decode, and refuse a routed field that stands twice in the outermost object."""
    latest: list[tuple[str, Any]] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal latest
        latest = pairs
        return dict(pairs)

    body = json.JSONDecoder(
        parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=keep
    ).decode(text)
    # Objects are finished from the inside out, so the last one kept is the outermost.
    if type(body) is dict and len(body) != len(latest):
        names = [name for name, _ in latest]
        for name in _ROUTED:
            if names.count(name) > 1:
                msg = f"the field {name!r} stands twice in the body"
                raise InvalidRequestError(msg, param=name, code="duplicate_field")
    return body


def _depth_exceeds(body: Any, limit: int) -> bool:
    level: list[Any] = [body]
    for _ in range(limit):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="invalid_json")


def _too_deep() -> InvalidRequestError:
    return _invalid(f"the body is nested too deep: at most {MAX_DEPTH} levels are accepted")


def parse_answer_body(raw: bytes) -> dict[str, Any]:
    """Read the JSON object of an answer or of one event of a stream.

    Raises:
        ValueError: If it is not UTF-8, not JSON, has a NaN or half a surrogate pair, is
            nested too deep, or is no object. The text never holds a part of it.
    """
    try:
        text = raw.decode()
        body = _ANSWER_DECODER.decode(text)
    except UnicodeDecodeError:
        msg = "not UTF-8"
    except RecursionError:
        msg = "nested too deep"
    except ValueError:
        msg = "not JSON"
    else:
        if type(body) is not dict:
            msg = "no JSON object"
        elif (b"\\ud" in raw or b"\\uD" in raw) and _has_half_pair(raw):
            msg = "half of a surrogate pair"
        else:
            return body
    # Outside of the handlers: what was caught holds the whole answer.
    raise ValueError(msg)


def encode_body(request: Request, model: str) -> bytes:
    """Write the body that a provider gets: the caller's own, changed only in `model`.

    With `request.raw` every other byte stays as it came, blanks and the spelling of
    numbers included.

    Raises:
        InvalidRequestError: If the body holds something that JSON cannot express, which
            only a request made in Python can; `param` names the place.
    """
    raw = request.raw
    if raw is None:
        return _dump({**request.body, "model": model})
    if model == request.model:
        return raw
    return _replace_model(raw, json.dumps(model))


def _replace_model(raw: bytes, value: str) -> bytes:
    # The body has a key `model` at the top. Its letters can be spelled as themselves or
    # as escapes beginning with \u00; without such an escape the seven bytes "model" with
    # their quotes must stand where that key is. They stand in one place only: there.
    if raw.count(b'"model"') == 1 and b"\\u00" not in raw:
        key_end = raw.index(b'"model"') + 7
        match = _MODEL_VALUE.match(raw, key_end)
        if match is not None:
            return b"".join((raw[: match.start(1)], value.encode(), raw[match.end(1) :]))
    text = raw.decode()
    start, end = [span for key, *span in _top_level_fields(text) if key == "model"][-1]
    return f"{text[:start]}{value}{text[end:]}".encode()


def _top_level_fields(text: str) -> Iterator[tuple[str, int, int]]:
    """Each key of the object in `text`, with where its value begins and ends."""
    at = _skip_blanks(text, 0) + 1
    while text[at := _skip_blanks(text, at)] != "}":
        if text[at] == ",":
            at = _skip_blanks(text, at + 1)
        key, at = _ANSWER_DECODER.raw_decode(text, at)
        start = _skip_blanks(text, _skip_blanks(text, at) + 1)
        _, at = _ANSWER_DECODER.raw_decode(text, start)
        yield key, start, at


def _skip_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return at if match is None else match.end()


def _dump(body: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        msg = "the request is nested too deep"
    except (TypeError, ValueError):
        where, what = _first_unspeakable(body, "", 0) or ("", "a value that JSON cannot express")
        msg = f"the request holds {what}" + (f" at {where!r}" if where else "")
        raise InvalidRequestError(msg, param=where or None, code="not_json") from None
    else:
        try:
            return text.encode()
        except UnicodeEncodeError:
            # Half a surrogate pair can be written as an escape only.
            return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    raise InvalidRequestError(msg, code="not_json")


def _first_unspeakable(value: Any, path: str, depth: int) -> tuple[str, str] | None:
    """Where the first value stands that JSON cannot express, and what it is."""
    finite = isinstance(value, float) and math.isfinite(value)
    if finite or value is None or isinstance(value, (int, str)):
        return None
    if not isinstance(value, (dict, list, tuple)):
        return path, f"the number {value}" if isinstance(value, float) else (
            f"a value of type {type(value).__name__}"
        )
    if depth > MAX_DEPTH:
        return path, "an object that holds itself"
    for place, child in _children(value, path):
        if place is None:
            return path, "a key that is no string"
        found = _first_unspeakable(child, place, depth + 1)
        if found:
            return found
    return None


def _children(
    value: dict[Any, Any] | list[Any] | tuple[Any, ...], path: str
) -> Iterator[tuple[str | None, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            # The encoder writes these as strings; any other key it refuses.
            named = key is None or isinstance(key, (str, int, float))
            yield (f"{path}.{key}" if path else str(key)) if named else None, child
    else:
        for index, child in enumerate(value):
            yield f"{path}[{index}]", child
