"""Each command works on tiny sizes and writes its own section."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.children import START_SECONDS, ChildError, gateway_process

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(180)


def start(output: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `python -m benchmarks` with tiny sizes."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *arguments, "--quick", "--output", str(output)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def section(output: Path, *arguments: str) -> str:
    """Run a command to its end; gives what it wrote."""
    process = start(output, *arguments)
    out, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert f"{arguments[0]}: written to bench.md" in out
    assert f"{arguments[0]} 1/" in errors, "progress is told line by line without a terminal"
    text = output.read_text(encoding="utf-8")
    found = re.fullmatch(
        rf".*<!-- benchmark {arguments[0]}: begin -->(.+)<!-- benchmark {arguments[0]}: end -->\n",
        text,
        re.DOTALL,
    )
    assert found, text
    assert str(ROOT) not in text
    assert "--output" not in text
    return found[1]


def test_factory_writes_its_section(tmp_path: Path) -> None:
    """Types, counts, threads, memory and the import stand in the section."""
    text = section(tmp_path / "bench.md", "factory")
    assert "`python -m benchmarks factory --quick`" in text
    for type_name in ("openai", "vllm", "mock"):
        assert re.search(rf"\| {type_name} \| 20 \| \S+ \(\S+ to \S+\) \|", text)
    for title in ("made by 2 threads at once", "Memory of each further provider", "Import"):
        assert title in text


def test_dispatch_writes_its_section(tmp_path: Path) -> None:
    """Picks, hop, whole calls on each event loop, and streams stand in the section."""
    text = section(tmp_path / "bench.md", "dispatch")
    for balancer in ("weighted_random", "smooth_weighted", "least_loaded"):
        assert re.search(rf"\| {balancer} \| 10 \| \S+ \(\S+ to \S+\) \|", text)
    for loop in ("uvloop", "asyncio", "trio"):
        assert f"`router.complete()` on {loop}" in text
    assert re.search(r"\| 64 \| on \| \S+ \(\S+ to \S+\) \|", text)
    assert "the exporter got 2.00 to 2.00 spans a request" in text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_gateway_writes_its_section(tmp_path: Path) -> None:
    """Answers and streams through a real gateway stand in the section, without errors."""
    text = section(tmp_path / "bench.md", "gateway")
    assert re.search(r"\| errors in 40 requests \| ≤ 0 \| 0 \| yes \|", text)
    assert re.search(r"\| stream, all events at once \| gateway \| 4 \| .* \| 0 of 8 \|", text)
    assert re.search(r"\| stream, paced \| gateway \| 4 \| .* \| 0 of 8 \|", text)
    assert re.search(r"\| answer \| Hypercorn alone \| 4 \| .* \| 0 of 16 \|", text)
    assert "Errors:" not in text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_resilience_writes_its_section(tmp_path: Path) -> None:
    """Each promise stands in the section with its value, from virtual time and real processes."""
    text = section(tmp_path / "bench.md", "resilience")
    for goal in (
        r"\| success with 10 % random failures \| ≥ 99.5 % \| \S+ % \| yes \|",
        r"\| goodput at 10 times the capacity, of capacity \| ≥ 95 % \|",
        r"\| scenarios of 4 in which an invariant broke \| ≤ 0 \| 0 \| yes \|",
        r"\| calls not failed over, of 28 \| ≤ 0 \| 0 \| yes \|",
        r"\| requests lost or failed over 4 reloads under load \| ≤ 0 \| 0 \| yes \|",
        r"\| upstream closed after the caller's FIN, the slowest of 6 \| ≤ 100 ms \|",
        r"\| streams cut before the drain limit \| ≤ 0 \| 0 \| yes \|",
        r"\| largest conservation error of the soak \| ≤ 0 \| 0 \| yes \|",
    ):
        assert re.search(goal, text), text
    assert re.search(r"\| resident memory, MiB \| \S+ \| \S+ \| \S+ to \S+ \| \S+ ± \S+ \|", text)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_gateway_leaves_no_process_behind(tmp_path: Path, how: signal.Signals) -> None:
    """However the benchmark is ended, its processes end with it and nothing is written."""
    output = tmp_path / "bench.md"
    with start(output, "gateway") as benchmark:
        assert benchmark.stderr is not None
        while "round 1" not in benchmark.stderr.readline():
            assert benchmark.poll() is None, benchmark.stderr.read()
        children = psutil.Process(benchmark.pid).children(recursive=True)
        assert len(children) >= 2
        benchmark.send_signal(how)
        benchmark.communicate(timeout=60)
        assert benchmark.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not output.exists()


def test_unknown_name_is_a_usage_error() -> None:
    """Somebody who mistypes a name is told the right ones."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gatewy"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "gatewy" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's /proc")
def test_gateway_that_cannot_start_is_told() -> None:
    """A gateway that ends at once is not waited for, and its own words are passed on."""
    begin = time.monotonic()
    no_such_port = 99_999
    with (
        pytest.raises(ChildError, match=r"did not start: .*base_url"),
        gateway_process(0, no_such_port),
    ):
        pass
    assert time.monotonic() - begin < START_SECONDS
