"""From a scenario's file to a `Simulation`, or to everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from adapters.configuration import ConfigurationFileError, Finding, load_config
from adapters.configuration.document import Document, parse, read_file
from adapters.configuration.findings import Findings, KeyPath, UnreadableError
from adapters.configuration.schema_findings import add_validation_findings, nearest_hint
from adapters.simulation.requests import Asked
from adapters.simulation.scenario import EVERYBODY, ChangeConfig, Scenario
from adapters.simulation.simulation import Simulation
from engine.config import GatewayConfig


def load_simulation(
    config: GatewayConfig,
    path: str,
    *,
    name: str = "simulation",
    seed: int | None = None,
    recorded: Sequence[Asked] | None = None,
) -> Simulation:
    """Read a scenario and check that it fits a configuration.

    Args:
        config: The configuration that it is played under.
        path: The scenario's file: `.yaml`, `.yml`, `.toml` or `.json`. The files of its
            reloads are looked for beside it.
        name: What the run is called.
        seed: Instead of the scenario's.
        recorded: Requests that are played instead of the scenario's phases.

    Raises:
        ConfigurationFileError: With every mistake that was found.
    """
    findings = Findings(path)
    document = _document(path, findings)
    scenario: Scenario | None = None
    reloads: dict[int, GatewayConfig] = {}
    try:
        scenario = Scenario.model_validate(document.data)
    except ValidationError as error:
        add_validation_findings(error, Scenario, document.data, findings)
    if scenario is not None:
        reloads = _load_reloads(scenario, Path(path).parent, findings)
        _check_names(scenario, [config, *reloads.values()], findings)
        if not scenario.phases and recorded is None:
            findings.add((), "there are no `phases`: nothing would be asked")
    if scenario is None or len(findings):
        raise findings.error(document.positions)
    return Simulation(config, scenario, name=name, seed=seed, recorded=recorded, reloads=reloads)


def _document(path: str, findings: Findings) -> Document:
    place = Path(path)
    try:
        return parse(read_file(place), place.suffix, findings)
    except UnreadableError as error:
        at = error.position
        line, column = (at.line, at.column) if at else (None, None)
        raise ConfigurationFileError((Finding(path, error.message, "", line, column),)) from None


def _load_reloads(scenario: Scenario, folder: Path, findings: Findings) -> dict[int, GatewayConfig]:
    reloads: dict[int, GatewayConfig] = {}
    for number, change in enumerate(scenario.changes):
        at: KeyPath = ("changes", number, "reload")
        if isinstance(change.reload, str):
            try:
                reloads[number] = load_config(folder / change.reload, usable=False)
            except ConfigurationFileError as error:
                findings.add(at, str(error.findings[0]))
        elif change.reload is not None:
            try:
                reloads[number] = GatewayConfig.model_validate(change.reload)
            except ValidationError as error:
                add_validation_findings(error, GatewayConfig, change.reload, findings, at=at)
    return reloads


def _check_names(scenario: Scenario, configs: Sequence[GatewayConfig], findings: Findings) -> None:
    """Refuse names that no provider and no model has, under any of the configurations."""
    providers = list(dict.fromkeys(p.name for config in configs for p in config.providers))
    for path, name in _provider_names(scenario):
        if name not in providers:
            hint = nearest_hint(name, providers) or f" (known: {', '.join(providers[:10])})"
            findings.add(path, f"no provider is named like that{hint}")
    models = list(dict.fromkeys(m.name for config in configs for m in config.models))
    if not all(config.models for config in configs):
        return
    for number, phase in enumerate(scenario.phases):
        for model in phase.models:
            if model not in models:
                hint = nearest_hint(model, models) or f" (known: {', '.join(models[:10])})"
                findings.add(
                    ("phases", number, "models", model), f"no model is named like that{hint}"
                )


def _provider_names(scenario: Scenario) -> Iterator[tuple[KeyPath, str]]:
    for name in scenario.providers:
        if name != EVERYBODY:
            yield ("providers", name), name
    for number, fault in enumerate(scenario.faults):
        for name in fault.names:
            if name != EVERYBODY:
                yield ("faults", number, "providers"), name
    for number, change in enumerate(scenario.changes):
        for word, name in _names_of(change):
            yield ("changes", number, word), name


def _names_of(change: ChangeConfig) -> Iterable[tuple[str, str]]:
    if change.set_weight is not None:
        yield "set_weight", change.set_weight.provider
    if change.set_enabled is not None:
        yield "set_enabled", change.set_enabled.provider
    if change.behaviour is not None:
        yield "behaviour", change.behaviour.provider
    for word, name in (("eject", change.eject), ("restore", change.restore)):
        if name is not None:
            yield word, name
