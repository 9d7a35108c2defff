"""The table of all faults in `docs/FAILURES.md`, gathered from the tests that play them.

A test says what it shows in rows: `make_tests` does so for a scripted fault, `@shows(...)`
for any other test. A module that tests a part of the catalogue may also say, in
`DOES_NOT_APPLY`, which of its faults cannot happen here, and why.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from engine.errors import ErrorClass
from engine.resilience.retry import RETRY_RULES

if TYPE_CHECKING:
    from fault_lab import Fault, Seen

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "FAILURES.md"
TESTS = ROOT / "tests" / "faults"
BEGIN, END = "<!-- begin of the generated part -->", "<!-- end of the generated part -->"

SECTIONS = {
    "U": "Faults of providers",
    "C": "Faults of clients",
    "N": "Faults inside the gateway",
    "D": "Faults between gateways",
}

CLASSES: dict[ErrorClass, tuple[str, str, str]] = {
    ErrorClass.CONNECT: ("refused, unknown host, TLS, no connection in time", "nothing", ""),
    ErrorClass.OVERLOADED: ("429, 503, 529", "nothing", "closed until the hint's instant"),
    ErrorClass.TRANSIENT: (
        "other 5xx, 408, 425; closed or reset before any answer",
        "nothing; after a reset maybe",
        "",
    ),
    ErrorClass.SILENT: ("no headers, or no first event, in time", "maybe", ""),
    ErrorClass.BROKEN: ("no HTTP, no JSON, wrong content type, cut before the commit", "maybe", ""),
    ErrorClass.MISCONFIGURED: (
        "401, 402, 403, a model that it does not know",
        "nothing",
        "closed for 30 s, then longer",
    ),
    ErrorClass.CALLER: ("400, 409, 413, 415, 422, 404 of the caller's own ids", "nothing",
                        "not at all"),
    ErrorClass.CONTEXT_LENGTH: ("the prompt is too long", "nothing", "not at all"),
    ErrorClass.CONTENT_FILTER: ("a content policy refused", "yes", "not at all"),
    ErrorClass.AFTER_COMMIT: ("anything after the first useful event of a stream", "yes", ""),
}  # fmt: skip
"""What stands beside the rules of a class: examples, the bill, and its health where it is
no failure."""

TestT = TypeVar("TestT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Row:
    """One row of the document.

    Attributes:
        id: The fault's id in the catalogue: a letter of `SECTIONS` and a number.
        name: What happens.
        sees: What the caller sees when nobody else can serve.
        retried: What is tried again, and where.
        billed: What a provider may have charged for without an answer that arrived.
        health: How the provider's health counts it.
        note: What an operator should know beside it.
    """

    id: str
    name: str
    sees: str
    retried: str
    billed: str
    health: str
    note: str = ""

    @property
    def order(self) -> tuple[str, int]:
        """Sorts by letter, then number."""
        return self.id[0], int(self.id[1:])


def shows(*rows: Row) -> Callable[[TestT], TestT]:
    """Say what a test shows."""

    def note(test: TestT) -> TestT:
        test.fault_rows = list(rows)  # type: ignore[attr-defined]
        return test

    return note


# ── from a scripted fault to its row ─────────────────────────────────────────────


def row_of(fault: Fault) -> Row:
    """The row of a scripted fault."""
    return Row(
        fault.id,
        fault.name,
        _both(fault, _sees),
        _both(fault, _retried),
        _both(fault, _billed),
        _both(fault, _health),
        fault.note,
    )


def _both(fault: Fault, say: Callable[[Seen], str]) -> str:
    whole, streamed = (s and say(s) for s in (fault.whole, fault.streamed))
    if whole == streamed or not streamed:
        return whole or ""
    if not whole:
        return streamed
    return f"{whole}; streamed: {streamed}"


def _sees(seen: Seen) -> str:
    if seen.completed:
        return "the answer"
    code = f"`{seen.code}`" if seen.code else "in the provider's own words"
    if seen.committed:
        return f"the answer so far, then an error event {code}"
    wait = f", `Retry-After: {seen.retry_after:g}`" if seen.retry_after else ""
    if not wait and seen.status in {429, 503}:
        wait = ", `Retry-After: 1`"
    return f"{seen.status} {code}{wait}"


def _retried(seen: Seen) -> str:
    if seen.completed:
        return "not needed"
    if not seen.elsewhere:
        return "nothing"
    here = RETRY_RULES[ErrorClass(seen.error_class)].same_provider and seen.state != "exhausted"
    where = "elsewhere, or here if alone" if here else "elsewhere"
    return where if seen.replay == "not_accepted" else f"where repeating is allowed: {where}"


def _billed(seen: Seen) -> str:
    if seen.completed:
        return "the answer"
    return {"not_accepted": "nothing", "maybe_accepted": "maybe", "accepted": "yes"}[seen.replay]


def _health(seen: Seen) -> str:
    if seen.completed:
        return "a success"
    rule = RETRY_RULES[ErrorClass(seen.error_class)]
    if not seen.counted:
        return "not at all"
    if rule.counts_as_failure:
        return "a failure"
    if seen.closed_for is None:
        return "not at all"
    return f"{seen.state}: closed for {seen.closed_for:g} s"


# ── from the tests to the document ───────────────────────────────────────────────


def modules() -> Iterator[ModuleType]:
    """The modules that have rows: `test_*.py` and `table_*.py` beside the fault tests."""
    for path in sorted([*TESTS.glob("test_*.py"), *TESTS.glob("table_*.py")]):
        spec = importlib.util.spec_from_file_location(f"faults_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        finally:
            del sys.modules[spec.name]
        yield module


@functools.cache
def gather() -> tuple[list[Row], dict[str, str]]:
    """All rows, and the faults that do not apply with the reason for it."""
    rows: list[Row] = []
    excused: dict[str, str] = {}
    for module in modules():
        excused |= getattr(module, "DOES_NOT_APPLY", {})
        for value in vars(module).values():
            rows += getattr(value, "fault_rows", ())
        rows += getattr(module, "ROWS", ())
    return sorted(rows, key=lambda row: row.order), excused


def generated() -> str:
    """The part of the document that the tests write."""
    rows, excused = gather()
    parts = ["## Error classes", _classes()]
    for letter, title in SECTIONS.items():
        own = [row for row in rows if row.id[0] == letter]
        if own:
            parts += [f"## {title}", _table(own)]
        notes = [f"* {row.id}, {row.name}: {row.note}" for row in own if row.note]
        if notes:
            parts += ["What to know beside it:", "\n".join(notes)]
    if excused:
        order = sorted(excused, key=lambda id_: (id_[0], int(re.sub(r"\D", "", id_))))
        parts += ["## Faults that do not apply"]
        parts += ["\n".join(f"* {id_}: {excused[id_]}" for id_ in order)]
    return "\n\n".join(parts)


def _classes() -> str:
    lines = ["| class | what it is | here again | elsewhere | health | may be billed |"]
    lines.append("|---|---|---|---|---|---|")
    for name, rule in RETRY_RULES.items():
        examples, billed, health = CLASSES[name]
        if rule.counts_as_failure:
            health = "a failure"
        answers = ["yes" if may else "no" for may in (rule.same_provider, rule.another_provider)]
        lines.append("| " + " | ".join([f"`{name}`", examples, *answers, health, billed]) + " |")
    return "\n".join(lines)


def _table(rows: list[Row]) -> str:
    head = "| | fault | the caller sees | tried again | may be billed | health |"
    lines = [head, "|---|---|---|---|---|---|"]
    for row in rows:
        cells = (row.id, row.name, row.sees, row.retried, row.billed, row.health)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def document() -> str:
    """The document as it must be: written by hand up to its generated part."""
    before, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{generated()}\n\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
