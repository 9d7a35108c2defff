"""bench.md is written section by section."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.machine import Conditions, Machine, source_digest
from benchmarks.report import Bound, Findings, Goal, Section, Table, write_section

MACHINE = Machine(
    date="2026-01-02 03:04 UTC",
    gateway="0.1.0 (source 0123456789ab)",
    cpu="A processor",
    cores=2,
    memory="4 GiB",
    kernel="Linux 6",
    python="CPython 3.11",
    packages="anyio 4",
)


def test_section_holds_what_a_reader_needs() -> None:
    """A section tells the command, the machine, the settings, the load and the results."""
    section = Section(
        "factory",
        "factory: a title",
        settings={"settings": "5 rounds"},
        goals=[Goal("calls", 30, 12.5, "µs")],
        tables=[Table("Results", ("type", "µs"), [["openai", "12.5"]])],
        notes=["A note."],
        conditions={"load average": "0.10 0.20 0.30 before"},
    )
    text = section.render(MACHINE, "python -m benchmarks factory")
    for expected in (
        "## factory: a title",
        "| command | `python -m benchmarks factory` |",
        "| machine | A processor, 2 cores, 4 GiB |",
        "| settings | 5 rounds |",
        "0.10 0.20 0.30 before",
        "| calls | ≤ 30 µs | 12.5 µs | yes |",
        "| openai | 12.5 |",
        "* A note.",
    ):
        assert expected in text


def test_goal_that_is_missed_says_so() -> None:
    """A value above the promised one is marked."""
    assert Goal("errors", 0, 1, "").cells() == ("errors", "≤ 0", "1", "**no**")


def test_goal_may_be_the_least() -> None:
    """Some values must not fall below what is promised."""
    kept = Goal("success", 99.5, 99.9, "%", Bound.AT_LEAST)
    assert kept.cells() == ("success", "≥ 99.5 %", "99.9 %", "yes")
    assert not Goal("success", 99.5, 99.4, "%", Bound.AT_LEAST).kept


def test_goal_without_a_number_is_missed() -> None:
    """What could not be measured has not been kept, on neither side."""
    assert not Goal("success", 99.5, float("nan"), "%", Bound.AT_LEAST).kept
    assert not Goal("errors", 0, float("nan"), "").kept


def test_goal_that_is_missed_by_little_shows_by_how_much() -> None:
    """Rounding does not make a missed value look like the promised one."""
    assert Goal("attempts", 1.1, 1.1004, "").cells()[2] == "1.1004"


def test_section_takes_what_its_parts_found() -> None:
    """Goals, tables and notes of a part stand behind what is there."""
    section = Section("resilience", "title", goals=[Goal("first", 1, 0, "")])
    table = Table("Table", ("column",), [["cell"]])
    section.add(Findings([Goal("second", 1, 0, "")], [table], ["a note"]))
    assert [goal.what for goal in section.goals] == ["first", "second"]
    assert (section.tables, section.notes) == ([table], ["a note"])


def test_cell_cannot_break_its_table() -> None:
    """A bar in a cell would be read as a border."""
    assert "| a/b |" in str(Table("Title", ("column",), [["a|b"]]))


def test_sections_stand_in_one_order(tmp_path: Path) -> None:
    """Whoever is written first, the order in the file is the same."""
    path = tmp_path / "bench.md"
    for name in ("gateway", "factory", "dispatch"):
        write_section(path, name, f"text of {name}")
    text = path.read_text(encoding="utf-8")
    places = [text.index(f"text of {name}") for name in ("factory", "dispatch", "gateway")]
    assert places == sorted(places)


def test_writing_a_section_leaves_the_others(tmp_path: Path) -> None:
    """Only the section that is written again changes."""
    path = tmp_path / "bench.md"
    write_section(path, "factory", "old factory")
    write_section(path, "dispatch", "old dispatch")
    write_section(path, "factory", "new factory")
    text = path.read_text(encoding="utf-8")
    assert "old factory" not in text
    assert text.count("new factory") == text.count("old dispatch") == 1


def test_writing_the_same_twice_changes_nothing(tmp_path: Path) -> None:
    """The file does not grow with each run."""
    path = tmp_path / "bench.md"
    write_section(path, "gateway", "text")
    before = path.read_bytes()
    write_section(path, "gateway", "text")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    """A section without an end is not guessed at, and the file stays as it is."""
    path = tmp_path / "bench.md"
    path.write_text("<!-- benchmark dispatch: begin -->\nhalf", encoding="utf-8")
    with pytest.raises(ValueError, match="no end"):
        write_section(path, "factory", "text")
    assert path.read_text(encoding="utf-8").endswith("half")


def test_text_with_a_marker_is_refused(tmp_path: Path) -> None:
    """A marker inside a section would cut it in two when it is read again."""
    with pytest.raises(ValueError, match="marker"):
        write_section(tmp_path / "bench.md", "factory", "<!-- benchmark factory: end -->")


def test_machine_tells_no_path() -> None:
    """What is known of this machine names no folder of it."""
    machine = Machine.here()
    told = (machine.cpu, machine.memory, machine.kernel, machine.python, machine.packages)
    assert not any(Path.home().as_posix() in text or str(Path.cwd()) in text for text in told)
    assert machine.cores >= 1


def test_digest_is_that_of_the_source() -> None:
    """The same source has the same digest each time."""
    assert source_digest() == source_digest()
    assert len(source_digest()) == 12


def test_conditions_tell_what_else_went_on() -> None:
    """Load, stolen time and the yardstick are told for the time between two looks."""
    before = Conditions("1.00 1.00 1.00", 500.0, stolen=10, ticks=1_000)
    after = Conditions("2.00 1.00 1.00", 550.0, stolen=30, ticks=2_000)
    told = before.until(after)
    assert told["taken by other virtual machines"] == "2.0%"
    assert "500 ns before, 550 ns after" in told.values()
    assert Conditions.now().yardstick > 0
