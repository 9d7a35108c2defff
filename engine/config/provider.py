"""`ProviderConfig`: one upstream, with its time limits, its capacity and its health rules."""

from typing import Annotated, Any

from pydantic import Field

from engine.config.values import ConfigurationModel, Name, Seconds, Share, Weight


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


class AdaptiveConcurrencyConfig(ConfigurationModel):
    """A limit on concurrency that follows what the provider can take (AIMD).

    It grows by one for every limit's worth of successes and shrinks by a tenth when the
    provider says that it is overloaded; `limits.concurrency` stays the upper bound.

    Attributes:
        initial: Attempts at the same time to begin with.
        min: Never fewer than these.
    """

    initial: Annotated[int, Field(ge=1, le=10_000)] = 20
    min: Annotated[int, Field(ge=1, le=10_000)] = 2


class LimitsConfig(ConfigurationModel):
    """What one provider may be given at a time.

    Attributes:
        requests_per_minute: Attempts started in a minute; None for no such limit.
        tokens_per_minute: Tokens in a minute; None for no such limit.
        concurrency: Attempts at the same time.
        queue: Requests that may wait in the mailbox.
        adaptive: Lets the limit on concurrency follow the provider; None keeps it fixed.
    """

    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1, le=10_000_000_000)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=10_000)] = 64
    queue: Annotated[int, Field(ge=0, le=100_000)] = 128
    adaptive: AdaptiveConcurrencyConfig | None = None


class EjectionConfig(ConfigurationModel):
    """When a provider is taken out of rotation for its failures, and how it comes back.

    Attributes:
        consecutive_failures: Failures in a row that eject; 0 switches this rule off.
        failure_rate: Part of the attempts in the window that fail and so eject; 0 switches
            this rule off.
        window: How far back the failure rate looks, seconds.
        min_requests: Attempts in the window below which the rate says nothing.
        base: First ejection, seconds; the n-th in a row lasts n times as long.
        max: Longest ejection, seconds.
        slow_start: Seconds after its return within which a provider grows back to its share.
        unproven_concurrency: Attempts that an unproven provider holds at most, while
            another one can serve.
    """

    consecutive_failures: Annotated[int, Field(ge=0, le=10_000)] = 5
    failure_rate: Share = 0.5
    window: Seconds = 30.0
    min_requests: Annotated[int, Field(ge=1, le=100_000)] = 10
    base: Seconds = 5.0
    max: Seconds = 30.0
    slow_start: Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)] = 30.0
    unproven_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 10


class HealthCheckConfig(ConfigurationModel):
    """Asking a provider at intervals whether it is well, beside the requests it serves.

    Attributes:
        path: What is asked, below the server's root (`/health`) or, without a leading
            slash, below the base URL (`models`).
        interval: Seconds from one check to the next.
        timeout: Seconds after which a check has failed.
        failures: Failed checks in a row that eject the provider.
    """

    path: Annotated[str, Field(min_length=1, max_length=256)] = "models"
    interval: Seconds = 10.0
    timeout: Seconds = 2.0
    failures: Annotated[int, Field(ge=1, le=100)] = 3


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
        ejection: When it is taken out of rotation, and how it comes back.
        health_check: Active checks; None leaves it to the requests themselves.
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
    ejection: EjectionConfig = Field(default_factory=EjectionConfig)
    health_check: HealthCheckConfig | None = None
    options: dict[str, Any] = Field(default_factory=dict)
