"""What `import engine` costs, and what it brings in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.spread import Spread

HEAVY = (
    "aiohttp",
    "hypercorn",
    "httpx",
    "opentelemetry.sdk",
    "rich",
    "starlette",
    "trio",
    "uvloop",
    "yaml",
)
"""Modules that an application which only imports the engine should not have to wait for."""

_ROOT = Path(__file__).resolve().parent.parent
_PROGRAM = """
import time
begin = time.perf_counter()
import engine
seconds = time.perf_counter() - begin
from engine import *
everything = time.perf_counter() - begin
import json, sys
print(json.dumps([seconds, everything, [name for name in {heavy!r} if name in sys.modules]]))
"""


@dataclass(frozen=True, slots=True)
class ImportCost:
    """The cost of `import engine`.

    Attributes:
        seconds: From begin to end, in a fresh interpreter.
        everything: The same with all public names loaded, as `from engine import Router` does.
        heavy: Which of `HEAVY` all of them load.
        parts: Seconds that the modules of a top-level package took themselves, the
            dearest first.
    """

    seconds: Spread
    everything: Spread
    heavy: list[str]
    parts: list[tuple[str, float]]


def import_cost(rounds: int) -> ImportCost:
    """Import the engine in fresh interpreters, once uncounted to have it compiled and cached.

    Raises:
        subprocess.CalledProcessError: If it cannot be imported.
    """
    program = _PROGRAM.format(heavy=HEAVY)
    seconds: list[float] = []
    everything: list[float] = []
    heavy: list[str] = []
    for number in range(rounds + 1):
        took, took_in_all, heavy = json.loads(_interpreter(["-c", program]).stdout)
        if number > 0:
            seconds.append(took)
            everything.append(took_in_all)
    return ImportCost(Spread.of(seconds), Spread.of(everything), heavy, _parts())


def _parts() -> list[tuple[str, float]]:
    """Self time by top-level package; tracing each import makes all of them slower."""
    totals: dict[str, float] = defaultdict(float)
    traced = _interpreter(["-X", "importtime", "-c", "from engine import *"]).stderr
    for line in traced.splitlines():
        columns = line.removeprefix("import time:").split("|")
        if len(columns) == 3 and columns[0].strip().isdigit():
            package = columns[2].strip().partition(".")[0]
            name = "the standard library" if package in sys.stdlib_module_names else package
            totals[name] += int(columns[0]) / 1e6
    return sorted(totals.items(), key=lambda part: part[1], reverse=True)


def _interpreter(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - this interpreter, our own program
        [sys.executable, *arguments],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
