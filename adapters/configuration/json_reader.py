"""JSON with the position of every key; duplicate keys are findings.

The standard parser tells neither, so this walks the text itself and leaves to the
standard library only what is hard: the escapes inside of strings.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NoReturn

from adapters.configuration.findings import Findings, KeyPath, Position, UnreadableError

MAX_DEPTH = 20

_SPACE = re.compile(r"[ \t\n\r]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]{0,400}))(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"true": True, "false": False, "null": None}
_WORD = re.compile(r"[A-Za-z]+")


def read_json(text: str, findings: Findings) -> tuple[Any, dict[KeyPath, Position]]:
    """Parse one JSON document.

    Raises:
        UnreadableError: If the text is not JSON, or is nested too deep.
    """
    reader = _Reader(text, findings)
    if not text.strip():
        return None, {}
    return reader.document(), reader.positions


class _Reader:
    def __init__(self, text: str, findings: Findings) -> None:
        self.positions: dict[KeyPath, Position] = {}
        self._text = text
        self._findings = findings
        self._at = 0
        self._line_starts = [0, *(match.end() for match in re.finditer(r"\n", text))]

    def document(self) -> Any:
        value = self._value((), 0)
        self._skip_space()
        if self._at < len(self._text):
            self._fail("the document ends before this")
        return value

    def _value(self, path: KeyPath, depth: int) -> Any:
        self._skip_space()
        if path and isinstance(path[-1], int):
            self.positions.setdefault(path, self._position())
        match self._text[self._at : self._at + 1]:
            case "{":
                return self._object(path, depth + 1)
            case "[":
                return self._array(path, depth + 1)
            case '"':
                return self._string()
            case "":
                return self._fail("the text ends where a value is expected")
            case _:
                return self._number_or_word(path)

    def _object(self, path: KeyPath, depth: int) -> dict[str, Any]:
        self._enter(depth)
        found: dict[str, Any] = {}
        if self._took("}"):
            return found
        while True:
            self._skip_space()
            at = self._position()
            if self._text[self._at : self._at + 1] != '"':
                self._fail("a key in double quotes is expected here")
            key = self._string()
            place = (*path, key)
            if not self._took(":"):
                self._fail("a `:` is expected here")
            if key in found:
                first = self.positions[place].line
                message = f"duplicate key: it stands in line {first} already"
                self._findings.add(place, message, at)
                # Read on; what was there first stays.
                self._value(place, depth)
            else:
                self.positions.setdefault(place, at)
                found[key] = self._value(place, depth)
            if self._took("}"):
                return found
            if not self._took(","):
                self._fail("a `,` or `}` is expected here")

    def _array(self, path: KeyPath, depth: int) -> list[Any]:
        self._enter(depth)
        found: list[Any] = []
        if self._took("]"):
            return found
        while True:
            found.append(self._value((*path, len(found)), depth))
            if self._took("]"):
                return found
            if not self._took(","):
                self._fail("a `,` or `]` is expected here")

    def _enter(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            msg = f"the file is nested more than {MAX_DEPTH} levels deep"
            raise UnreadableError(msg, self._position())
        self._at += 1

    def _string(self) -> str:
        try:
            value, self._at = scanstring(self._text, self._at + 1, True)
        except json.JSONDecodeError as error:
            self._at = min(error.pos, len(self._text))
            self._fail("this string is not valid")
        return str(value)

    def _number_or_word(self, path: KeyPath) -> Any:
        if (number := _NUMBER.match(self._text, self._at)) is not None:
            position = self._position()
            self._at = number.end()
            whole, fraction, exponent = number.groups()
            if fraction is None and exponent is None:
                return int(whole)
            value = float(number.group())
            if not math.isfinite(value):
                self._findings.add(path, "must be a finite number", position)
                return None
            return value
        word = _WORD.match(self._text, self._at)
        if word is not None and word.group() in _WORDS:
            self._at = word.end()
            return _WORDS[word.group()]
        return self._fail("a value is expected here")

    def _skip_space(self) -> None:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match is not None else self._at

    def _took(self, character: str) -> bool:
        self._skip_space()
        if self._text.startswith(character, self._at):
            self._at += 1
            return True
        return False

    def _position(self) -> Position:
        line = bisect_right(self._line_starts, self._at)
        return Position(line, self._at - self._line_starts[line - 1] + 1)

    def _fail(self, what: str) -> NoReturn:
        msg = f"not JSON: {what}"
        raise UnreadableError(msg, self._position()) from None
