"""Names that must differ, and names that must exist, checked with their lines.

The models check the same once every field is right; this says it for a file in which
other things are wrong too, and knows where.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from adapters.configuration.echo import (
    is_variable_name,
    may_be_shown,
    shown,
    shown_variable,
)
from adapters.configuration.findings import (
    Findings,
    KeyPath,
    Position,
    nearest_position,
)
from adapters.configuration.schema_findings import nearest_hint

NOT_A_VARIABLE = (
    "must be the name of an environment variable (letters, digits and _), never the key itself"
)


def check_names(
    data: Mapping[str, Any], positions: Mapping[KeyPath, Position], findings: Findings
) -> None:
    """Check the names of a document: unique where they must be, known where they are used."""
    providers = _unique_names(data, "providers", positions, findings)
    _unique_names(data, "models", positions, findings)
    for index, model in enumerate(_items(data, "models")):
        for number, target in enumerate(_items(model, "targets")):
            name = target.get("provider")
            if isinstance(name, str) and name not in providers:
                hint = nearest_hint(name, filter(may_be_shown, providers))
                path = ("models", index, "targets", number, "provider")
                findings.add(path, f"no provider has this name{hint}")
    _check_variable_names(data, findings)


def _check_variable_names(data: Mapping[str, Any], findings: Findings) -> None:
    server, defaults = data.get("server"), data.get("defaults")
    named: list[tuple[KeyPath, Any]] = []
    if isinstance(server, dict):
        named += [(("server", key), server.get(key)) for key in ("api_keys_env", "admin_key_env")]
    if isinstance(defaults, dict):
        named.append((("defaults", "api_key_env"), defaults.get("api_key_env")))
    for index, provider in enumerate(_items(data, "providers")):
        named.append((("providers", index, "api_key_env"), provider.get("api_key_env")))
    for path, name in named:
        if not isinstance(name, str):
            continue
        if not is_variable_name(name):
            findings.add(path, NOT_A_VARIABLE)
        elif path[0] == "server" and not os.environ.get(name):
            message = f"the environment variable {shown_variable(name)} is not set"
            findings.add(path, f"{message}: put the accepted keys into it")


def _unique_names(
    data: Mapping[str, Any],
    kind: str,
    positions: Mapping[KeyPath, Position],
    findings: Findings,
) -> set[str]:
    seen: dict[str, int] = {}
    for index, item in enumerate(_items(data, kind)):
        name = item.get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            first = nearest_position(positions, (kind, seen[name], "name"))
            where = f" (the first is in line {first.line})" if first else ""
            message = f"two {kind} are named {shown(name)}{where}: names must differ"
            findings.add((kind, index, "name"), message)
        seen.setdefault(name, index)
    return set(seen)


def _items(data: Any, key: str) -> list[dict[str, Any]]:
    """The mappings in a list, with empty ones for anything else, so that indices hold."""
    found = data.get(key) if isinstance(data, dict) else None
    if not isinstance(found, list):
        return []
    return [item if isinstance(item, dict) else {} for item in found]
