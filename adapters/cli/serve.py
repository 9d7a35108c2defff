"""`inference-gateway serve`."""

from __future__ import annotations

import click

from adapters.cli.loading import load_or_fail
from adapters.cli.serving import run_gateway, with_address


@click.command()
@click.argument("config", type=click.Path(), required=False)
@click.option("--host", help="Address to listen on, instead of the file's.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; 0 lets the system choose.")
def command(config: str | None, host: str | None, port: int | None) -> None:
    """Serve the gateway as the file CONFIG says; without it, two mock providers.

    SIGTERM and Ctrl-C end it after the requests in flight; a second one at once.
    """
    loaded = with_address(load_or_fail(config), host, port)
    click.get_current_context().exit(run_gateway(loaded))
