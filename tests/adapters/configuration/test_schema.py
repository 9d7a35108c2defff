"""The published JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from adapters.configuration import config_schema
from adapters.configuration.defaults import DEFAULTABLE
from engine.config import GatewayConfig, ProviderConfig


def every_object(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from every_object(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from every_object(value)


def test_every_reference_resolves() -> None:
    """Each `$ref` points at a definition of the same document."""
    schema = config_schema()
    references = {part["$ref"] for part in every_object(schema) if "$ref" in part}
    assert references
    assert references <= {f"#/$defs/{name}" for name in schema["$defs"]}


def test_every_field_is_described() -> None:
    """Each setting has its words from the docstrings, `defaults` included."""
    schema = config_schema()
    for model in (schema, *schema["$defs"].values()):
        for name, field in model.get("properties", {}).items():
            assert field.get("description") or name == "defaults", (model.get("title"), name)


def test_unknown_keys_are_refused_everywhere() -> None:
    """An editor marks a misspelled key, as the loader does."""
    schema = config_schema()
    for model in (schema, *schema["$defs"].values()):
        assert model["additionalProperties"] is False


def test_the_dialect_is_named() -> None:
    """The schema says which version of JSON Schema it is written in."""
    assert config_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", list(ProviderConfig.model_fields))
def test_defaults_are_those_that_the_models_take(name: str) -> None:
    """What the schema and the loader call a default is what the models spread."""
    provider = {"name": "a", "type": "vllm", "base_url": "http://h/v1"}
    value = ProviderConfig(name="a", type="vllm").model_dump()[name]
    data = {"defaults": {name: value}, "providers": [provider]}
    if name in DEFAULTABLE:
        GatewayConfig.model_validate(data)
    else:
        with pytest.raises(ValidationError):
            GatewayConfig.model_validate(data)
