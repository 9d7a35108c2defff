"""`ModelConfig`: a public model name, who serves it, and what happens when they fail."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.config.values import (
    BalancerName,
    ConfigurationModel,
    ModelName,
    Name,
    Seconds,
    Share,
    Weight,
)


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


class FallbacksConfig(ConfigurationModel):
    """Other models that may answer when this one cannot, by cause, the first one first.

    Attributes:
        error: When no target could serve.
        context_length: When the prompt is too long for this model.
        content_filter: When the provider's policy refused the content.
    """

    error: tuple[ModelName, ...] = ()
    context_length: tuple[ModelName, ...] = ()
    content_filter: tuple[ModelName, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All models that are named here."""
        return self.error + self.context_length + self.content_filter


class HedgingConfig(ConfigurationModel):
    """Asking a second provider when the first is slow; each hedge may be a second bill.

    Attributes:
        delay: Seconds after which the second is asked, though never before the 95th
            percentile of the first one's time to its first event; None waits for just that.
        max_share: Part of the requests that may be hedged.
    """

    delay: Seconds | None = None
    max_share: Share = 0.02


class ModelConfig(ConfigurationModel):
    """A public model name and who serves it.

    Attributes:
        name: What callers ask for.
        targets: Who can serve it.
        retries: How often, and what, may be tried again.
        balancer: Overrides the balancer of the whole file for this model.
        fallbacks: Other models that may answer instead, by cause.
        total: Deadline of a request that brings none, seconds.
        hedging: Whether a slow answer is raced by a second provider; None for never.
        upstream_streaming: Whether an answer that is not asked for as a stream is read from
            the provider as one, so that the limits for the first event and between events
            watch over it too: `never`, or `auto` where the operation can be streamed.
    """

    name: ModelName
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1)]
    retries: RetriesConfig | None = None
    balancer: BalancerName | None = None
    fallbacks: FallbacksConfig = Field(default_factory=FallbacksConfig)
    total: Seconds | None = None
    hedging: HedgingConfig | None = None
    upstream_streaming: Literal["never", "auto"] = "never"

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
