"""Reading a configuration file for a command."""

from __future__ import annotations

from adapters.cli.failure import Failure
from adapters.configuration import ConfigurationFileError, load_built_in, load_config
from engine.config import GatewayConfig


def load_or_fail(path: str | None, *, usable: bool = True) -> GatewayConfig:
    """The configuration in a file, or the built-in one.

    Args:
        path: The file; None for the built-in one.
        usable: Whether its providers must be usable from here; who asks none of them needs
            no keys.

    Raises:
        Failure: With a line for each finding.
    """
    try:
        return load_built_in() if path is None else load_config(path, usable=usable)
    except ConfigurationFileError as error:
        raise Failure([str(finding) for finding in error.findings], label="") from None
