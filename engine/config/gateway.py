"""`GatewayConfig`: the whole configuration, and what must hold across its parts."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from engine.config.model import ModelConfig, RetriesConfig
from engine.config.provider import ProviderConfig
from engine.config.server import ServerConfig, TelemetryConfig
from engine.config.values import BalancerName, ConfigurationModel, Seconds, Share


class RetryBudgetConfig(ConfigurationModel):
    """How much may be tried again, for each provider and over all of them.

    A bucket of tokens, of which each further attempt takes one, and a bound on the
    attempts that are repeats at any instant, those that wait to be repeated included.

    Attributes:
        capacity: Tokens that the bucket holds.
        per_success: Tokens gained by a request that succeeds at its first attempt.
        per_second: Tokens gained in a second.
        max_share: Part of the requests in flight that may be repeats.
        min_concurrency: Repeats that are allowed at the same time in any case.
    """

    capacity: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    per_success: Share = 0.2
    per_second: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] = 1.0
    max_share: Share = 0.5
    min_concurrency: Annotated[int, Field(ge=0, le=10_000)] = 50


class IdempotencyConfig(ConfigurationModel):
    """What is kept of requests that carry an `Idempotency-Key`.

    Attributes:
        ttl: Seconds for which an answer is kept.
        entries: Answers that are kept at most; the oldest goes first.
        max_bytes: Size of all kept answers together, bytes; larger ones are not kept.
    """

    ttl: Seconds = 300.0
    entries: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    max_bytes: Annotated[int, Field(ge=1_024, le=10_737_418_240)] = 67_108_864


class GatewayConfig(ConfigurationModel):
    """The whole configuration.

    Without `models`, every enabled provider serves every model name as it came.

    Attributes:
        providers: The upstreams.
        models: Public model names; empty for "every provider serves everything".
        server: The HTTP gateway.
        telemetry: Spans, metrics, logs.
        retries: For the models that say nothing of their own.
        retry_budget: How much may be tried again in all.
        idempotency: What is kept of requests with an idempotency key.
        history: Ended requests whose story is kept for `explain`; 0 keeps none.
        max_ejected: Part of a model's providers that may be ejected for their failure rate.
        balancer: How one of several eligible providers is picked.
        total: Deadline of a request that brings none, seconds; None takes the largest
            `timeouts.total` of the providers that can serve it.
        seed: Seed of all random choices; None draws one from the system.
    """

    providers: Annotated[tuple[ProviderConfig, ...], Field(min_length=1, max_length=100_000)]
    models: tuple[ModelConfig, ...] = ()
    server: ServerConfig = Field(default_factory=ServerConfig)
    telemetry: TelemetryConfig = Field(default_factory=TelemetryConfig)
    retries: RetriesConfig = Field(default_factory=RetriesConfig)
    retry_budget: RetryBudgetConfig = Field(default_factory=RetryBudgetConfig)
    idempotency: IdempotencyConfig = Field(default_factory=IdempotencyConfig)
    history: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000
    max_ejected: Share = 0.5
    balancer: BalancerName = "weighted_random"
    total: Seconds | None = None
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _spread_defaults(cls, data: Any) -> Any:
        """Let the keys of `defaults` stand in for what a provider does not say itself."""
        if not isinstance(data, dict) or "defaults" not in data:
            return data
        rest = {key: value for key, value in data.items() if key != "defaults"}
        defaults, providers = data["defaults"], data.get("providers")
        if not isinstance(defaults, dict):
            msg = "defaults must hold provider settings, such as `timeout: 30`"
            raise ValueError(msg)  # noqa: TRY004 - pydantic turns only ValueError into a finding
        unknown = sorted(set(defaults) - _DEFAULTABLE)
        if unknown:
            msg = f"defaults: {unknown[0]!r} is no provider setting that can have a default"
            raise ValueError(msg)
        if isinstance(providers, (list, tuple)):
            rest["providers"] = [
                _merge(defaults, provider) if isinstance(provider, dict) else provider
                for provider in providers
            ]
        return rest

    @model_validator(mode="after")
    def _refer_to_what_exists(self) -> Self:
        providers = {provider.name: provider for provider in self.providers}
        if len(providers) != len(self.providers):
            names = [provider.name for provider in self.providers]
            twice = next(name for name in names if names.count(name) > 1)
            msg = f"two providers are named {twice!r}: names must differ"
            raise ValueError(msg)
        if not any(provider.enabled for provider in self.providers):
            msg = "no provider is enabled: nothing could be served"
            raise ValueError(msg)
        if not self.models and not any(p.weight > 0 for p in self.providers if p.enabled):
            msg = "all enabled providers have weight 0: give at least one a weight above 0"
            raise ValueError(msg)
        names = [model.name for model in self.models]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            msg = f"two models are named {twice!r}: names must differ"
            raise ValueError(msg)
        for model in self.models:
            _check_targets(model, providers)
        _check_fallbacks(self.models)
        return self


_DEFAULTABLE = frozenset({
    "timeout", "max_retries", "weight", "timeouts", "limits", "ejection", "health_check",
    "api_key_env", "enabled",
})  # fmt: skip


def _merge(defaults: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Put `own` over `defaults`, one level deep in the settings that are objects."""
    merged = {**defaults, **own}
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(own.get(key), dict):
            merged[key] = {**value, **own[key]}
    return merged


def _check_targets(model: ModelConfig, providers: dict[str, ProviderConfig]) -> None:
    for target in model.targets:
        if target.provider not in providers:
            known = ", ".join(sorted(providers)[:10])
            msg = f"model {model.name!r}: no provider is named {target.provider!r} (known: {known})"
            raise ValueError(msg)
    weights = [
        providers[target.provider].weight if target.weight is None else target.weight
        for target in model.targets
        if providers[target.provider].enabled
    ]
    if not any(weight > 0 for weight in weights):
        msg = f"model {model.name!r}: all its enabled targets have weight 0"
        raise ValueError(msg)


def _check_fallbacks(models: tuple[ModelConfig, ...]) -> None:
    """Refuse fallbacks to unknown models, and those that lead back to where they began."""
    onward = {model.name: model.fallbacks.names for model in models}
    for name, others in onward.items():
        for other in others:
            if other not in onward:
                known = ", ".join(sorted(onward)[:10])
                msg = f"model {name!r}: its fallback {other!r} is no model here (known: {known})"
                raise ValueError(msg)
    for name in onward:
        if (circle := _way_back(name, onward)) is not None:
            msg = f"fallbacks lead in a circle: {' -> '.join(circle)}; remove one of these steps"
            raise ValueError(msg)


def _way_back(start: str, onward: dict[str, tuple[str, ...]]) -> list[str] | None:
    """A way over fallbacks from a model back to itself, or None."""
    came_from: dict[str, str] = {}
    waiting = [start]
    while waiting:
        name = waiting.pop()
        for other in onward[name]:
            if other == start:
                way = [start, name]
                while way[-1] != start:
                    way.append(came_from[way[-1]])
                return way[::-1]
            if other not in came_from:
                came_from[other] = name
                waiting.append(other)
    return None
