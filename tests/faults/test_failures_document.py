"""`docs/FAILURES.md` says what the fault tests show, and leaves no fault out."""

from __future__ import annotations

import fault_table

HOW = "regenerate it: python tests/plugins/fault_table.py"


def test_document_is_what_the_tests_show() -> None:
    """The generated part of the document is up to date."""
    assert fault_table.DOCUMENT.read_text(encoding="utf-8") == fault_table.document(), HOW


def test_every_fault_of_a_provider_is_shown_or_argued_away() -> None:
    """Each of the 52 faults of providers has a test, or a reason why it cannot happen."""
    rows, excused = fault_table.gather()
    shown = {row.id for row in rows}
    assert not shown & set(excused)
    missing = {f"U{number}" for number in range(1, 53)} - shown - set(excused)
    assert not missing
