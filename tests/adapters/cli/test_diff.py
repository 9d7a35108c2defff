"""`inference-gateway diff`: what it says, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from adapters.cli.main import cli

OLD = """\
server: {port: 8080, drain: 30}
providers:
  - {name: first, type: mock, weight: 3}
  - {name: second, type: mock}
"""

Diff = Callable[..., Result]


@pytest.fixture
def diff(tmp_path: Path) -> Diff:
    """Run `diff` on two texts."""

    def run(old: str, new: str, *options: str) -> Result:
        paths = []
        for name, text in (("old.yaml", old), ("new.yaml", new)):
            (tmp_path / name).write_text(text, encoding="utf-8")
            paths.append(str(tmp_path / name))
        return CliRunner().invoke(cli, ["diff", *paths, *options])

    return run


def test_the_same_file_is_0(diff: Diff) -> None:
    """Nothing to do is success, in words."""
    result = diff(OLD, OLD)
    assert (result.exit_code, result.stdout) == (0, "nothing changes\n")


def test_the_order_of_providers_is_no_change(diff: Diff) -> None:
    """A file that says the same in another order changes nothing."""
    lines = OLD.splitlines()
    assert diff(OLD, "\n".join([*lines[:2], lines[3], lines[2]])).exit_code == 0


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("weight: 3", "weight: 2", "~  provider first: weight 3 -> 2  applied in place"),
        ("name: second, type: mock", "name: second, type: mock, timeout: 5",
         "~  provider second: timeout 30 -> 5  actor replaced"),
        ("port: 8080", "port: 9090", "~  server.port 8080 -> 9090  needs a restart"),
        ("drain: 30", "drain: 5", "~  server.drain 30 -> 5  applied in place"),
        ("  - {name: second, type: mock}\n", "",
         "-  provider second (type mock, weight 1, enabled yes)  actor drained"),
        ("second", "third", "+  provider third (type mock, weight 1, enabled yes)  actor started"),
    ],
)  # fmt: skip
def test_a_change_is_1_and_a_line(diff: Diff, before: str, after: str, line: str) -> None:
    """Each kind of change says what it is and what it takes."""
    result = diff(OLD, OLD.replace(before, after))
    assert result.exit_code == 1
    found = [" ".join(each.split()) for each in result.stdout.splitlines()]
    assert " ".join(line.split()) in found


def test_json_says_the_same(diff: Diff) -> None:
    """For machines: the entries, and whether a restart is needed."""
    result = diff(OLD, OLD.replace("8080", "9090"), "--json")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert told["needs_restart"] is True
    assert [entry["field"] for entry in told["changes"]] == ["server.port"]


def test_a_bad_file_is_2_with_its_line(diff: Diff) -> None:
    """A file that cannot be used is no difference but a mistake."""
    result = diff(OLD, OLD.replace("weight: 3", "wieght: 3"))
    assert result.exit_code == 2
    assert "new.yaml:3" in result.stderr
    assert "weight" in result.stderr
    assert result.stdout == ""


def test_a_missing_file_is_2(diff: Diff, tmp_path: Path) -> None:
    """No traceback for a wrong name."""
    missing = str(tmp_path / "none.yaml")
    result = CliRunner().invoke(cli, ["diff", missing, missing])
    assert result.exit_code == 2
    assert "no such file" in result.stderr


def test_no_secret_is_shown(diff: Diff) -> None:
    """An address loses its user and query, an option its text."""
    text = "providers:\n  - {name: one, type: mock, options: {text: canary-1}}\n"
    result = diff(text, text.replace("canary-1", "canary-2"))
    assert result.exit_code == 1
    assert "canary" not in result.stdout + result.stderr


def test_keys_are_not_needed(diff: Diff) -> None:
    """Two files can be compared where the providers' keys are not, as in a review."""
    old = OLD.replace("first, type: mock", "first, type: openai, api_key_env: NOT_SET_ANYWHERE")
    result = diff(old, old.replace("weight: 3", "weight: 2"))
    assert result.exit_code == 1
    assert "weight 3 -> 2" in result.stdout
