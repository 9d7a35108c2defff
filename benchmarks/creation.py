"""Making providers: time in this process, memory in a fresh one.

As a program, `python -m benchmarks.creation TYPE COUNT` prints a `MemoryCost` as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cpu_time import resident_mib
from benchmarks.spread import percentile
from engine.config import ProviderConfig
from engine.factory import ProviderFactory
from engine.provider import BaseProvider

TYPES = ("openai", "vllm", "mock")
KEY_ENV = "BENCHMARK_API_KEY"
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class CreationTimes:
    """Making so many providers of one type, one after the other. Seconds.

    Attributes:
        median: One call.
        p99: 99 % of the calls were faster.
        total: All of them, with what measuring each one costs.
    """

    median: float
    p99: float
    total: float


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """What providers take, bytes for each further one.

    Attributes:
        allocated: By Python's allocator, the provider alone.
        configuration: By Python's allocator, its `ProviderConfig` alone.
        resident: By the operating system, both together.
    """

    allocated: float
    configuration: float
    resident: float


def configurations(type_name: str, count: int) -> list[ProviderConfig]:
    """Configurations of that many different providers."""
    # A provider of type openai is refused without a key; no request is ever made with it.
    os.environ.setdefault(KEY_ENV, "no-real-key")
    return [
        ProviderConfig(
            name=f"{type_name}-{number}",
            type=type_name,
            base_url=f"http://127.0.0.1:9/{number}/v1",
            api_key_env=KEY_ENV if type_name == "openai" else None,
        )
        for number in range(count)
    ]


def creation_times(type_name: str, count: int) -> CreationTimes:
    """Time each of `count` calls of `create_provider`; the type's module is loaded before."""
    configs = configurations(type_name, count)
    ProviderFactory.create_provider(configs[0])
    gc.collect()
    clock, create = time.perf_counter, ProviderFactory.create_provider
    kept: list[BaseProvider] = []
    taken: list[float] = []
    begin = clock()
    for config in configs:
        at = clock()
        provider = create(config)
        taken.append(clock() - at)
        kept.append(provider)
    total = clock() - begin
    taken.sort()
    return CreationTimes(percentile(taken, 0.5), percentile(taken, 0.99), total)


def threaded_seconds(type_name: str, count: int, threads: int) -> float:
    """Seconds to make `count` providers in several threads at once.

    Raises:
        RuntimeError: If one of them was not made.
    """
    configs = configurations(type_name, count)
    made: list[list[BaseProvider]] = [[] for _ in range(threads)]
    start = threading.Barrier(threads + 1)

    def work(index: int) -> None:
        start.wait()
        made[index] = [ProviderFactory.create_provider(c) for c in configs[index::threads]]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    start.wait()
    begin = time.perf_counter()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begin
    names = {provider.name for part in made for provider in part}
    if len(names) != count:
        msg = f"{count} providers were asked for in {threads} threads, {len(names)} were made"
        raise RuntimeError(msg)
    return seconds


def memory_cost(type_name: str, count: int) -> MemoryCost:
    """Ask a fresh process, whose memory nothing else has touched.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    answer = subprocess.run(  # noqa: S603 - this interpreter, our own module
        [sys.executable, "-m", "benchmarks.creation", type_name, str(count)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return MemoryCost(**json.loads(answer.stdout))


def _memory_here(type_name: str, count: int) -> MemoryCost:
    warm = [ProviderFactory.create_provider(c) for c in configurations(type_name, 10)]
    gc.collect()
    before = resident_mib(os.getpid())
    kept = [ProviderFactory.create_provider(c) for c in configurations(type_name, count)]
    resident = (resident_mib(os.getpid()) - before) * 2**20 / count
    kept.clear()
    gc.collect()
    # Tracing takes memory itself, so it comes after the look at the whole process.
    tracemalloc.start()
    configs = configurations(type_name, count)
    gc.collect()
    configured, _ = tracemalloc.get_traced_memory()
    kept = [ProviderFactory.create_provider(config) for config in configs]
    gc.collect()
    all_in_all, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == count
    assert warm
    return MemoryCost((all_in_all - configured) / count, configured / count, resident)


if __name__ == "__main__":
    print(json.dumps(asdict(_memory_here(sys.argv[1], int(sys.argv[2])))))
