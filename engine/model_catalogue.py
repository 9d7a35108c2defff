"""`ModelCatalogue`: which models can be asked for, and who serves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import anyio

from engine.config import GatewayConfig
from engine.provider import BaseProvider

KEPT_FOR = 60.0
ASKED_FOR = 5.0
ASKED_AT_ONCE = 16
LARGEST = 10_000
"""Models that are kept in all; what comes after is left out."""


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model.

    Attributes:
        name: What callers ask for.
        providers: Names of the providers that serve it.
    """

    name: str
    providers: tuple[str, ...]


class ModelCatalogue:
    """Lists the models of a configuration, or asks the providers for theirs."""

    def __init__(self, config: GatewayConfig, providers: Mapping[str, BaseProvider]) -> None:
        self._providers = providers
        self._configured = [
            ModelEntry(model.name, tuple(dict.fromkeys(t.provider for t in model.targets)))
            for model in config.models
        ]
        self._found: list[ModelEntry] = []
        self._fresh_until = float("-inf")

    async def list_models(self) -> list[ModelEntry]:
        """All models, those of the first provider first."""
        if self._configured:
            return self._configured
        if anyio.current_time() >= self._fresh_until:
            found = await self._ask()
            if found or not self._found:
                self._found = found
            self._fresh_until = anyio.current_time() + KEPT_FOR
        return self._found

    async def _ask(self) -> list[ModelEntry]:
        answers: dict[str, list[str]] = {}
        limiter = anyio.CapacityLimiter(ASKED_AT_ONCE)

        async def ask(name: str, provider: BaseProvider) -> None:
            async with limiter:
                with anyio.move_on_after(ASKED_FOR):
                    try:
                        answers[name] = await provider.list_models()
                    except Exception:  # noqa: BLE001 - the border: an adapter may raise anything
                        answers[name] = []

        async with anyio.create_task_group() as group:
            for name, provider in self._providers.items():
                group.start_soon(ask, name, provider)
        served: dict[str, list[str]] = {}
        for name in self._providers:
            for model in answers.get(name, ()):
                if model in served or len(served) < LARGEST:
                    served.setdefault(model, []).append(name)
        return [ModelEntry(model, tuple(names)) for model, names in served.items()]
