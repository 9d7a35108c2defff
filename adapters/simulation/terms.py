"""`Terms`: what a configuration promises, read off it without asking the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Self

from engine.config import GatewayConfig, ModelConfig, ProviderConfig, RetryBudgetConfig


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """What holds for the requests of one model.

    Attributes:
        total: Seconds that a request may take at most.
        max_attempts: Upstream calls that it may take at most.
        hedged: Whether a second call may run beside the first.
        repeat: What may be repeated though an upstream may have executed it: `never`,
            `non_streaming` or `always`.
    """

    total: float
    max_attempts: int
    hedged: bool
    repeat: str = "always"

    def may_be_billed_twice(self, *, streamed: bool) -> bool:
        """Whether such a request may be repeated though it may have been executed."""
        return (
            self.hedged
            or self.repeat == "always"
            or (self.repeat == "non_streaming" and not streamed)
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds under one configuration.

    Attributes:
        models: By model name; empty when every name is served.
        others: For every other name.
        providers: By name, without what may change while an actor runs: weight and flag.
        budget: How much may be tried again.
    """

    models: Mapping[str, ModelTerms]
    others: ModelTerms
    providers: Mapping[str, ProviderConfig]
    budget: RetryBudgetConfig

    @classmethod
    def of(cls, config: GatewayConfig) -> Self:
        """The terms of a configuration."""
        totals = {provider.name: provider.timeouts.total for provider in config.providers}
        longest = config.total or max(totals.values())
        retries = config.retries
        others = ModelTerms(
            longest,
            retries.max_attempts,
            hedged=False,
            repeat=retries.repeat_maybe_accepted,
        )
        own = {model.name: _own(model, config, totals) for model in config.models}
        return cls(
            MappingProxyType({model.name: _with_fallbacks(model, own) for model in config.models}),
            others,
            MappingProxyType({provider.name: as_made(provider) for provider in config.providers}),
            config.retry_budget,
        )

    def of_model(self, name: str) -> ModelTerms:
        """What holds for requests of that model."""
        return self.models.get(name, self.others)


def _own(model: ModelConfig, config: GatewayConfig, totals: Mapping[str, float]) -> ModelTerms:
    longest = max(totals[target.provider] for target in model.targets)
    retries = model.retries or config.retries
    return ModelTerms(
        model.total or config.total or longest,
        retries.max_attempts,
        hedged=model.hedging is not None,
        repeat=retries.repeat_maybe_accepted,
    )


def _with_fallbacks(model: ModelConfig, own: Mapping[str, ModelTerms]) -> ModelTerms:
    """The model's terms; a fallback brings no time and no attempts of its own."""
    mine = own[model.name]
    hedged = mine.hedged or any(own[name].hedged for name in model.fallbacks.names)
    return replace(mine, hedged=hedged)


def as_made(config: ProviderConfig) -> ProviderConfig:
    """A provider's configuration without weight and flag, which the router sets itself."""
    return config.model_copy(update={"weight": 1.0, "enabled": True})
