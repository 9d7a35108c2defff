"""A configuration file as data with the position of every key."""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.configuration.findings import Findings, KeyPath, Position, UnreadableError
from adapters.configuration.json_reader import read_json
from adapters.configuration.toml_reader import read_toml
from adapters.configuration.yaml_reader import read_yaml

MAX_BYTES = 1024 * 1024
"""Largest file; a configuration of ten thousand providers fits."""

Reader = Callable[[str, Findings], tuple[Any, dict[KeyPath, Position]]]

_READERS: Mapping[str, Reader] = {
    ".yaml": read_yaml,
    ".yml": read_yaml,
    ".json": read_json,
    ".toml": read_toml,
}


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file.

    Attributes:
        data: JSON-like: dictionaries with string keys, lists, strings, numbers, booleans, None.
        positions: Where each key and list item begins; best effort for TOML.
    """

    data: dict[str, Any]
    positions: dict[KeyPath, Position]


def read_file(path: Path) -> str:
    """Read a configuration file of at most 1 MiB.

    Raises:
        UnreadableError: If it is missing, no plain file, too large, or not UTF-8.
    """
    try:
        # A pipe or a device has no end to wait for, and a folder no text.
        if not stat.S_ISREG(path.stat().st_mode):
            msg = "this is no plain file"
            raise UnreadableError(msg)
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        msg = "there is no such file"
        raise UnreadableError(msg) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a usable file name"
        msg = f"the file cannot be read: {reason}"
        raise UnreadableError(msg) from None
    if len(raw) > MAX_BYTES:
        msg = f"the file is larger than {MAX_BYTES} bytes"
        raise UnreadableError(msg)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = "the file is not UTF-8 text"
        position = Position(raw.count(b"\n", 0, error.start) + 1)
        raise UnreadableError(msg, position) from None


def parse(text: str, suffix: str, findings: Findings) -> Document:
    """Parse a text by the suffix of its file: `.yaml`, `.yml`, `.toml` or `.json`.

    Mistakes that leave the rest readable, such as a duplicate key, go to `findings`.

    Raises:
        UnreadableError: If the text is no document of that kind, or the kind is unknown.
    """
    reader = _READERS.get(suffix.lower())
    if reader is None:
        msg = f"the file's name must end in one of {', '.join(_READERS)}"
        raise UnreadableError(msg)
    data, positions = reader(text, findings)
    if data is None:
        msg = "the file is empty: it must at least hold `providers`"
        raise UnreadableError(msg)
    if not isinstance(data, dict):
        msg = "the file must hold keys and values at its top, such as `providers: [...]`"
        raise UnreadableError(msg, Position(1))
    return Document(data, positions)
