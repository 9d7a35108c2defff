"""Random scenarios: a slice of them in each run of the tests, and the corpus of old ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.simulation.random_scenarios import as_document, as_simulation, random_simulation
from adapters.simulation.result import to_json
from adapters.simulation.search import Finding, keep, search
from adapters.simulation.simulation import simulate

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
SLICE = range(150)


def test_no_random_scenario_breaks_a_promise() -> None:
    """The first 150 of the ten thousand that `inference-gateway simulate --seeds` tries."""
    found = search(SLICE)
    assert found.seeds == len(SLICE)
    assert found.requests > 5_000
    assert found.checks > found.requests
    assert found.findings == ()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_kept_scenario_stays_well(path: Path) -> None:
    """Scenarios that once found something are tried for ever."""
    result = simulate(as_simulation(json.loads(path.read_text()), name=path.stem))
    assert result.broken == ()


def test_the_corpus_is_not_empty() -> None:
    """Or the test above would prove nothing."""
    assert len(CORPUS) >= 5


def test_a_seed_gives_one_scenario() -> None:
    """The same one each time, another one for another seed."""
    assert as_document(random_simulation(5)) == as_document(random_simulation(5))
    assert as_document(random_simulation(5)) != as_document(random_simulation(6))


def test_random_scenarios_have_everything_in_them() -> None:
    """Among a few hundred there is each fault, each change, and each rule that can be set."""
    text = json.dumps([as_document(random_simulation(seed)) for seed in range(300)])
    for word in (
        "refuse", "hang_connect", "hang", "hang_body", "reset", "status", "quota", "html",
        "error_event_first", "cut_stream", "stall_stream", "slow", "flap", "misconfigured", "bug",
        "crash", "set_weight", "set_enabled", "eject", "restore", "reload", "behaviour", "drain",
        "requests_per_minute", "tokens_per_minute", "adaptive", "fallbacks", "hedging", "tier",
        "ejection", "retry_budget", "priorities", "deadline", "cancelled", "upstream_streaming",
    ):  # fmt: skip
        assert f'"{word}"' in text


def test_a_kept_seed_plays_the_same(tmp_path: Path) -> None:
    """The file holds the whole scenario: the generator may change, it will not."""
    seed = 12
    path = keep(Finding(seed, ("I1 at 0.000 s: on purpose",)), tmp_path / "kept")
    document = json.loads(path.read_text())
    assert document["found"] == ["I1 at 0.000 s: on purpose"]
    kept = simulate(as_simulation(document, name=f"seed {seed}"))
    assert to_json([kept]) == to_json([simulate(random_simulation(seed))])


SCRIPT = """
from adapters.simulation.search import search
if __name__ == "__main__":
    told = []
    found = search(range(1000, 1012), processes=2, progress=told.append)
    print(sum(told), found.seeds, found.requests, found.checks)
"""


def test_processes_share_the_work(tmp_path: Path) -> None:
    """Two processes find what one finds; in a process of their own, which ends with them."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=100, check=True
    )
    seeds = range(1_000, 1_012)
    alone = search(seeds)
    assert list(map(int, done.stdout.split())) == [
        len(seeds), len(seeds), alone.requests, alone.checks
    ]  # fmt: skip
