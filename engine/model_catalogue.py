"""`ModelCatalogue`: which models can be asked for, and who serves them."""

from __future__ import annotations

from collections import Counter
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
    """Lists the models of a configuration, or asks the providers for theirs.

    Args:
        config: The configuration.
        providers: The providers that take part in it, by name.
    """

    def __init__(self, config: GatewayConfig, providers: Mapping[str, BaseProvider]) -> None:
        self._found: list[ModelEntry] = []
        # How often each provider is being asked at this moment, by identity.
        self._asked: Counter[int] = Counter()
        self.apply(config, providers)

    def apply(self, config: GatewayConfig, providers: Mapping[str, BaseProvider]) -> None:
        """Go on with another configuration; what was found out before is asked anew."""
        self._providers = providers
        self._configured = [
            ModelEntry(model.name, tuple(dict.fromkeys(t.provider for t in model.targets)))
            for model in config.models
        ]
        self._found = [entry for entry in map(self._still_served, self._found) if entry.providers]
        self._fresh_until = float("-inf")

    def asks(self, provider: BaseProvider) -> bool:
        """Whether the provider is being asked now, and so must not be closed."""
        return self._asked[id(provider)] > 0

    async def list_models(self) -> list[ModelEntry]:
        """All models, those of the first provider first."""
        if self._configured:
            return self._configured
        if anyio.current_time() >= self._fresh_until:
            providers = self._providers
            found = await self._ask(providers)
            if providers is not self._providers:
                # Another configuration came meanwhile: this answer is for who asked only.
                return found
            if found or not self._found:
                self._found = found
            self._fresh_until = anyio.current_time() + KEPT_FOR
        return self._found

    def _still_served(self, entry: ModelEntry) -> ModelEntry:
        return ModelEntry(entry.name, tuple(p for p in entry.providers if p in self._providers))

    async def _ask(self, providers: Mapping[str, BaseProvider]) -> list[ModelEntry]:
        answers: dict[str, list[str]] = {}
        limiter = anyio.CapacityLimiter(ASKED_AT_ONCE)

        async def ask(name: str, provider: BaseProvider) -> None:
            async with limiter:
                if self._providers.get(name) is not provider:
                    # It left the configuration while it waited for its turn.
                    return
                self._asked[id(provider)] += 1
                try:
                    with anyio.move_on_after(ASKED_FOR):
                        answers[name] = await provider.list_models()
                except Exception:  # noqa: BLE001 - the border: an adapter may raise anything
                    answers[name] = []
                finally:
                    self._asked[id(provider)] -= 1
                    if not self._asked[id(provider)]:
                        del self._asked[id(provider)]

        async with anyio.create_task_group() as group:
            for name, provider in providers.items():
                group.start_soon(ask, name, provider)
        served: dict[str, list[str]] = {}
        for name in providers:
            for model in answers.get(name, ()):
                if model in served or len(served) < LARGEST:
                    served.setdefault(model, []).append(name)
        return [ModelEntry(model, tuple(names)) for model, names in served.items()]
