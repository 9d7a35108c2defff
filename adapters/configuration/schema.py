"""The JSON Schema of the configuration file."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel

import engine.config
from adapters.configuration.defaults import DEFAULTABLE
from engine.config import ConfigurationModel, GatewayConfig
from engine.factory import ProviderFactory

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_ATTRIBUTE = re.compile(r"^(\w+): (.*)$")


def config_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a configuration file, with a description of each field.

    It knows the file's fields and their bounds. What a provider's type needs (`options`,
    a URL, a key) is said by `inference-gateway providers` and checked by `check`.
    """
    schema = GatewayConfig.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    _describe(schema, GatewayConfig)
    for name, definition in definitions.items():
        model = getattr(engine.config, name, None)
        if isinstance(model, type) and issubclass(model, ConfigurationModel):
            _describe(definition, model)
    provider = definitions["ProviderConfig"]
    provider["properties"]["type"]["examples"] = ProviderFactory.known_types()
    definitions["DefaultsConfig"] = {
        "title": "DefaultsConfig",
        "type": "object",
        "description": "Provider settings that stand in for what a provider does not say itself.",
        "additionalProperties": False,
        "properties": {name: provider["properties"][name] for name in DEFAULTABLE},
    }
    properties = {
        "defaults": {"$ref": "#/$defs/DefaultsConfig"},
        **schema.pop("properties"),
    }
    return {"$schema": DIALECT, **schema, "properties": properties}


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Put the docstring's first line and its attribute lines where schema readers look."""
    documentation = inspect.cleandoc(model.__doc__ or "")
    schema["description"] = documentation.split("\n\n")[0].replace("\n", " ")
    for name, text in attribute_lines(documentation).items():
        if name in schema["properties"]:
            schema["properties"][name]["description"] = text


def attribute_lines(documentation: str) -> dict[str, str]:
    """The `Attributes:` section of a Google docstring: name to description."""
    found: dict[str, str] = {}
    name = ""
    _, _, section = documentation.partition("Attributes:\n")
    for line in section.splitlines():
        if not line.strip() or not line.startswith(" "):
            break
        if line.startswith("     ") and name:
            found[name] += f" {line.strip()}"
        elif (match := _ATTRIBUTE.match(line.strip())) is not None:
            name = match[1]
            found[name] = match[2]
    return found
