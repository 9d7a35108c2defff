"""`inference-gateway reload`."""

from __future__ import annotations

import click

from adapters.cli.admin_client import as_json, ask_admin, key_option, understood, url_option
from adapters.cli.diff import print_changes


@click.command()
@url_option
@key_option
@click.option("--json", "wants_json", is_flag=True, help="Write JSON, for machines.")
def command(*, url: str, admin_key_env: str | None, wants_json: bool) -> None:
    """Let a running gateway apply its configuration file again, and say what has changed.

    Exit code 1 if the file was refused, in which case nothing has changed, or if no gateway
    answers.
    """
    report = ask_admin("POST", "/admin/reload", url=url, admin_key_env=admin_key_env)
    if wants_json:
        click.echo(as_json(report))
        return
    with understood():
        print_changes(report["changes"])
        for field in report["waiting_for_restart"]:
            click.echo(f"waiting for a restart: {field}", err=True)
