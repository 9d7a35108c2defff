"""A provider that answers at once: what is left to measure is the engine."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from benchmarks.wire import ANSWER, CHUNKS, request_body
from engine.attempt import Attempt
from engine.config import GatewayConfig, ProviderConfig
from engine.operations import ChatRequest, Chunk, Operation, Response
from engine.provider import BaseProvider
from engine.registry import ProviderRegistry

_BODY: Final[dict[str, Any]] = json.loads(ANSWER)


class InstantProvider(BaseProvider):
    """Answers every chat with the same body, without waiting for anything."""

    operations = frozenset({Operation.CHAT})

    async def send(self, attempt: Attempt) -> Response:  # noqa: ARG002 - the port's signature
        """Answer at once."""
        return Response(_BODY, ANSWER)

    def stream(self, attempt: Attempt) -> InstantChunks:  # noqa: ARG002 - the port's signature
        """Stream the same chunks every time."""
        return InstantChunks()


class InstantChunks:
    """A stream whose chunks are all there already."""

    def __init__(self) -> None:
        self._next = 0

    def __aiter__(self) -> AsyncIterator[Chunk]:
        return self

    async def __anext__(self) -> Chunk:
        """The next chunk."""
        if self._next == len(CHUNKS):
            raise StopAsyncIteration
        self._next += 1
        return Chunk(CHUNKS[self._next - 1])

    async def aclose(self) -> None:
        """There is nothing to let go of."""


def instant_config(count: int) -> GatewayConfig:
    """So many instant providers, with weights of 1 to 4."""
    providers = tuple(
        ProviderConfig(name=f"instant-{number}", type="instant", weight=1.0 + number % 4)
        for number in range(count)
    )
    return GatewayConfig(providers=providers, seed=1)


def instant_registry(config: GatewayConfig) -> ProviderRegistry:
    """The providers of `instant_config`, by name."""
    registry = ProviderRegistry()
    for provider in config.providers:
        registry.register_provider(provider.name, InstantProvider(provider))
    return registry


def chat_request() -> ChatRequest:
    """The chat request that is asked again and again."""
    raw = request_body()
    return ChatRequest.from_body(json.loads(raw), raw)
