"""`inference-gateway schema`."""

from __future__ import annotations

import json

import click

from adapters.configuration import config_schema


@click.command()
def command() -> None:
    """Print the JSON Schema of the configuration file, for editors and other tools."""
    click.echo(json.dumps(config_schema(), indent=2))
