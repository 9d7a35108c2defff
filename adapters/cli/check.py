"""`inference-gateway check`."""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio
import click

from adapters.cli.failure import EXIT_FAILED
from adapters.cli.loading import load_or_fail
from adapters.cli.terminal import print_table
from engine.config import GatewayConfig, ProviderConfig
from engine.errors import GatewayError, UnsupportedOperationError
from engine.factory import ProviderFactory

PROBES_AT_ONCE = 16
_MODELS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Probe:
    """What asking one provider for its models gave.

    Attributes:
        provider: The provider's name.
        type: Its type.
        failed: Whether it cannot be used as it is.
        words: The models, or what went wrong.
        seconds: How long it took.
    """

    provider: str
    type: str
    failed: bool
    words: str
    seconds: float


@click.command()
@click.argument("config", type=click.Path())
@click.option("--probe", is_flag=True, help="Ask each enabled provider for its models.")
def command(config: str, *, probe: bool) -> None:
    """Say everything that is wrong with the file CONFIG, with lines and nearest known keys.

    Exit code 2 if something is wrong with the file, 1 if a probed provider does not answer.
    """
    loaded = load_or_fail(config)
    enabled = [provider for provider in loaded.providers if provider.enabled]
    click.echo(f"{config}: ok: {_count(loaded, enabled)}")
    if not probe:
        return
    probes = anyio.run(probe_providers, enabled)
    rows = [
        (probe.provider, probe.type, "failed" if probe.failed else "ok",
         f"{probe.seconds:.2f} s", probe.words)
        for probe in probes
    ]  # fmt: skip
    print_table(("provider", "type", "answer", "time", "models"), rows)
    if any(probe.failed for probe in probes):
        click.get_current_context().exit(EXIT_FAILED)


def _count(config: GatewayConfig, enabled: list[ProviderConfig]) -> str:
    providers = f"{len(enabled)} of {len(config.providers)} providers enabled"
    models = f"{len(config.models)} models" if config.models else "every model name is served"
    return f"{providers}, {models}"


async def probe_providers(configs: list[ProviderConfig]) -> list[Probe]:
    """Ask providers for their models, some at a time, each for at most its `timeout`.

    Returns:
        One probe each, in the given order.
    """
    found: dict[str, Probe] = {}
    limiter = anyio.CapacityLimiter(PROBES_AT_ONCE)

    async def ask(config: ProviderConfig) -> None:
        async with limiter:
            found[config.name] = await _probe(config)

    async with anyio.create_task_group() as group:
        for config in configs:
            group.start_soon(ask, config)
    return [found[config.name] for config in configs]


async def _probe(config: ProviderConfig) -> Probe:
    begun = time.perf_counter()
    failed, words = True, f"no answer within {config.timeout:g} s"
    try:
        with anyio.move_on_after(config.timeout):
            async with ProviderFactory.create_provider(config) as provider:
                models = await provider.list_models()
                failed, words = False, _list(models)
    except UnsupportedOperationError:
        failed, words = False, "this type has no list of models"
    except GatewayError as error:
        words = error.message
    return Probe(config.name, config.type, failed, words, time.perf_counter() - begun)


def _list(models: list[str]) -> str:
    shown = ", ".join(models[:_MODELS_SHOWN])
    more = len(models) - _MODELS_SHOWN
    return (f"{shown} and {more} more" if more > 0 else shown) or "none"
