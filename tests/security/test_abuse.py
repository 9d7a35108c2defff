"""Rules S52, S55 and S56, and that all rules from S1 to S56 are tested or argued away."""

from __future__ import annotations

import ast
import functools
import re
import runpy
import site
import sysconfig
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from security_lab import HELLO, Bench, on_bench

from engine import GatewayError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOT_APPLICABLE: dict[str, str] = runpy.run_path(str(HERE / "not_applicable.py"))["NOT_APPLICABLE"]

# ── S52: answers that are shared ─────────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
async def test_s52_nobody_gets_the_answer_to_somebody_elses_key(streamed: bool) -> None:
    """One idempotency key, one body, two API keys: two calls, and two stored answers."""
    body = {**HELLO, "stream": streamed}

    async def ask(bench: Bench, key: str, **more: Any) -> int:
        headers = {"authorization": f"Bearer {key}", "idempotency-key": "the-same"}
        return (await bench.ask({**body, **more}, headers=headers)).status_code

    async def use(bench: Bench) -> None:
        assert [await ask(bench, key) for key in ("one", "one", "two", "two")] == [200] * 4
        assert len(bench.heads) == 2
        # Another body is another request, whatever the field is.
        others: list[dict[str, Any]] = [
            {"tools": []},
            {"response_format": {"type": "text"}},
            {"temperature": 0},
        ]
        for more in others:
            assert await ask(bench, "one", **more) == 422
        assert len(bench.heads) == 2

    keys = {"server": {"api_keys_env": "KEYS"}}
    await on_bench(use, more=keys, environment={"KEYS": "one,two"})


async def test_s52_without_an_idempotency_key_nothing_is_shared() -> None:
    """There is no cache: the same question twice is two calls."""

    async def use(bench: Bench) -> None:
        for _ in range(2):
            assert (await bench.ask({**HELLO, "temperature": 0})).status_code == 200
        assert len(bench.heads) == 2

    await on_bench(use)


# ── S55: what is installed ───────────────────────────────────────────────────────

KNOWN_PTH = re.compile(
    r"distutils-precedence\.pth|_virtualenv\.pth|.*sre[-_]inference[-_]gateway.*\.pth"
    r"|a1_coverage\.pth|__editable__\..*\.pth"
)


def test_s55_no_unknown_file_runs_code_at_every_start() -> None:
    """A `.pth` file with an import line runs in each Python process: only known ones may be."""
    folders = {
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
        *site.getsitepackages(),
    }
    for folder in map(Path, folders):
        for file in folder.glob("*.pth"):
            runs = re.search(r"^import[ \t]", file.read_text(errors="replace"), re.MULTILINE)
            assert not runs or KNOWN_PTH.fullmatch(file.name), f"unknown: {file}"
        assert not (folder / "sitecustomize.py").exists()
        assert not (folder / "usercustomize.py").exists()


def test_s55_versions_are_pinned() -> None:
    """Each dependency, and what it brings, stands in constraints.txt with one exact version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.\-]+==[A-Za-z0-9_.+\-]+", line) for line in pins)
    pinned = {plain(line.partition("==")[0]) for line in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    wanted += project["optional-dependencies"]["local"]
    names = {plain(re.split(r"[<>=!\[; ]", each)[0]) for each in wanted}
    assert names - {"sre-inference-gateway"} <= pinned


def test_s55_nothing_is_run_by_an_installation() -> None:
    """No build hook, no setup.py, and no address of a package in the project's files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["build-system"]["build-backend"] == "hatchling.build"
    assert len(project["build-system"]["requires"]) == 1
    assert "hooks" not in str(project["tool"]["hatch"])
    assert not (ROOT / "setup.py").exists()
    for file in ("pyproject.toml", "constraints.txt"):
        assert "://" not in (ROOT / file).read_text()


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ── S56: one pipeline ────────────────────────────────────────────────────────────

Entry = Callable[[Bench, dict[str, Any]], Awaitable[tuple[int, str | None]]]


async def _http(bench: Bench, body: dict[str, Any]) -> tuple[int, str | None]:
    answer = await bench.ask(body)
    code = None if answer.status_code == 200 else answer.json()["error"]["code"]
    return answer.status_code, code


async def http_whole(bench: Bench, body: dict[str, Any]) -> tuple[int, str | None]:
    return await _http(bench, body)


async def http_streamed(bench: Bench, body: dict[str, Any]) -> tuple[int, str | None]:
    return await _http(bench, {**body, "stream": True})


async def library_whole(bench: Bench, body: dict[str, Any]) -> tuple[int, str | None]:
    try:
        await bench.app.engine.complete(body)
    except GatewayError as error:
        return error.status, error.code
    return 200, None


async def library_streamed(bench: Bench, body: dict[str, Any]) -> tuple[int, str | None]:
    try:
        async with bench.app.engine.stream({**body, "stream": True}) as stream:
            async for _ in stream:
                pass
    except GatewayError as error:
        return error.status, error.code
    return 200, None


ENTRIES: list[Entry] = [http_whole, http_streamed, library_whole, library_streamed]
MODELS = {
    "models": [
        {"name": "known", "targets": [{"provider": "upstream", "model": "private-name"}]},
    ]
}
BODIES: list[tuple[dict[str, Any], tuple[int, str | None]]] = [
    ({**HELLO, "model": "known"}, (200, None)),
    ({**HELLO, "model": "unknown"}, (404, "model_not_found")),
    ({**HELLO, "model": "private-name"}, (404, "model_not_found")),
    ({**HELLO, "model": ""}, (400, "invalid_type")),
    ({**HELLO, "model": ["known"]}, (400, "invalid_type")),
    ({"model": "known"}, (400, "missing_required_parameter")),
    ({**HELLO, "model": "known", "messages": "text"}, (400, "invalid_type")),
    ({**HELLO, "model": "known", "messages": ["text"]}, (400, "invalid_type")),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
async def test_s56_every_way_in_has_the_same_rules(entry: Entry) -> None:
    """Library and HTTP, whole and streamed: who is refused here is refused there."""

    async def use(bench: Bench) -> None:
        for body, expected in BODIES:
            assert await entry(bench, body) == expected, body
        assert len(bench.heads) == 1

    await on_bench(use, more=MODELS)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
async def test_s56_every_way_in_obeys_the_operator_at_once(entry: Entry) -> None:
    """A provider that is switched off is off for all of them, and so is one that was ejected."""

    async def use(bench: Bench) -> None:
        assert await entry(bench, HELLO) == (200, None)
        bench.app.engine.eject("upstream")
        status, _ = await entry(bench, HELLO)
        assert status == 503
        assert len(bench.heads) == 1

    await on_bench(use)


# ── all rules ────────────────────────────────────────────────────────────────────

RULES = range(1, 57)


@functools.cache
def rules_with_tests() -> dict[int, list[str]]:
    """The tests of each rule, as `file::function`."""
    found: dict[int, list[str]] = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = str(getattr(node, "name", ""))
            if match := re.match(r"test_s(\d+)_", name):
                found.setdefault(int(match[1]), []).append(f"{path.name}::{name}")
    return found


@pytest.mark.parametrize("number", RULES)
def test_each_rule_is_tested_or_argued_away(number: int) -> None:
    """One of the two, and not both."""
    excused = f"S{number}" in NOT_APPLICABLE
    assert excused is not (number in rules_with_tests()), f"S{number}"
    if excused:
        assert len(NOT_APPLICABLE[f"S{number}"]) > 40


def test_nothing_is_argued_away_that_is_no_rule() -> None:
    """Names that do not exist would hide a mistake."""
    assert NOT_APPLICABLE.keys() <= {f"S{number}" for number in RULES}


def test_the_document_has_every_rule_and_names_tests_that_exist() -> None:
    """`docs/SECURITY.md`: one row for each rule, in order, with the files of its tests."""
    text = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| S(\d+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(RULES)
    by_rule = rules_with_tests()
    for number, how, where in rows:
        if f"S{number}" in NOT_APPLICABLE:
            assert where == "does not apply"
            assert NOT_APPLICABLE[f"S{number}"] in how
        else:
            files = {each.partition("::")[0] for each in by_rule.get(int(number), [])}
            assert set(re.findall(r"`(test_\w+\.py)`", where)) == files, f"S{number}"
