"""Looks for broken promises in many random scenarios, on several cores."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from adapters.simulation.random_scenarios import as_document, random_simulation
from adapters.simulation.simulation import simulate, tuned_for_simulating

BATCH = 100
"""Seeds that a process takes at a time at most: some seconds of work, so that the bar moves."""

SHARES = 4
"""Batches for each process at least, so that none idles long while another one finishes."""

SHOWN = 5
"""Broken promises that are told of one seed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A seed whose scenario broke a promise.

    Attributes:
        seed: The seed.
        words: The promises, the first ones.
    """

    seed: int
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Search:
    """What a search came to.

    Attributes:
        seeds: Scenarios that were run.
        requests: Requests in all of them.
        checks: Checks that were made.
        findings: Seeds that broke a promise, in order.
    """

    seeds: int
    requests: int
    checks: int
    findings: tuple[Finding, ...]


def search(
    seeds: range, *, processes: int = 1, progress: Callable[[int], None] | None = None
) -> Search:
    """Run the scenarios of many seeds.

    Args:
        seeds: Which.
        processes: How many processes share the work; 1 does it in this one.
        progress: Told how many more scenarios were run.
    """
    size = max(1, min(BATCH, len(seeds) // (processes * SHARES)))
    batches = [seeds[start : start + size] for start in range(0, len(seeds), size)]
    total = Search(0, 0, 0, ())
    for batch in _results(batches, processes):
        total = _together(total, batch)
        if progress is not None:
            progress(batch.seeds)
    return total


def _results(batches: Sequence[range], processes: int) -> Iterator[Search]:
    if processes == 1:
        yield from map(search_here, batches)
        return
    # Not forked: whoever calls may have threads, and their locks would be copied shut.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        work = [pool.submit(search_here, batch) for batch in batches]
        try:
            for future in as_completed(work):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _together(one: Search, other: Search) -> Search:
    findings = sorted((*one.findings, *other.findings), key=lambda finding: finding.seed)
    return Search(
        one.seeds + other.seeds,
        one.requests + other.requests,
        one.checks + other.checks,
        tuple(findings),
    )


def search_here(seeds: range) -> Search:
    """Run the scenarios of some seeds in this process."""
    requests = checks = 0
    findings = []
    with tuned_for_simulating():
        for seed in seeds:
            result = simulate(random_simulation(seed))
            requests += result.summary["requests"]
            checks += result.summary["checks"]
            if not result.ok:
                words = tuple(str(broken) for broken in result.broken[:SHOWN])
                findings.append(Finding(seed, words))
    return Search(len(seeds), requests, checks, tuple(findings))


def keep(finding: Finding, folder: Path) -> Path:
    """Write a seed's whole scenario to a file, so that it outlives the generator.

    Returns:
        The file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "seed": finding.seed,
        "found": list(finding.words),
        **as_document(random_simulation(finding.seed)),
    }
    path = folder / f"seed-{finding.seed}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return path
