"""The configuration as pydantic models: strict, frozen, every bound finite.

The same models serve a file and Python code. Unknown keys are errors; which file and
line they stand in is added by `adapters.configuration`.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65_535)]


def _plain_name(value: str) -> str:
    """Names end up in headers, metrics and URLs, so they hold printable ASCII only."""
    if not value.isascii() or not value.isprintable() or value != value.strip():
        msg = "must be printable ASCII without spaces at its ends"
        raise ValueError(msg)
    return value


Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_plain_name)]
BalancerName = Literal["weighted_random", "smooth_weighted", "least_loaded"]
ModelName = Annotated[str, Field(min_length=1, max_length=256)]


class ConfigurationModel(BaseModel):
    """What all parts of the configuration share: frozen, and no unknown keys."""

    # Building the validators takes a third of what `import engine` costs, so it waits for
    # the first configuration that is read.
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        allow_inf_nan=False,
        defer_build=True,
    )


class TimeoutsConfig(ConfigurationModel):
    """How long each phase of one attempt, and the whole request, may take. Seconds.

    Attributes:
        connect: Until the connection stands, TLS included.
        headers: Until the answer's headers, not streamed.
        first_event: Until the first useful event of a stream.
        idle: Between two events of a stream.
        total: The whole request, over all its attempts.
    """

    connect: Seconds = 5.0
    headers: Seconds = 60.0
    first_event: Seconds = 15.0
    idle: Seconds = 30.0
    total: Seconds = 120.0


class LimitsConfig(ConfigurationModel):
    """What one provider may be given at a time.

    Attributes:
        requests_per_minute: Attempts started in a minute; None for no such limit.
        tokens_per_minute: Tokens in a minute; None for no such limit.
        concurrency: Attempts at the same time.
        queue: Requests that may wait in the mailbox.
    """

    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=10_000_000_000)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 64
    queue: Annotated[int, Field(ge=0, le=100_000)] = 128


class ProviderConfig(ConfigurationModel):
    """One upstream.

    Attributes:
        name: Unique name; appears in headers, spans and `/status`.
        type: Adapter type, such as `openai`, `vllm`, `mock`.
        base_url: Where the API lives, with its `/v1`; some types have a default.
        api_key_env: Name of the environment variable that holds the key.
        timeout: How long one attempt may take, seconds; for a stream, up to its first event.
        max_retries: Repeats at this provider, beside the first attempt.
        weight: Share of requests, relative to the other providers. Zero: never picked.
        enabled: Whether it takes part at all.
        timeouts: Limits of the single phases.
        limits: Rate, concurrency and queue.
        options: Settings of the adapter type; `inference-gateway providers` lists them.
    """

    name: Name
    type: Name
    base_url: str | None = None
    api_key_env: Name | None = None
    timeout: Seconds = 30.0
    max_retries: Annotated[int, Field(ge=0, le=20)] = 3
    weight: Weight = 1.0
    enabled: bool = True
    timeouts: TimeoutsConfig = Field(default_factory=TimeoutsConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    options: dict[str, Any] = Field(default_factory=dict)


class TargetConfig(ConfigurationModel):
    """One place that can serve a model.

    Attributes:
        provider: Name of the provider.
        model: What the model is called there; None keeps the name that was asked for.
        weight: Share within its tier; None takes the provider's weight.
        tier: Lower numbers first; the next tier is used only when this one cannot serve.
    """

    provider: Name
    model: ModelName | None = None
    weight: Weight | None = None
    tier: Annotated[int, Field(ge=0, le=100)] = 0


class RetriesConfig(ConfigurationModel):
    """How often, and what, may be tried again.

    Attributes:
        max_attempts: Upstream calls for one request in all, over every provider and tier.
        repeat_maybe_accepted: Whether a request that a provider may already have executed
            (and billed) is repeated: `never`, only when it is not streamed, or `always`.
    """

    max_attempts: Annotated[int, Field(ge=1, le=50)] = 4
    repeat_maybe_accepted: Literal["never", "non_streaming", "always"] = "non_streaming"


class ModelConfig(ConfigurationModel):
    """A public model name and who serves it.

    Attributes:
        name: What callers ask for.
        targets: Who can serve it.
        retries: How often, and what, may be tried again.
        balancer: Overrides the balancer of the whole file for this model.
    """

    name: ModelName
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1)]
    retries: RetriesConfig | None = None
    balancer: BalancerName | None = None

    @model_validator(mode="after")
    def _targets_can_be_picked(self) -> Self:
        seen = set()
        for target in self.targets:
            key = (target.provider, target.model, target.tier)
            if key in seen:
                msg = (
                    f"the target {target.provider!r} with model {target.model!r} stands here twice"
                )
                raise ValueError(msg)
            seen.add(key)
        return self


class ServerConfig(ConfigurationModel):
    """Where and how the HTTP gateway listens.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 lets the system choose.
        api_keys_env: Environment variable with the accepted keys, separated by commas;
            None lets everybody in.
        admin_key_env: Environment variable with the key of `/status`; None allows it
            from the loopback interface only.
        max_body_bytes: Largest request body.
        drain: How long requests may go on after SIGTERM, seconds.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    api_keys_env: Name | None = None
    admin_key_env: Name | None = None
    max_body_bytes: Annotated[int, Field(ge=1_024, le=1_073_741_824)] = 33_554_432
    drain: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 30.0


class TelemetryConfig(ConfigurationModel):
    """Where spans, metrics and log lines go.

    Attributes:
        exporter: `none`, `console`, or `otlp` (over HTTP; the `OTEL_*` variables apply).
        endpoint: OTLP endpoint; None leaves it to `OTEL_EXPORTER_OTLP_ENDPOINT`.
        service_name: `service.name` of the resource; `OTEL_SERVICE_NAME` wins.
        logs: `pretty` for people, `json` for machines, or `none`.
    """

    exporter: Literal["none", "console", "otlp"] = "none"
    endpoint: str | None = None
    service_name: Name = "inference-gateway"
    logs: Literal["pretty", "json", "none"] = "pretty"


class GatewayConfig(ConfigurationModel):
    """The whole configuration.

    Without `models`, every enabled provider serves every model name as it came.

    Attributes:
        providers: The upstreams.
        models: Public model names; empty for "every provider serves everything".
        server: The HTTP gateway.
        telemetry: Spans, metrics, logs.
        retries: For the models that say nothing of their own.
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
        return self


_DEFAULTABLE = frozenset({
    "timeout", "max_retries", "weight", "timeouts", "limits", "api_key_env", "enabled",
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
