"""bench.md: one section a benchmark, each between markers and written by its command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from benchmarks.machine import Machine
from benchmarks.spread import figure

SECTIONS = ("factory", "dispatch", "gateway", "resilience")
"""The order in which they stand in the file, whoever is written first."""

HEAD = """# What the gateway costs, and what it withstands

Written by `python -m benchmarks`, one section a command; what is written here by hand is lost.
Values are medians of the rounds, with the least and the greatest round in brackets. They hold for
the machine and the minute that they were measured on: compare values of one section only.
"""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text.

    Attributes:
        title: What it shows.
        columns: Names of the columns; units stand here.
        rows: The cells.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        lines = [
            f"**{self.title}**",
            "",
            _row(self.columns),
            _row(["---"] * len(self.columns)),
            *(_row(row) for row in self.rows),
        ]
        return "\n".join(lines)


class Bound(StrEnum):
    """On which side of the promised value the measured one must lie."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Goal:
    """A value that the project promises, and what came of it.

    Attributes:
        what: What is measured.
        wanted: The most, or the least, that it may be.
        measured: What it is.
        unit: Of both.
        bound: Whether `wanted` is the most or the least.
    """

    what: str
    wanted: float
    measured: float
    unit: str
    bound: Bound = Bound.AT_MOST

    @property
    def kept(self) -> bool:
        """Whether the value is as promised; never for one that is no number."""
        if self.bound is Bound.AT_LEAST:
            return self.measured >= self.wanted
        return self.measured <= self.wanted

    def cells(self) -> tuple[str, ...]:
        """One row of the table of goals."""
        kept = "yes" if self.kept else "**no**"
        unit = f" {self.unit}" if self.unit else ""
        return (
            self.what,
            f"{self.bound.value} {self.wanted:g}{unit}",
            f"{_measured(self)}{unit}",
            kept,
        )


def _measured(goal: Goal) -> str:
    """The value, with enough digits to tell it from what it must not reach, or fall below."""
    text = figure(goal.measured)
    close = goal.measured != goal.wanted and text == figure(goal.wanted)
    if close or (goal.bound is Bound.AT_LEAST and text == "100"):
        return f"{goal.measured:.6g}"
    return text


@dataclass(slots=True)
class Findings:
    """What one part of a benchmark came to.

    Attributes:
        goals: What is promised.
        tables: The results.
        notes: What a reader must know to judge them.
    """

    goals: list[Goal] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Section:
    """The results of one benchmark.

    Attributes:
        name: Of the benchmark.
        title: Of the section.
        settings: What was asked for, by name.
        goals: What is promised; may be empty.
        tables: The results.
        notes: What a reader must know to judge them.
        conditions: What else was going on meanwhile, by name.
    """

    name: str
    title: str
    settings: dict[str, str] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    conditions: dict[str, str] = field(default_factory=dict)

    def add(self, findings: Findings) -> None:
        """Put what a part came to behind what is there."""
        self.goals += findings.goals
        self.tables += findings.tables
        self.notes += findings.notes

    def render(self, machine: Machine, command: str) -> str:
        """The section as Markdown, without its markers.

        Args:
            machine: Where it was measured.
            command: How to measure it again.
        """
        facts = {
            "command": f"`{command}`",
            "date": machine.date,
            "gateway": machine.gateway,
            "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory}",
            "system": machine.kernel,
            "Python": machine.python,
            "packages": machine.packages,
            **self.settings,
            **self.conditions,
        }
        goals = Table("Promised", ("what", "promised", "measured", "kept"), [])
        if self.goals:
            goals = Table(goals.title, goals.columns, [goal.cells() for goal in self.goals])
        parts = [
            f"## {self.title}",
            str(Table("How", ("what", "value"), list(facts.items()))),
            *([str(goals)] if self.goals else []),
            *map(str, self.tables),
            "\n".join(f"* {note}" for note in self.notes),
        ]
        return "\n\n".join(part for part in parts if part)


def write_section(path: Path, name: str, text: str) -> None:
    """Put a section into the file, in the place of an older one; the others stay as they are.

    Args:
        path: The file; made if it is not there.
        name: One of `SECTIONS`.
        text: Markdown, as `Section.render` gives it.

    Raises:
        ValueError: If the file holds the begin of a section without its end, or the text
            holds a marker.
        OSError: If the file cannot be written.
    """
    if _begin(name) in text or _end(name) in text:
        msg = f"the text of section {name!r} holds a marker of its own"
        raise ValueError(msg)
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    texts = {section: _find(before, section) for section in SECTIONS}
    texts[name] = f"\n{text.strip()}\n"
    blocks = [
        f"{_begin(section)}{body}{_end(section)}\n"
        for section, body in texts.items()
        if body is not None
    ]
    # Written beside and then moved: an interrupt leaves the old file or the new one.
    beside = path.with_name(path.name + ".new")
    beside.write_text("\n".join([HEAD, *blocks]), encoding="utf-8")
    beside.replace(path)


def _find(text: str, section: str) -> str | None:
    """What stands between the markers of a section, or None if it is not there."""
    _, begin, rest = text.partition(_begin(section))
    if not begin:
        return None
    body, end, _ = rest.partition(_end(section))
    if not end:
        msg = f"section {section!r} has a begin but no end: repair or delete the file"
        raise ValueError(msg)
    return body


def _begin(section: str) -> str:
    return f"<!-- benchmark {section}: begin -->"


def _end(section: str) -> str:
    return f"<!-- benchmark {section}: end -->"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
