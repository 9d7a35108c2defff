"""Configuration files: YAML, TOML and JSON to a checked `GatewayConfig`."""

from adapters.configuration.findings import ConfigurationFileError, Finding
from adapters.configuration.loader import load_built_in, load_config
from adapters.configuration.schema import config_schema

__all__ = [
    "ConfigurationFileError",
    "Finding",
    "config_schema",
    "load_built_in",
    "load_config",
]
