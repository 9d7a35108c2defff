"""The table of the clients' faults is complete: each has one row, and a test of its name."""

from __future__ import annotations

import re
from pathlib import Path

from fault_table import modules

HERE = Path(__file__).parent
IDS = {f"C{number}" for number in range(1, 31)}


def test_every_fault_of_a_client_has_a_test() -> None:
    """By its id: `test_c17_…`."""
    names = [
        name
        for path in HERE.glob("test_client_*.py")
        for name in re.findall(r"^(?:async )?def test_(c\d+)_", path.read_text(), re.MULTILINE)
    ]
    assert {name.upper() for name in names} == IDS


def test_every_fault_of_a_client_has_one_row() -> None:
    """In the order of the catalogue."""
    table = next(module for module in modules() if module.__name__ == "faults_table_client")
    assert [row.id for row in table.ROWS] == sorted(IDS, key=lambda id_: int(id_[1:]))
