"""`python -m benchmarks NAME`: measure, and write the results into bench.md."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from benchmarks import dispatch, factory, gateway, resilience
from benchmarks.children import ChildError
from benchmarks.machine import Machine
from benchmarks.progress import Steps, showing
from benchmarks.report import Section, write_section
from benchmarks.simulated import SimulatedSettings

BENCH_MD = Path(__file__).resolve().parent.parent / "bench.md"

_output = click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=BENCH_MD,
    help="The file to write the section into; bench.md of the project unless told otherwise.",
)
_quick = click.option(
    "--quick",
    is_flag=True,
    help="Sizes so small that the values mean nothing: shows that all works.",
)
_requests = click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=gateway.GatewaySettings().requests,
    show_default=True,
    help="Requests of the main case of `gateway`, over all rounds.",
)

_soak_seconds = click.option(
    "--soak-seconds",
    type=click.FloatRange(min=2),
    default=resilience.ResilienceSettings().soak_seconds,
    show_default=True,
    help="Length of the soak of `resilience`.",
)

QUICK_FACTORY = factory.FactorySettings(counts=(1, 20), rounds=2, imports=1, threads=2)
QUICK_DISPATCH = dispatch.DispatchSettings(calls=64, picks=200, rounds=2, providers=(2, 10))

QUICK_RESILIENCE = resilience.ResilienceSettings(
    SimulatedSettings(2.0, 2.0, 6.0, 31.0, (5.0,), minutes=0.1, scenarios=4),
    calls=2,
    departures=2,
    reloads=4,
    ends=1,
    soak_seconds=2.0,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure what the gateway costs and withstands, and write it into bench.md."""


@cli.command("factory")
@_quick
@_output
def run_factory(quick: bool, output: Path) -> None:
    """Make providers: time, memory, threads; import the engine."""
    settings = QUICK_FACTORY if quick else factory.FactorySettings()
    _carry_out("factory", settings.steps, lambda steps: factory.run(settings, steps), output=output)


@cli.command("dispatch")
@_quick
@_output
def run_dispatch(quick: bool, output: Path) -> None:
    """Pick, hop and complete over providers that answer at once."""
    settings = QUICK_DISPATCH if quick else dispatch.DispatchSettings()
    _carry_out(
        "dispatch", settings.steps, lambda steps: dispatch.run(settings, steps), output=output
    )


@cli.command("gateway")
@_requests
@_quick
@_output
def run_gateway(requests: int, quick: bool, output: Path) -> None:
    """Ask over HTTP, through Hypercorn, to an upstream on this machine."""
    settings = (
        gateway.GatewaySettings(requests=40, rounds=2, connections=4)
        if quick
        else gateway.GatewaySettings(requests=requests)
    )
    _carry_out("gateway", settings.steps, lambda steps: gateway.run(settings, steps), output=output)


@cli.command("resilience")
@_soak_seconds
@_quick
@_output
def run_resilience(soak_seconds: float, quick: bool, output: Path) -> None:
    """Let providers, callers and the process itself fail, on a virtual clock and for real."""
    settings = (
        QUICK_RESILIENCE if quick else resilience.ResilienceSettings(soak_seconds=soak_seconds)
    )
    _carry_out(
        "resilience", settings.steps, lambda steps: resilience.run(settings, steps), output=output
    )


@cli.command("all")
@_requests
@_soak_seconds
@_quick
@_output
@click.pass_context
def run_all(
    context: click.Context, requests: int, soak_seconds: float, quick: bool, output: Path
) -> None:
    """Run all of them, one after the other."""
    context.invoke(run_factory, quick=quick, output=output)
    context.invoke(run_dispatch, quick=quick, output=output)
    context.invoke(run_gateway, requests=requests, quick=quick, output=output)
    context.invoke(run_resilience, soak_seconds=soak_seconds, quick=quick, output=output)


def _carry_out(name: str, total: int, measure: Callable[[Steps], Section], *, output: Path) -> None:
    """Run one benchmark and write its section."""
    machine = Machine.here()
    try:
        with showing(name, total) as steps:
            section = measure(steps)
    except (ChildError, gateway.UnsupportedSystemError) as error:
        raise click.ClickException(str(error)) from error
    write_section(output, name, section.render(machine, _command()))
    click.echo(f"{name}: written to {output.name}")
    for goal in section.goals:
        what, promised, measured, kept = goal.cells()
        click.echo(f"  {what}: {measured} ({promised} promised, kept: {kept.strip('*')})")


def _command() -> str:
    """The command line that was given, without the place to write to."""
    words = []
    rest = iter(sys.argv[1:])
    for word in rest:
        if word == "--output":
            next(rest, None)
        elif not word.startswith("--output="):
            words.append(word)
    return shlex.join(["python", "-m", "benchmarks", *words])


def _end_on_signal(number: int, _: object) -> NoReturn:
    """Leave by an exception, so that every context ends its processes."""
    sys.exit(128 + number)


def main() -> None:
    """Run the command line."""
    signal.signal(signal.SIGTERM, _end_on_signal)
    cli(prog_name="python -m benchmarks")


if __name__ == "__main__":
    main()
