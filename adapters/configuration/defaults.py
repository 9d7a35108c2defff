"""The `defaults` of a file: provider settings that stand in for what a provider leaves out."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from adapters.configuration.findings import Findings
from adapters.configuration.schema_findings import (
    add_validation_findings,
    nearest_hint,
    unknown_key_words,
)
from engine.config import ProviderConfig

DEFAULTABLE = tuple(
    name
    for name in ProviderConfig.model_fields
    if name not in ("name", "type", "base_url", "options")
)
"""Provider settings that may stand in `defaults`: all but those that make a provider itself."""


def take_wrong_defaults_out(data: dict[str, Any], findings: Findings) -> dict[str, Any]:
    """Check `defaults` on their own, and give the data back without what is wrong in them.

    So a mistake there is told once and at its own line, not once for each provider.
    """
    defaults = data.get("defaults", {})
    if not isinstance(defaults, dict):
        findings.add(("defaults",), "must hold provider settings (`key: value`)")
        return {key: value for key, value in data.items() if key != "defaults"}
    wrong: set[str] = set()
    for key in defaults:
        if key not in DEFAULTABLE:
            wrong.add(key)
            findings.add(("defaults", key), _not_defaultable(key))
    known = {key: value for key, value in defaults.items() if key not in wrong}
    try:
        ProviderConfig.model_validate({**known, "name": "defaults", "type": "defaults"})
    except ValidationError as error:
        wrong |= {str(detail["loc"][0]) for detail in error.errors(include_input=False)}
        add_validation_findings(error, ProviderConfig, known, findings, at=("defaults",))
    if not wrong:
        return data
    rest = {key: value for key, value in known.items() if key not in wrong}
    return {**data, "defaults": rest}


def _not_defaultable(key: str) -> str:
    if key in ProviderConfig.model_fields:
        return "has no default: each provider says it on its own"
    if hint := nearest_hint(key, DEFAULTABLE):
        return f"unknown key{hint}"
    words = unknown_key_words(key, ProviderConfig)
    return (
        words if "known here" not in words else f"unknown key; known here: {', '.join(DEFAULTABLE)}"
    )
