"""`inference-gateway`: the command line.

Each command stands in a file of its own, which is imported only when it is asked for, so
that `--help` does not wait for a web server to be imported.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

import click

from adapters.cli.failure import EXIT_FAILED, EXIT_INTERRUPTED

DISTRIBUTION = "sre-inference-gateway"

COMMANDS = {
    "serve": "Serve the gateway, with a configuration file or the built-in default.",
    "demo": "Serve a small real model on this machine, and ask it a question.",
    "ask": "Ask one question, through a running gateway or in-process.",
    "check": "Say everything that is wrong with a configuration file.",
    "simulate": "Run the engine on a virtual clock against simulated providers.",
    "diff": "Say what a reload from one configuration file to another changes.",
    "reload": "Let a running gateway apply its configuration file again.",
    "explain": "Tell the story of one request that a running gateway served.",
    "providers": "List the provider types, what they need and their options.",
    "schema": "Print the JSON Schema of the configuration file.",
}
"""Name and one line of help. A command's module has its name and an object `command`."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"adapters.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version(DISTRIBUTION), message="%(prog)s %(version)s")
def cli() -> None:
    """Spread language-model requests over many providers, and keep serving when some fail."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; the console script `inference-gateway`.

    Exit codes: 0 done; 1 tried and failed; 2 a mistake in what was asked for; 130 Ctrl-C.

    Args:
        arguments: What follows the program's name; the process's own when not given.
    """
    try:
        code = cli.main(
            args=None if arguments is None else list(arguments),
            prog_name="inference-gateway",
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo(err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Who read our output has left, as `| head` does; nobody is there to be told, and
        # Python's own flush at the end must not fail on it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)
