"""YAML with the position of every key, and with bounds on what it may grow to.

Reads events only, so no tag ever makes an object. A plain word is a number, a boolean or
null only where YAML 1.1 (https://yaml.org/type/) and the core schema of YAML 1.2
(https://yaml.org/spec/1.2.2/#103-core-schema) agree on its value; everything else is a
string: dates, `no`, `1:30`, `010`, `1e3`. The models still take such a string for a
number or a boolean where they want one. Keys are always strings.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from adapters.configuration.findings import Findings, KeyPath, Position, UnreadableError

MAX_DEPTH = 20
MAX_ALIASES = 100
MAX_NODES = 100_000
"""Bounds a file whose aliases of aliases multiply ("billion laughs")."""

# The C parser is some twenty times as fast; wheels have it, other builds may not.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_CORE = "tag:yaml.org,2002:"
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEAN = {
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
# Digits are bounded because CPython refuses to convert more than 4,300 of them.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,400})")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+][0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


@dataclass(slots=True)
class _Node:
    """A mapping or a list that is still open, or a finished value with its measures."""

    value: Any
    path: KeyPath = ()
    anchor: str | None = None
    nodes: int = 1
    height: int = 0
    key: str | None = None
    key_position: Position | None = None
    repeated: bool = False
    keys: set[str] = field(default_factory=set)


def read_yaml(text: str, findings: Findings) -> tuple[Any, dict[KeyPath, Position]]:
    """Parse one YAML document.

    Raises:
        UnreadableError: If the text is not YAML, or is deeper or larger than allowed.
    """
    reader = _Reader(findings)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        raise UnreadableError(*_syntax_error(error, text)) from None
    except yaml.reader.ReaderError as error:
        at = error.position if isinstance(error.position, int) else 0
        line = text.count("\n", 0, at) + 1
        msg = "not YAML: it holds a character that is not allowed"
        raise UnreadableError(msg, Position(line)) from None
    return reader.data, reader.positions


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> tuple[str, Position | None]:
    words = _words(error.problem or "it cannot be parsed")
    mark, begin = error.problem_mark or error.context_mark, error.context_mark
    if mark is None:
        return words, None
    # What is never closed is noticed behind the last line.
    line = min(mark.line + 1, text.rstrip().count("\n") + 1)
    if begin is not None and begin.line + 1 < line:
        words += f", {error.context} that begins in line {begin.line + 1}"
    return words, Position(line, mark.column + 1)


def _words(problem: str) -> str:
    if "tag handle" in problem:
        return "not YAML: it uses a tag that is not defined; tags (`!…`) are not supported"
    if "'\\t'" in problem or "cannot start any token" in problem:
        return "not YAML: a tab or a reserved character begins a word; indent with spaces"
    return f"not YAML: {problem}"


def _position(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1)


class _Reader:
    """Builds data out of parser events with a stack of its own: no recursion to exhaust."""

    def __init__(self, findings: Findings) -> None:
        self.data: Any = None
        self.positions: dict[KeyPath, Position] = {}
        self._findings = findings
        self._open: list[_Node] = []
        self._anchors: dict[str, _Node] = {}
        self._aliases = 0
        self._nodes = 0
        self._documents = 0

    def take(self, event: Any) -> None:
        at = _position(event.start_mark)
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    msg = "the file holds a second document (after `---`): only one is read"
                    raise UnreadableError(msg, at)
            case yaml.MappingStartEvent():
                self._begin({}, event, at)
            case yaml.SequenceStartEvent():
                self._begin([], event, at)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                node = self._open.pop()
                self._place(node, at)
            case yaml.ScalarEvent():
                self._scalar(event, at)
            case yaml.AliasEvent():
                self._alias(event, at)
            case _:
                """Beginnings and ends that say nothing."""

    def _scalar(self, event: yaml.ScalarEvent, at: Position) -> None:
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            self._key(parent, event.value, at)
            return
        path = self._next_path()
        node = _Node(self._resolve(event, path, at), path, event.anchor)
        self._count(1, at)
        self._place(node, at)

    def _begin(self, value: Any, event: Any, at: Position) -> None:
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            msg = "a key must be plain text, not a mapping or a list"
            raise UnreadableError(msg, at)
        if len(self._open) >= MAX_DEPTH:
            raise UnreadableError(_too_deep(), at)
        path = self._next_path()
        if event.tag not in (None, "!", f"{_CORE}map", f"{_CORE}seq"):
            self._findings.add(path, "tags (`!…`) are not supported", at)
        node = _Node(value, path, event.anchor)
        if node.anchor is not None:
            # Not usable before its end: an alias inside would make it hold itself.
            self._anchors.pop(node.anchor, None)
        self._count(1, at)
        if path and isinstance(path[-1], int):
            self.positions.setdefault(path, at)
        self._open.append(node)

    def _key(self, parent: _Node, key: str, at: Position) -> None:
        parent.key, parent.key_position = key, at
        parent.repeated = key in parent.keys
        parent.keys.add(key)
        path = (*parent.path, key)
        if parent.repeated:
            first = self.positions[path].line
            self._findings.add(path, f"duplicate key: it stands in line {first} already", at)
        else:
            # Below a repeated key the first one's places stay.
            self.positions.setdefault(path, at)
            if key == "<<":
                msg = "merge keys are not supported: put shared settings into `defaults`"
                self._findings.add(path, msg, at)

    def _alias(self, event: yaml.AliasEvent, at: Position) -> None:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            msg = f"the file uses more than {MAX_ALIASES} aliases (`*name`)"
            raise UnreadableError(msg, at)
        target = self._anchors.get(event.anchor or "")
        if target is None:
            msg = "an alias (`*name`) has no finished anchor (`&name`) before it"
            raise UnreadableError(msg, at)
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            msg = "a key must be plain text, not an alias"
            raise UnreadableError(msg, at)
        if len(self._open) + target.height > MAX_DEPTH:
            raise UnreadableError(_too_deep(), at)
        self._count(target.nodes, at)
        path = self._next_path()
        self._place(_Node(target.value, path, None, target.nodes, target.height), at)

    def _next_path(self) -> KeyPath:
        if not self._open:
            return ()
        parent = self._open[-1]
        if isinstance(parent.value, dict):
            return (*parent.path, parent.key or "")
        return (*parent.path, len(parent.value))

    def _place(self, node: _Node, at: Position) -> None:
        """Put a finished value where it belongs."""
        if isinstance(node.value, (dict, list)) and node.height == 0:
            node.height = 1
        if node.anchor is not None:
            self._anchors[node.anchor] = node
        if not self._open:
            self.data = node.value
            return
        parent = self._open[-1]
        parent.nodes += node.nodes
        parent.height = max(parent.height, node.height + 1)
        if isinstance(parent.value, list):
            self.positions.setdefault(node.path, at)
            parent.value.append(node.value)
        else:
            if not parent.repeated:
                parent.value[parent.key] = node.value
            parent.key = None

    def _count(self, nodes: int, at: Position) -> None:
        self._nodes += nodes
        if self._nodes > MAX_NODES:
            msg = f"the file holds more than {MAX_NODES} values, aliases counted in full"
            raise UnreadableError(msg, at)

    def _resolve(self, event: yaml.ScalarEvent, path: KeyPath, at: Position) -> Any:
        text: str = event.value
        plain, quoted = event.implicit
        if quoted or event.tag in ("!", f"{_CORE}str"):
            return text
        if not plain:
            self._findings.add(path, "tags (`!…`) are not supported", at)
            return None
        value = _plain(text)
        if isinstance(value, float) and not math.isfinite(value):
            self._findings.add(path, "must be a finite number", at)
            return None
        return value


def _plain(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _BOOLEAN:
        return _BOOLEAN[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    return math.inf if _NOT_FINITE.fullmatch(text) else text


def _too_deep() -> str:
    return f"the file is nested more than {MAX_DEPTH} levels deep"
