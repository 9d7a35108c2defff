"""What is wrong with a configuration file: one finding per mistake, all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from adapters.configuration.echo import shown_key
from engine.errors import ConfigurationError

KeyPath = tuple[str | int, ...]
"""Where something stands in a file: the keys and list indices that lead to it."""

MAX_FINDINGS = 100
"""More than a person reads at once; what lies beyond is only counted."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a text file.

    Attributes:
        line: Counted from 1.
        column: Counted from 1; None where only the line is known.
    """

    line: int
    column: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One mistake in a configuration file.

    Attributes:
        file: Name of the file as the operator gave it.
        message: What is wrong and what to do; never holds a value of the file.
        field: Dotted path such as `providers[1].weight`; empty for the whole file.
        line: Line, counted from 1; None when the file has no place for it.
        column: Column, counted from 1; None when only the line is known.
    """

    file: str
    message: str
    field: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return (
            f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"
        )


class ConfigurationFileError(ConfigurationError):
    """A configuration file cannot be used.

    Attributes:
        findings: Every mistake that was found, in the order of the file's lines.
    """

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings


class UnreadableError(Exception):
    """The text is no document at all, so that nothing more can be said about it."""

    def __init__(self, message: str, position: Position | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


def dotted(path: KeyPath) -> str:
    """Write a key path as people do: `providers[1].weight`."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += f".{shown_key(key)}" if text else shown_key(key)
    return text


def nearest_position(positions: Mapping[KeyPath, Position], path: KeyPath) -> Position | None:
    """The place of `path`, or of the closest thing around it that has one."""
    for length in range(len(path), 0, -1):
        if (found := positions.get(path[:length])) is not None:
            return found
    return None


class Findings:
    """Collects the findings of one file.

    There is one finding for a place at most: the first one is the cause, and what a later
    check says about the same place is mostly its consequence.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._found: list[tuple[KeyPath, str, Position | None]] = []
        self._places: set[KeyPath] = set()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, path: KeyPath, message: str, position: Position | None = None) -> None:
        """Note a mistake; `position` is looked up later unless it is given."""
        if path in self._places and path:
            return
        self._places.add(path)
        self._found.append((path, message, position))

    def has(self, path: KeyPath) -> bool:
        """Whether there is a finding for just this place."""
        return path in self._places

    def error(
        self,
        positions: Mapping[KeyPath, Position],
        censor: Callable[[str], str] = str,
    ) -> ConfigurationFileError:
        """The error that tells them all, sorted by line.

        Args:
            positions: Where the keys of the file stand.
            censor: Takes out of a message what must not be shown.
        """
        findings = []
        for path, message, given in self._found:
            place = given or nearest_position(positions, path)
            line, column = (place.line, place.column) if place else (None, None)
            field = dotted(path)
            findings.append(Finding(self.file, censor(message), field, line, column))
        findings.sort(key=lambda finding: (finding.line or 0, finding.column or 0))
        more = len(findings) - MAX_FINDINGS
        if more > 0:
            rest = Finding(self.file, f"and {more} more mistakes")
            findings = [*findings[:MAX_FINDINGS], rest]
        return ConfigurationFileError(tuple(findings))
