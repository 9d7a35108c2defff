"""TOML through the standard parser, with line numbers found by a small search.

`tomllib` keeps no positions. Headers and the keys at the beginning of a line are found
again in the text; what stands inside of an inline table is said to be where that begins.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from typing import Any

from adapters.configuration.findings import Findings, KeyPath, Position, UnreadableError

MAX_DEPTH = 20

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_DOTTED = rf"{_PART}(?:[ \t]*\.[ \t]*{_PART})*"
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"([ \t]*)({_DOTTED})[ \t]*=")
_MULTILINE = re.compile(r'"""|\'\'\'')
_AT = re.compile(r"\(at line (\d+), column (\d+)\)")


def read_toml(text: str, findings: Findings) -> tuple[Any, dict[KeyPath, Position]]:
    """Parse one TOML document.

    Raises:
        UnreadableError: If the text is not TOML, or is nested too deep.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        words = str(error)
        found = _AT.search(words)
        position = Position(int(found[1]), int(found[2])) if found else None
        # The parser quotes single characters and no values, keys of tables excepted.
        reason = re.sub(r"\s*\(at .*\)$", "", re.sub(r"\([^()]*,\)|'[^']{2,}'", "…", words))
        msg = f"not TOML: {reason[:1].lower()}{reason[1:]}"
        raise UnreadableError(msg, position) from None
    except (RecursionError, ValueError):
        # ValueError: an integer of more digits than CPython converts.
        msg = f"not TOML: nested more than {MAX_DEPTH} levels deep, or a number is too long"
        raise UnreadableError(msg) from None
    return _plain(data, (), findings), _positions(text)


def _plain(value: Any, path: KeyPath, findings: Findings) -> Any:
    """The value with JSON's types only."""
    if len(path) > MAX_DEPTH:
        msg = f"the file is nested more than {MAX_DEPTH} levels deep"
        raise UnreadableError(msg)
    if isinstance(value, dict):
        return {key: _plain(item, (*path, key), findings) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, (*path, index), findings) for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        findings.add(path, "must be a finite number")
        return None
    if isinstance(value, (str, int, float)):
        return value
    findings.add(path, "dates and times are no settings: put it in quotes")
    return None


def _positions(text: str) -> dict[KeyPath, Position]:
    positions: dict[KeyPath, Position] = {}
    tables: Counter[KeyPath] = Counter()
    table: KeyPath = ()
    inside_text = False
    for number, line in enumerate(text.splitlines(), start=1):
        opens_or_closes = len(_MULTILINE.findall(line.split("#")[0])) % 2 == 1
        if not inside_text:
            if (header := _HEADER.match(line)) is not None:
                table = _enter(_split(header[2]), tables, is_list=header[1] == "[[")
                _note(positions, table, Position(number, 1))
            elif (key := _KEY.match(line)) is not None:
                _note(
                    positions,
                    (*table, *_split(key[2])),
                    Position(number, len(key[1]) + 1),
                )
        inside_text ^= opens_or_closes
    return positions


def _note(positions: dict[KeyPath, Position], path: KeyPath, position: Position) -> None:
    for length in range(1, len(path) + 1):
        positions.setdefault(path[:length], position)


def _enter(names: tuple[str, ...], tables: Counter[KeyPath], *, is_list: bool) -> KeyPath:
    """The path of a table: names of lists of tables mean their newest item."""
    path: KeyPath = ()
    for index, name in enumerate(names):
        path = (*path, name)
        if is_list and index == len(names) - 1:
            tables[path] += 1
        if path in tables:
            path = (*path, tables[path] - 1)
    return path


def _split(dotted: str) -> tuple[str, ...]:
    parts = re.findall(_PART, dotted)
    return tuple(part[1:-1] if part[0] in "\"'" else part for part in parts)
