"""`inference-gateway providers`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from adapters.cli.terminal import print_table
from adapters.providers.http import HttpAdapter
from engine.config import ProviderConfig
from engine.errors import ConfigurationError
from engine.factory import ProviderFactory
from engine.provider import BaseProvider


@dataclass(frozen=True, slots=True)
class ProviderType:
    """What is known of one provider type.

    Attributes:
        name: The word for `type:`.
        adapter: Name of its class.
        needs: What must be configured beside `name` and `type`.
        summary: First line of the class's text.
        options: Its options with their defaults.
    """

    name: str
    adapter: str
    needs: str
    summary: str
    options: tuple[str, ...]


@click.command()
def command() -> None:
    """List the provider types of this installation, what each needs, and its options."""
    types = [describe(name) for name in ProviderFactory.known_types()]
    rows = [(known.name, known.adapter, known.needs, _options(known)) for known in types]
    print_table(("type", "class", "needs", "options"), rows)


def describe(name: str) -> ProviderType:
    """Find out about one provider type. What it needs is what it asks for when made bare."""
    try:
        adapter = ProviderFactory.adapter_class(name)
    except ConfigurationError as error:
        return ProviderType(name, "-", error.message, "", ())
    summary = (inspect.getdoc(adapter) or "").split("\n", 1)[0]
    return ProviderType(name, adapter.__name__, _needs(name, adapter), summary, _fields(adapter))


def _needs(name: str, adapter: type[BaseProvider]) -> str:
    """What a bare configuration lacks, and the key, even if this environment has one."""
    needs = _required(adapter.Options)
    if issubclass(adapter, HttpAdapter) and adapter.key_required:
        needs.append(f"a key in {adapter.default_key_env or 'api_key_env'}")
    try:
        ProviderFactory.create_provider(ProviderConfig(name=name, type=name))
    except ConfigurationError as error:
        if "base_url" in error.message:
            needs.insert(0, "base_url")
        return ", ".join(needs) or error.message
    return ", ".join(needs) or "nothing"


def _required(model: type[BaseModel]) -> list[str]:
    return [f"options.{name}" for name, field in model.model_fields.items() if field.is_required()]


def _fields(adapter: type[BaseProvider]) -> tuple[str, ...]:
    return tuple(
        name if field.default is PydanticUndefined else f"{name}={field.default!r}"
        for name, field in adapter.Options.model_fields.items()
    )


def _options(known: ProviderType) -> str:
    return "\n".join(known.options) or "-"
