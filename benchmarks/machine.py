"""What a result depends on: the machine, the versions, and what else was running."""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import adapters
import engine

DISTRIBUTION = "sre-inference-gateway"
PACKAGES = (
    "aiohttp",
    "anyio",
    "h11",
    "httpx",
    "hypercorn",
    "opentelemetry-sdk",
    "pydantic",
    "starlette",
    "trio",
    "uvloop",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine and its software.

    Attributes:
        date: Day and time in UTC, to the minute.
        gateway: Version of the gateway, with a digest of its source: the same code has the
            same digest, wherever it came from.
        cpu: Model of the processor.
        cores: How many this process may use.
        memory: Size, as people write it.
        kernel: Name and release of the system.
        python: Implementation and version.
        packages: Name and version of the packages that matter.
    """

    date: str
    gateway: str
    cpu: str
    cores: int
    memory: str
    kernel: str
    python: str
    packages: str

    @classmethod
    def here(cls) -> Machine:
        """Describe this one."""
        return cls(
            date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            gateway=f"{_version(DISTRIBUTION)} (source {source_digest()})",
            cpu=_cpu_model(),
            cores=usable_cores(),
            memory=_memory(),
            kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
            python=f"{platform.python_implementation()} {platform.python_version()}",
            packages=", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        )


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Conditions:
    """What else was going on at one instant.

    Attributes:
        load: How many tasks ran or wanted to, over the last 1, 5 and 15 minutes.
        yardstick: Nanoseconds that a fixed piece of Python took just then.
        stolen: Clock ticks so far in which a core was somebody else's, on a virtual machine.
        ticks: All clock ticks so far, over all cores.
    """

    load: str
    yardstick: float
    stolen: int
    ticks: int

    @classmethod
    def now(cls) -> Conditions:
        """Look around; takes a tenth of a second."""
        load = "unknown"
        if hasattr(os, "getloadavg"):
            load = " ".join(f"{value:.2f}" for value in os.getloadavg())
        fields = [int(word) for word in next(iter(_lines(Path("/proc/stat"))), "").split()[1:9]]
        return cls(load, _yardstick(), fields[7] if len(fields) == 8 else 0, sum(fields))

    def until(self, after: Conditions) -> dict[str, str]:
        """What a reader should know of the time between two looks."""
        ticks = after.ticks - self.ticks
        stolen = f"{(after.stolen - self.stolen) / ticks:.1%}" if ticks > 0 else "unknown"
        return {
            "load average": f"{self.load} before, {after.load} after (1, 5, 15 minutes)",
            "taken by other virtual machines": stolen,
            "yardstick, `sum(range(100))`": (
                f"{self.yardstick:.0f} ns before, {after.yardstick:.0f} ns after"
            ),
        }


def _yardstick() -> float:
    numbers = range(100)
    rounds = []
    for _ in range(5):
        begin = time.perf_counter_ns()
        for _ in range(10_000):
            sum(numbers)
        rounds.append((time.perf_counter_ns() - begin) / 10_000)
    return statistics.median(rounds)


def source_digest() -> str:
    """Twelve hexadecimal digits that change with any module of the gateway."""
    digest = hashlib.sha256()
    for package in (engine, adapters):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root.parent).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.processor() or "unknown"


def _memory() -> str:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemTotal:"):
            return f"{int(line.split()[1]) / 2**20:.1f} GiB"
    return "unknown"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
