"""`inference-gateway diff`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from adapters.cli.failure import EXIT_FAILED
from adapters.cli.loading import load_or_fail
from adapters.cli.terminal import for_terminal, print_table
from engine.configuration_change import ChangeEntry, ChangeKind, configuration_change

_EFFECTS = {
    ChangeKind.PROVIDER_ADDED: "actor started",
    ChangeKind.PROVIDER_REMOVED: "actor drained",
}


@click.command()
@click.argument("old", type=click.Path())
@click.argument("new", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Write JSON, for machines.")
def command(*, old: str, new: str, as_json: bool) -> None:
    """Say what a reload from the file OLD to the file NEW changes, and what needs a restart.

    The providers' keys are not needed for it. Exit codes as those of diff: 0 nothing
    changes, 1 something does, 2 a file cannot be used.
    """
    before, after = (load_or_fail(path, usable=False) for path in (old, new))
    change = configuration_change(before, after)
    if as_json:
        click.echo(json.dumps(change.as_dict(), indent=2))
    else:
        print_changes(change.as_dict()["changes"])
    click.get_current_context().exit(EXIT_FAILED if change else 0)


def print_changes(changes: Sequence[Mapping[str, Any]]) -> None:
    """Print the changes of a configuration, as `ConfigurationChange.as_dict` tells them."""
    if not changes:
        click.echo("nothing changes")
        return
    entries = [ChangeEntry(**{**each, "kind": ChangeKind(each["kind"])}) for each in changes]
    rows = [(*_words(entry), _effect(entry)) for entry in entries]
    print_table(("", "change", "effect"), [tuple(map(for_terminal, row)) for row in rows])


def _words(entry: ChangeEntry) -> tuple[str, str]:
    """The entry's sign and text, without the notes that have a column of their own."""
    text = str(replace(entry, needs_restart=False, replaces_actor=False))
    return text[0], text[2:]


def _effect(entry: ChangeEntry) -> str:
    if entry.needs_restart:
        return "needs a restart"
    if entry.replaces_actor:
        return "actor replaced"
    return _EFFECTS.get(entry.kind, "applied in place")
