"""`inference-gateway simulate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from adapters.cli.failure import EXIT_FAILED, Failure
from adapters.cli.terminal import print_table
from adapters.configuration import ConfigurationFileError, load_config
from adapters.simulation.replay import Recording, load_recording
from adapters.simulation.report_html import html_page
from adapters.simulation.report_terminal import PROVIDER_COLUMNS, provider_rows, summary_rows
from adapters.simulation.result import Result, to_json
from adapters.simulation.scenario import Scenario
from adapters.simulation.scenario_file import load_simulation
from adapters.simulation.search import Search, keep, search
from adapters.simulation.simulation import Simulation, simulate, tuned_for_simulating

MAX_PROCESSES = 64
SHOWN_FINDINGS = 20


class SeedRange(click.ParamType[range]):
    """`FIRST:END`, such as `0:10000`; a single number is the one seed."""

    name = "first:end"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> range:
        """Read a range of seeds."""
        if isinstance(value, range):
            return value
        first, colon, end = str(value).partition(":")
        if not first.isdecimal() or (colon and not end.isdecimal()):
            self.fail("must be two numbers, such as 0:10000", param, ctx)
        seeds = range(int(first), int(end) if colon else int(first) + 1)
        if not seeds:
            self.fail("is empty: the second number must be above the first", param, ctx)
        return seeds


@click.command()
@click.argument("config", type=click.Path(), required=False)
@click.option("--scenario", type=click.Path(), help="What happens: traffic, providers, faults.")
@click.option("--seed", type=int, help="Seed of all chance, instead of the scenario's.")
@click.option("--json", "json_path", type=click.Path(), help="Write everything as JSON there.")
@click.option("--html", "html_path", type=click.Path(), help="Write a page with plots there.")
@click.option("--replay", type=click.Path(), help="Play recorded requests, one JSON a line.")
@click.option("--against", type=click.Path(), help="Run this configuration too, and compare.")
@click.option("--seeds", type=SeedRange(), help="Try random scenarios instead: 0:10000.")
@click.option("--processes", type=click.IntRange(1, MAX_PROCESSES), default=1, help="For --seeds.")
@click.option("--keep", "keep_path", type=click.Path(), help="Write failing seeds there.")
def command(
    *,
    config: str | None,
    scenario: str | None,
    seed: int | None,
    json_path: str | None,
    html_path: str | None,
    replay: str | None,
    against: str | None,
    seeds: range | None,
    processes: int,
    keep_path: str | None,
) -> None:
    """Run the engine of CONFIG on a virtual clock against simulated providers.

    Exit code 1 if the engine broke a promise, 2 for a mistake in one of the files.
    """
    if seeds is not None:
        if config is not None or scenario is not None:
            raise Failure("--seeds makes its own configurations and scenarios: leave CONFIG out")
        _search(seeds, processes, None if keep_path is None else Path(keep_path))
        return
    if config is None:
        raise Failure("name a configuration file, or try random scenarios with --seeds")
    if scenario is None and replay is None:
        raise Failure("say what happens with --scenario, or play recorded requests with --replay")
    try:
        recording = None if replay is None else load_recording(replay)
        paths = [config] if against is None else [config, against]
        runs = [_prepare(path, scenario, seed, recording) for path in paths]
    except ConfigurationFileError as error:
        raise Failure([str(finding) for finding in error.findings], label="") from None
    results = [_run(run) for run in runs]
    _write(results, json_path, html_path, scenario or replay or "")
    _print(results)
    if not all(result.ok for result in results):
        click.get_current_context().exit(EXIT_FAILED)


def _prepare(
    path: str, scenario: str | None, seed: int | None, recording: Recording | None
) -> Simulation:
    config = load_config(path, usable=False)
    recorded = None if recording is None else recording.again()
    if scenario is not None:
        return load_simulation(config, scenario, name=path, seed=seed, recorded=recorded)
    assert recording is not None
    happens = Scenario(duration=recording.duration)
    return Simulation(config, happens, name=path, seed=seed, recorded=recorded)


def _run(simulation: Simulation) -> Result:
    begun = time.perf_counter()
    with _bar(simulation.name, 1.0) as advance, tuned_for_simulating():
        done = 0.0

        def progress(part: float) -> None:
            nonlocal done
            advance(part - done)
            done = part

        result = simulate(simulation, progress=progress)
    took = time.perf_counter() - begun
    requests = result.summary["requests"]
    each = f", {took / requests * 1e6:.0f} µs a request" if requests else ""
    click.echo(f"{simulation.name}: {requests:,} requests in {took:.1f} s{each}", err=True)
    return result


def _write(results: list[Result], json_path: str | None, html_path: str | None, title: str) -> None:
    if json_path is not None:
        _write_file(json_path, to_json(results))
    if html_path is not None:
        _write_file(html_path, html_page(results, title=f"Simulation: {Path(title).name}"))


def _write_file(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None


def _print(results: list[Result]) -> None:
    print_table(("", *(result.name for result in results)), summary_rows(results))
    click.echo()
    print_table(PROVIDER_COLUMNS, provider_rows(results))
    for result in results:
        for broken in result.broken:
            click.echo(f"{result.name}: broken promise {broken}")


def _search(seeds: range, processes: int, folder: Path | None) -> None:
    begun = time.perf_counter()
    with _bar("scenarios", len(seeds)) as advance:
        found = search(seeds, processes=processes, progress=advance)
    took = time.perf_counter() - begun
    click.echo(
        f"{found.seeds:,} scenarios, {found.requests:,} requests, {found.checks:,} checks "
        f"in {took:.1f} s: {len(found.findings)} scenarios broke a promise"
    )
    _tell(found, folder)
    if found.findings:
        click.get_current_context().exit(EXIT_FAILED)


def _tell(found: Search, folder: Path | None) -> None:
    for finding in found.findings[:SHOWN_FINDINGS]:
        click.echo(f"seed {finding.seed}: {'; '.join(finding.words)}")
        if folder is not None:
            click.echo(f"  kept in {keep(finding, folder)}")
    if (more := len(found.findings) - SHOWN_FINDINGS) > 0:
        click.echo(f"and {more} more")


@contextmanager
def _bar(words: str, total: float) -> Iterator[Callable[[float], None]]:
    """A progress bar on stderr, if somebody looks at it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second, for terminals only
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(words, total=total)
        yield lambda more: progress.advance(task, more)
