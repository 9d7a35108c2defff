"""References to environment variables in a configuration file: `${NAME}`.

They are replaced in values that are parsed already, so that no value of a variable can
change the structure of the file, in a single pass, so that none can refer to another, and
only where an address or an adapter's own setting stands. `$${` writes a plain `${`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adapters.configuration.echo import is_variable_name, shown_variable
from adapters.configuration.findings import Findings, KeyPath

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)\}?")
_ADDRESSES: frozenset[KeyPath] = frozenset({("server", "host"), ("telemetry", "endpoint")})


class References:
    """Replaces the references of one document.

    Args:
        environment: The variables.
        findings: Takes those that are not defined or stand in the wrong place.

    Attributes:
        values: What was put in, so that messages can be kept free of it.
    """

    def __init__(self, environment: Mapping[str, str], findings: Findings) -> None:
        self.values: set[str] = set()
        self._environment = environment
        self._findings = findings

    def replace(self, value: Any, path: KeyPath = ()) -> Any:
        """A copy of a JSON-like value with the references in it replaced."""
        if isinstance(value, dict):
            return {key: self.replace(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.replace(item, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, str) and "${" in value:
            return self._text(value, path)
        return value

    def _text(self, text: str, path: KeyPath) -> str:
        if not _may_refer(path):
            message = (
                "environment references (`${NAME}`) work only in base_url, host, endpoint "
                "and options"
            )
            self._findings.add(path, message)
            return text
        return _REFERENCE.sub(lambda match: self._one(match, path), text)

    def _one(self, match: re.Match[str], path: KeyPath) -> str:
        name = match.group(1)
        if name is None:
            return "${"
        if not match.group().endswith("}") or not is_variable_name(name):
            message = "`${` must be followed by the name of an environment variable and `}`"
            self._findings.add(path, message)
            return ""
        value = self._environment.get(name)
        if value is None:
            shown = shown_variable(name)
            self._findings.add(path, f"the environment variable {shown} is not set")
            return ""
        self.values.add(value)
        return value


def _may_refer(path: KeyPath) -> bool:
    if path in _ADDRESSES:
        return True
    in_provider = len(path) >= 3 and path[0] == "providers" and isinstance(path[1], int)  # noqa: PLR2004
    return in_provider and (path[2:] == ("base_url",) or path[2] == "options")
