"""`inference-gateway simulate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from adapters.cli import simulate as module
from adapters.cli.main import cli
from adapters.simulation.search import Finding, Search

CONFIG = """\
providers:
  - {name: one, type: openai, api_key_env: A_KEY_THAT_IS_NOT_SET, weight: 3}
  - {name: two, type: mock}
"""
SCENARIO = "duration: 10\nphases: [{rate: 10, streamed: 0.5}]\n"

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in a folder with a configuration and a scenario."""
    monkeypatch.chdir(tmp_path)
    Path("gateway.yaml").write_text(CONFIG)
    Path("other.yaml").write_text(CONFIG.replace("weight: 3", "weight: 1"))
    Path("scenario.yaml").write_text(SCENARIO)
    Path("requests.jsonl").write_text('{"at": 0, "seconds": 1}\n{"at": 1, "seconds": 2}\n')

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["simulate", *arguments], prog_name="inference-gateway")

    return invoke


def test_a_scenario_is_run_without_any_key(run: Run) -> None:
    """Tables on stdout, what it took on stderr, exit code 0."""
    result = run("gateway.yaml", "--scenario", "scenario.yaml")
    assert result.exit_code == 0, result.output
    assert "promises broken" in result.stdout
    assert "requests in" in result.stderr


def test_the_same_seed_writes_the_same_files(run: Run) -> None:
    """JSON and HTML, byte for byte; another seed writes others."""
    for number, seed in enumerate(("1", "1", "2")):
        files = (f"--json={number}.json", f"--html={number}.html")
        result = run("gateway.yaml", "--scenario", "scenario.yaml", "--seed", seed, *files)
        assert result.exit_code == 0, result.output
    for kind in ("json", "html"):
        first, second, third = (Path(f"{number}.{kind}").read_bytes() for number in range(3))
        assert first == second != third


def test_two_configurations_are_compared(run: Run) -> None:
    """The same requests under both, side by side."""
    result = run(
        "gateway.yaml", "--scenario", "scenario.yaml", "--against", "other.yaml", "--json", "o.json"
    )
    assert result.exit_code == 0, result.output
    first, second = json.loads(Path("o.json").read_text())["runs"]
    assert (first["name"], second["name"]) == ("gateway.yaml", "other.yaml")
    assert first["requests"] == second["requests"]
    assert first["providers"]["one"]["share"] > second["providers"]["one"]["share"]


def test_recorded_requests_are_played(run: Run) -> None:
    """With and without a scenario, under one configuration or two."""
    for options in ((), ("--scenario", "scenario.yaml"), ("--against", "other.yaml")):
        result = run("gateway.yaml", "--replay", "requests.jsonl", *options)
        assert result.exit_code == 0, result.output
        assert "2.00 s" in result.stdout


def test_random_scenarios_are_tried(run: Run) -> None:
    """How many were run, and that none broke a promise."""
    result = run("--seeds", "0:5")
    assert result.exit_code == 0, result.output
    assert "5 scenarios" in result.stdout
    assert "0 scenarios broke a promise" in result.stdout


def test_a_failing_seed_is_told_and_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, the seed with its words, and its scenario in a file."""
    found = Search(3, 9, 99, (Finding(7, ("I1 at 1.000 s: lost",)),))
    monkeypatch.setattr(module, "search", lambda *_, **__: found)
    result = run("--seeds", "5:8", "--keep", "kept")
    assert result.exit_code == 1
    assert "seed 7: I1 at 1.000 s: lost" in result.stdout
    assert json.loads(Path("kept/seed-7.json").read_text())["seed"] == 7


def test_a_run_of_many_failing_seeds_tells_of_some(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones, and how many more there are."""
    findings = tuple(Finding(seed, ("I1",)) for seed in range(30))
    monkeypatch.setattr(module, "search", lambda *_, **__: Search(30, 1, 1, findings))
    assert "and 10 more" in run("--seeds", "0:30").stdout


MISTAKES = {
    (): "name a configuration file",
    ("gateway.yaml",): "say what happens with --scenario",
    ("nowhere.yaml", "--scenario", "scenario.yaml"): "nowhere.yaml: there is no such file",
    ("gateway.yaml", "--scenario", "gateway.yaml"): "gateway.yaml: duration: is missing",
    ("gateway.yaml", "--replay", "gateway.yaml"): "gateway.yaml:1: is no JSON",
    ("gateway.yaml", "--seeds", "0:5"): "leave CONFIG out",
    ("--seeds", "5:5"): "is empty",
    ("--seeds", "many"): "must be two numbers",
    ("gateway.yaml", "--scenario", "scenario.yaml", "--json", "no/where"): "cannot be written",
}


@pytest.mark.parametrize(("arguments", "words"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_a_mistake_ends_with_2(run: Run, arguments: tuple[str, ...], words: str) -> None:
    """What is wrong stands on stderr."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
