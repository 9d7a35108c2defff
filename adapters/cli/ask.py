"""`inference-gateway ask`."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Protocol

import anyio
import click

from adapters.cli.failure import Failure, Unsuccessful
from adapters.cli.loading import load_or_fail
from adapters.cli.terminal import for_terminal
from engine.attempt import Attempt
from engine.config import GatewayConfig, ProviderConfig
from engine.errors import ConfigurationError, ConnectError, GatewayError
from engine.factory import ProviderFactory
from engine.operations import ChatRequest, Usage
from engine.provider import BaseProvider
from engine.router import Router

DEFAULT_URL = "http://127.0.0.1:8080"
DEADLINE = 300.0
"""Seconds that an answer through a running gateway may take: it has limits of its own."""


@dataclass(slots=True)
class Answer:
    """What is told about an answer beneath it.

    Attributes:
        model: The model that was asked.
        provider: Who answered; empty when the gateway did not say.
        attempts: Upstream calls; 0 when not known.
        usage: Tokens, if anybody counted them.
    """

    model: str
    provider: str = ""
    attempts: int = 0
    usage: Usage | None = None

    def __str__(self) -> str:
        words = [self.model]
        if self.provider:
            words.append(f"from {self.provider}")
        if self.attempts > 1:
            words.append(f"{self.attempts} attempts")
        if self.usage is not None and self.usage.total_tokens:
            words.append(f"{self.usage.input_tokens} + {self.usage.output_tokens} tokens")
        return ", ".join(words)


Write = Callable[[str], None]


class Askable(Protocol):
    """Something that answers a chat: a running gateway or a router of our own."""

    async def first_model(self) -> str | None:
        """The first model that can be asked for, or None if it does not say."""
        ...

    async def answer(self, request: ChatRequest, answer: Answer, write: Write) -> None:
        """Write the answer's text as it comes; `answer` is filled in on the way."""
        ...


@click.command()
@click.argument("question")
@click.option(
    "--url", default=DEFAULT_URL, show_default=True, help="A running gateway, without /v1."
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(),
    help="Ask in-process with this configuration file, without any running gateway.",
)
@click.option("--model", help="The model to ask; without it, the first one that is served.")
@click.option("--api-key-env", help="Environment variable with the gateway's API key.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@click.option("--stream/--no-stream", default=True, help="Write the answer while it comes.")
def command(
    *,
    question: str,
    url: str,
    config_path: str | None,
    model: str | None,
    api_key_env: str | None,
    max_tokens: int | None,
    stream: bool,
) -> None:
    """Ask one QUESTION and write the answer to stdout; who answered goes to stderr."""
    body = {"messages": [{"role": "user", "content": question}], "stream": stream}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    config = None if config_path is None else load_or_fail(config_path)
    try:
        anyio.run(_ask, config, url, api_key_env, model, body)
    except ConfigurationError as error:
        raise Failure(error.message) from None
    except TimeoutError:
        raise Unsuccessful(f"no answer within {DEADLINE:g} s") from None
    except ConnectError as error:
        advice = "start one with `inference-gateway serve`, or use --config"
        words = error.message if config is not None else f"no gateway answers at {url}: {advice}"
        raise Unsuccessful(words) from None
    except GatewayError as error:
        raise Unsuccessful(error.message) from None


async def _ask(
    config: GatewayConfig | None,
    url: str,
    api_key_env: str | None,
    model: str | None,
    body: dict[str, object],
) -> None:
    async with AsyncExitStack() as stack:
        askable: Askable
        if config is not None:
            askable = RouterAsked(await stack.enter_async_context(Router.from_config(config)))
        else:
            gateway = ProviderFactory.create_provider(gateway_at(url, api_key_env))
            askable = GatewayAsked(await stack.enter_async_context(gateway))
        model = model or await askable.first_model() or "default"
        answer = Answer(model)
        await askable.answer(ChatRequest.from_body({"model": model, **body}), answer, _write)
    click.echo()
    click.echo(click.style(f"({answer})", dim=True), err=True)


def _write(text: str) -> None:
    click.echo(for_terminal(text), nl=False)
    sys.stdout.flush()


def gateway_at(url: str, api_key_env: str | None = None) -> ProviderConfig:
    """A running gateway as a provider: it speaks the same API as any other."""
    base_url = f"{url.rstrip('/').removesuffix('/v1')}/v1"
    return ProviderConfig(
        name="gateway", type="openai_compatible", base_url=base_url, api_key_env=api_key_env
    )


class RouterAsked:
    """A router in this process."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def first_model(self) -> str | None:
        """See `Askable`."""
        models = await self._router.list_models()
        return models[0].name if models else None

    async def answer(self, request: ChatRequest, answer: Answer, write: Write) -> None:
        """See `Askable`."""
        if not request.streamed:
            response = await self._router.complete(request)
            answer.provider, answer.attempts = response.provider, response.attempts
            answer.usage = response.usage
            write(response.text)
            return
        async with self._router.stream(request) as stream:
            answer.provider, answer.attempts = stream.provider, stream.attempts
            async for chunk in stream:
                write(chunk.text)
            answer.usage = stream.usage


class GatewayAsked:
    """A running gateway, spoken to as to any other OpenAI-style server."""

    def __init__(self, provider: BaseProvider) -> None:
        self._provider = provider

    async def first_model(self) -> str | None:
        """See `Askable`."""
        with anyio.fail_after(self._provider.config.timeout):
            models = await self._provider.list_models()
        return models[0] if models else None

    async def answer(self, request: ChatRequest, answer: Answer, write: Write) -> None:
        """See `Askable`."""
        attempt = Attempt(
            request,
            request.model,
            f"ask-{secrets.token_hex(6)}",
            timeouts=self._provider.config.timeouts,
        )
        with anyio.fail_after(DEADLINE):
            if not request.streamed:
                response = await self._provider.send(attempt)
                answer.usage = response.usage
                write(response.text)
                return
            async with aclosing(self._provider.stream(attempt)) as source:
                async for chunk in source:
                    answer.usage = chunk.usage or answer.usage
                    write(chunk.text)
