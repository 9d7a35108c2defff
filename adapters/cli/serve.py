"""`inference-gateway serve`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import click

from adapters.cli.hang_up import hang_ups_held
from adapters.cli.hardening import keep_memory_private
from adapters.cli.loading import load_or_fail
from adapters.cli.serving import ConfigurationSource, run_gateway, with_address


@click.command()
@click.argument("config", type=click.Path(), required=False)
@click.option("--host", help="Address to listen on, instead of the file's.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; 0 lets the system choose.")
def command(config: str | None, host: str | None, port: int | None) -> None:
    """Serve the gateway as the file CONFIG says; without it, two mock providers.

    SIGTERM and Ctrl-C end it after the requests in flight; a second one at once. SIGHUP
    applies the file again; so does a change of it, with `server.watch`.

    Exit code 0 after a clean drain, 1 if requests were cut at its end, 2 for a mistake, 130
    or 143 after a second signal, 70 if it had to be ended by force.
    """
    keep_memory_private()
    adjust = partial(with_address, host=host, port=port)
    # Without a file there is nothing to apply, and SIGHUP ends it as it does any program.
    with nullcontext() if config is None else hang_ups_held():
        source = None if config is None else ConfigurationSource.before_reading(config, adjust)
        code = run_gateway(adjust(load_or_fail(config)), source=source)
    click.get_current_context().exit(code)
