"""Checks of a file that need the provider types themselves: what each of them asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from adapters.configuration.echo import shown_variable
from adapters.configuration.findings import Findings, KeyPath
from adapters.configuration.schema_findings import add_validation_findings, nearest_hint
from engine.config import GatewayConfig, ProviderConfig
from engine.errors import ConfigurationError
from engine.factory import ProviderFactory
from engine.provider import BaseProvider


def check_providers(data: Mapping[str, Any], findings: Findings, *, usable: bool = True) -> None:
    """Check each enabled provider against its type: settings, options, key and URL.

    Nothing is opened or asked: `ProviderFactory.create_provider` does no I/O. A provider
    of which something else is wrong is still checked as far as that is possible.

    Args:
        data: What stands in the file.
        findings: Where the findings go.
        usable: Whether the key and the URL must be there.
    """
    providers, defaults = data.get("providers"), data.get("defaults", {})
    if not isinstance(providers, list):
        return
    for index, provider in enumerate(providers):
        if isinstance(provider, dict) and not _is_off(provider, defaults):
            _check_provider(provider, ("providers", index), defaults, findings, usable=usable)


def _is_off(provider: dict[str, Any], defaults: dict[str, Any]) -> bool:
    enabled = provider.get("enabled", defaults.get("enabled", True))
    # The words that the model takes for "no" as well.
    return enabled is False or str(enabled).lower() in (
        "no",
        "off",
        "false",
        "n",
        "f",
        "0",
    )


def _check_provider(
    provider: dict[str, Any],
    at: KeyPath,
    defaults: dict[str, Any],
    findings: Findings,
    *,
    usable: bool,
) -> None:
    before = len(findings)
    adapter_class = _adapter_class(provider.get("type"), (*at, "type"), findings)
    if adapter_class is None:
        return
    _check_options(provider.get("options", {}), adapter_class, (*at, "options"), findings)
    config = _as_config(provider, defaults)
    if config is None or len(findings) > before or not usable:
        return
    try:
        ProviderFactory.create_provider(config)
    except ConfigurationError as error:
        if (name := _missing_variable(config)) is not None:
            place = (*at, "api_key_env") if "api_key_env" in provider else at
            shown = shown_variable(name)
            message = f"the environment variable {shown} is not set: put the API key into it"
            findings.add(place, message)
        else:
            findings.add(_place(error, at, provider), error.message)


def _adapter_class(type_name: Any, at: KeyPath, findings: Findings) -> type[BaseProvider] | None:
    if not isinstance(type_name, str) or not type_name:
        return None
    known = ProviderFactory.known_types()
    if type_name not in known:
        hint = nearest_hint(type_name, known) or ";"
        findings.add(at, f"unknown provider type{hint} known types are {', '.join(known)}")
        return None
    try:
        return ProviderFactory.adapter_class(type_name)
    except ConfigurationError as error:
        findings.add(at, error.message)
        return None


def _check_options(
    options: Any, adapter_class: type[BaseProvider], at: KeyPath, findings: Findings
) -> None:
    if not isinstance(options, dict):
        return
    try:
        adapter_class.Options.model_validate(options)
    except ValidationError as error:
        add_validation_findings(error, adapter_class.Options, options, findings, at=at)


def _as_config(provider: dict[str, Any], defaults: dict[str, Any]) -> ProviderConfig | None:
    """The provider with the defaults, or None if its own fields are wrong."""
    # Alone in a file it must be enabled and have a weight; neither matters to the adapter.
    alone = {**provider, "enabled": True, "weight": 1}
    try:
        whole = GatewayConfig.model_validate({"defaults": defaults, "providers": [alone]})
    except ValidationError:
        return None
    return whole.providers[0]


def _missing_variable(config: ProviderConfig) -> str | None:
    """The variable that should hold the key, if it is named and not there.

    Adapters say so too, but only here is it known whether the name may be shown.
    """
    name = config.api_key_env
    return None if name is None or os.environ.get(name) else name


_SETTING = re.compile(r"\b(api_key_env|base_url|options(?:\.\w+)*)\b")


def _place(error: ConfigurationError, at: KeyPath, provider: dict[str, Any]) -> KeyPath:
    """The setting that an adapter's message is about: the first one that it names."""
    found = _SETTING.search(error.param or error.message)
    if found is None:
        return at
    path = tuple(found[1].split("."))
    return (*at, *path) if path[0] in provider or path[0] != "options" else at
