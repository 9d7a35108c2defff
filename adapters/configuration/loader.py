"""`load_config`: from a file to a `GatewayConfig`, or to everything that is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from adapters.configuration.defaults import take_wrong_defaults_out
from adapters.configuration.document import Document, parse, read_file
from adapters.configuration.echo import Censor, may_be_shown, shown_variable
from adapters.configuration.findings import (
    ConfigurationFileError,
    Finding,
    Findings,
    KeyPath,
    UnreadableError,
)
from adapters.configuration.names import check_names
from adapters.configuration.provider_checks import check_providers
from adapters.configuration.references import References
from adapters.configuration.schema_findings import add_validation_findings
from engine.config import GatewayConfig
from engine.factory import ProviderFactory

BuiltIn = Literal["default", "demo"]
"""The configurations that come with the package, files beside this module."""


def load_config(path: str | os.PathLike[str], *, usable: bool = True) -> GatewayConfig:
    """Read, check and build the configuration of a gateway.

    The kind of the file is told by its name: `.yaml`, `.yml`, `.toml` or `.json`. Beside
    the models, this checks what each enabled provider's type needs (known type, options,
    URL, a key in the environment), without opening a connection.

    Args:
        path: The file.
        usable: Whether its providers must be usable from here; a simulation, which asks
            none of them, needs no keys.

    Raises:
        ConfigurationFileError: With every mistake that was found, each with its line. No
            message holds a value of the file.
    """
    place = Path(path)
    try:
        text = read_file(place)
    except UnreadableError as error:
        raise _unreadable(str(path), error) from None
    return parse_config(text, file=str(path), suffix=place.suffix, usable=usable)


def load_built_in(name: BuiltIn = "default") -> GatewayConfig:
    """A configuration that comes with the package.

    `default` serves two mock providers with weights 3 and 1, and needs nothing. `demo`
    serves a small real model on this machine, and needs the extra `local`.

    Raises:
        ConfigurationFileError: If it cannot work here, such as without the extra.
    """
    file = resources.files("adapters.configuration").joinpath(f"{name}.yaml")
    return parse_config(file.read_text(encoding="utf-8"), file=f"{name}.yaml", suffix=".yaml")


def parse_config(text: str, *, file: str, suffix: str, usable: bool = True) -> GatewayConfig:
    """Build a configuration from the text of a file.

    Args:
        text: What stands in the file.
        file: Its name for the messages.
        suffix: Which kind it is: `.yaml`, `.yml`, `.toml` or `.json`.
        usable: Whether its providers must be usable from here.

    Raises:
        ConfigurationFileError: With every mistake that was found.
    """
    findings = Findings(file)
    try:
        document = parse(text, suffix, findings)
    except UnreadableError as error:
        raise _unreadable(file, error) from None
    references = References(os.environ, findings)
    data = references.replace(document.data)
    data = take_wrong_defaults_out(data, findings)
    check_names(data, document.positions, findings)
    config = _validate(data, findings)
    check_providers(data, findings, usable=usable)
    if config is None or len(findings):
        censor = _censor(document, data, frozenset(references.values))
        raise findings.error(document.positions, censor)
    return config


def _validate(data: dict[str, Any], findings: Findings) -> GatewayConfig | None:
    named_before = len(findings)
    try:
        return GatewayConfig.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        # What the models say about the whole file has no place in it, and mostly repeats
        # what was found before with a line.
        if any(detail["loc"] for detail in details):
            add_validation_findings(error, GatewayConfig, data, findings)
        elif not named_before:
            message = details[0]["msg"].removeprefix("Value error, ")
            findings.add(_place_of_whole(message, data), message)
        return None


def _place_of_whole(message: str, data: Mapping[str, Any]) -> KeyPath:
    """Where to point for something that the models say about the whole file."""
    models = data.get("models")
    if message.startswith("model ") and isinstance(models, list):
        for index, model in enumerate(models):
            if isinstance(model, dict) and message.startswith(f"model {model.get('name')!r}"):
                return ("models", index)
    return ("providers",)


def _censor(document: Document, data: Mapping[str, Any], secrets: frozenset[str]) -> Censor:
    """What may be shown: names of providers and models, known types, names of variables."""
    allowed = set(ProviderFactory.known_types())
    for kind in ("providers", "models"):
        items = data.get(kind)
        for item in items if isinstance(items, list) else []:
            name = item.get("name") if isinstance(item, dict) else None
            variable = item.get("api_key_env") if isinstance(item, dict) else None
            if isinstance(name, str) and may_be_shown(name):
                allowed.add(name)
            if isinstance(variable, str) and shown_variable(variable) == variable:
                allowed.add(variable)
    return Censor(document.data, allowed=frozenset(allowed), secrets=secrets)


def _unreadable(file: str, error: UnreadableError) -> ConfigurationFileError:
    line, column = (error.position.line, error.position.column) if error.position else (None, None)
    return ConfigurationFileError((Finding(file, error.message, "", line, column),))
