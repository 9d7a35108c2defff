"""`inference-gateway demo`."""

from __future__ import annotations

import os
import signal

import click
import httpx

from adapters.cli.failure import EXIT_FAILED, Failure
from adapters.cli.serving import run_gateway, with_address
from adapters.cli.terminal import for_terminal
from adapters.configuration import ConfigurationFileError, load_built_in

QUESTION = "What is the capital of France?"
MOCK = "flaky"
ANSWER_WITHIN = 120.0
"""Seconds that a slow machine may take for the answer."""

_QUESTIONS = 5


@click.command()
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on.")
@click.option("--once", is_flag=True, help="End after the answer, without serving on.")
def command(*, port: int | None, once: bool) -> None:
    """Serve a small real model on this machine, and ask it a question over HTTP.

    Two llama.cpp providers serve the model of the extra `local`; a mock beside them fails
    every second time, which no caller notices.
    """
    try:
        config = with_address(load_built_in("demo"), None, port)
    except ConfigurationFileError as error:
        raise Failure(error.findings[0].message) from None
    demo = Demo(once=once)
    click.echo("loading the model …", err=True)
    code = run_gateway(config, demo.show)
    click.get_current_context().exit(EXIT_FAILED if demo.failed else code)


class Demo:
    """Asks the started gateway, and ends it if told so.

    Args:
        once: Whether the gateway ends after the answer.

    Attributes:
        failed: Whether there was no answer.
    """

    def __init__(self, *, once: bool) -> None:
        self.failed = False
        self._once = once

    def show(self, url: str) -> None:
        """Ask until the real model answered: the mock may have been picked."""
        try:
            for _ in range(_QUESTIONS):
                if self._ask(url) != MOCK:
                    break
        except (httpx.HTTPError, ValueError, KeyError) as error:
            self.failed = True
            click.echo(f"the demo's own question failed: {type(error).__name__}", err=True)
        if self._once:
            # As the operator would: everything in flight is finished first.
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            click.echo("serving on; Ctrl-C ends it", err=True)

    def _ask(self, url: str) -> str:
        question = {"role": "user", "content": QUESTION}
        body = {"model": "demo", "messages": [question], "temperature": 0}
        with httpx.Client(trust_env=False, timeout=ANSWER_WITHIN) as client:
            response = client.post(f"{url}/v1/chat/completions", json=body)
        response.raise_for_status()
        text = response.json()["choices"][0]["message"]["content"]
        provider: str = response.headers.get("x-gateway-provider", "")
        attempts = response.headers.get("x-gateway-attempts", "1")
        click.echo(f"Q: {QUESTION}")
        click.echo(f"A: {for_terminal(text).strip()}")
        click.echo(f"   from provider {provider}, attempts: {attempts}")
        return provider
