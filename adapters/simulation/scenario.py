"""`Scenario`: what happens in a simulation, as pydantic models; strict, every bound finite."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from adapters.simulation.distributions import Amount, Constant, Distribution, Lognormal
from engine.config import ConfigurationModel
from engine.errors import ErrorClass
from engine.priority import Priority

EVERYBODY = "*"
"""Stands for all providers, or for those that are not named."""

Instant = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
PriorityWord = Literal["critical_plus", "critical", "sheddable_plus", "sheddable"]

FaultKind = Literal[
    "refuse", "hang_connect", "hang", "hang_body", "reset", "status", "quota", "html",
    "error_event_first", "cut_stream", "stall_stream", "slow", "flap", "misconfigured",
    "bug", "crash",
]  # fmt: skip

_ONLY_FOR: dict[str, frozenset[str]] = {
    "status": frozenset({"status"}),
    "retry_after": frozenset({"status", "quota"}),
    "factor": frozenset({"slow"}),
    "events": frozenset({"cut_stream", "stall_stream"}),
}


class PhaseConfig(ConfigurationModel):
    """Requests that arrive by themselves, whatever becomes of the earlier ones (open loop).

    Phases may overlap: what they bring adds up.

    Attributes:
        at: When they begin, seconds from the start.
        until: When they end; None for the end of the scenario.
        rate: Requests a second.
        arrivals: `poisson` for independent callers, `constant` for a metronome.
        models: Model names and their shares; empty for all of the configuration's alike.
        streamed: Part of the requests whose answer is wanted as a stream.
        input_tokens: Length of the prompts.
        output_tokens: Length of the answers.
        deadline: Seconds within which the caller wants the answer; None leaves it to the
            configuration.
        priorities: Priority classes and their shares; empty for the default class.
        cancelled: Part of the callers that leave early.
        cancel_after: Seconds after which these leave.
    """

    at: Instant = 0.0
    until: Instant | None = None
    rate: Rate
    arrivals: Literal["poisson", "constant"] = "poisson"
    models: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict)
    streamed: Share = 0.0
    input_tokens: Distribution = Constant(value=200)
    output_tokens: Distribution = Constant(value=100)
    deadline: Distribution | None = None
    priorities: dict[PriorityWord, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default_factory=dict
    )
    cancelled: Share = 0.0
    cancel_after: Distribution = Constant(value=1.0)

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.until is not None and self.until <= self.at:
            msg = "until must come after at"
            raise ValueError(msg)
        return self


class BehaviourConfig(ConfigurationModel):
    """How an upstream behaves while nothing is wrong with it.

    Attributes:
        latency: Seconds until the first token, of a whole answer and of a stream.
        tokens_per_second: How fast the rest follows; None for all of it at once.
        events: Events of a stream.
        concurrency: Calls that it can work on at the same time; None for any number.
        when_full: What happens to further calls: they wait, or are answered 429 or 503.
        queue: Calls that may wait there; further ones are answered 503.
        retry_after: Seconds that its 429 and 503 ask to wait; None for no such hint.
        errors: Error classes and the part of the calls that meet them.
        error_latency: Seconds until such an error.
    """

    latency: Distribution = Lognormal(kind="lognormal", median=0.4, p95=1.2)
    tokens_per_second: Annotated[float, Field(gt=0, le=1e6)] | None = None
    events: Annotated[int, Field(ge=1, le=1_000)] = 3
    concurrency: Count | None = None
    when_full: Literal["queue", "429", "503"] = "queue"
    queue: Annotated[int, Field(ge=0, le=1_000_000)] = 1_000
    retry_after: Amount | None = None
    errors: dict[ErrorClass, Share] = Field(default_factory=dict)
    error_latency: Distribution = Constant(value=0.05)

    @model_validator(mode="after")
    def _errors_are_shares(self) -> Self:
        if sum(self.errors.values()) > 1 + 1e-9:
            msg = "the shares of errors add up to more than 1"
            raise ValueError(msg)
        if ErrorClass.AFTER_COMMIT in self.errors:
            msg = "after_commit is no error of its own: use the fault cut_stream or stall_stream"
            raise ValueError(msg)
        return self


class FaultConfig(ConfigurationModel):
    """Something goes wrong at some upstreams for a while.

    Attributes:
        kind: What goes wrong.
        providers: Where: a name, several, or `*` for all.
        at: When it begins, seconds from the start.
        until: When it is over; None for the end of the scenario.
        share: Part of the calls that it hits.
        every: Length of its rhythm, seconds: with `lasting`, it comes and goes.
        lasting: Part of each rhythm in which it is there, seconds.
        after: Seconds into a call after which it shows.
        drops_running: Whether the calls that run when it begins are reset.
        status: HTTP status of `status`.
        retry_after: What `status` and `quota` ask to wait, seconds.
        factor: How much slower `slow` is.
        events: Events that `cut_stream` and `stall_stream` still let through.
    """

    kind: FaultKind
    providers: str | tuple[str, ...] = EVERYBODY
    at: Instant = 0.0
    until: Instant | None = None
    share: Share = 1.0
    every: Annotated[float, Field(gt=0, le=86_400)] | None = None
    lasting: Annotated[float, Field(gt=0, le=86_400)] | None = None
    after: Instant = 0.01
    drops_running: bool = False
    status: Annotated[int, Field(ge=400, le=599)] = 500
    retry_after: Amount | None = None
    factor: Annotated[float, Field(ge=1, le=1_000)] = 10.0
    events: Annotated[int, Field(ge=1, le=1_000)] = 1

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.until is not None and self.until <= self.at:
            msg = "until must come after at"
            raise ValueError(msg)
        if self.lasting is not None and (self.every is None or self.lasting > self.every):
            msg = "lasting needs an `every` that is at least as long"
            raise ValueError(msg)
        for field, kinds in _ONLY_FOR.items():
            if field in self.model_fields_set and self.kind not in kinds:
                msg = f"{field} means nothing to a fault of kind {self.kind}"
                raise ValueError(msg)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The providers that it hits."""
        return (self.providers,) if isinstance(self.providers, str) else self.providers

    @property
    def rhythm(self) -> tuple[float, float] | None:
        """Its rhythm and the part of it in which it is there, seconds; None if it stays."""
        if self.every is not None:
            return self.every, self.every / 2 if self.lasting is None else self.lasting
        return (10.0, 5.0) if self.kind == "flap" else None


class WeightChange(ConfigurationModel):
    """A new weight for a provider, as `router.set_weight` sets it.

    Attributes:
        provider: Its name.
        weight: Its new weight.
    """

    provider: str
    weight: Annotated[float, Field(ge=0, le=1e9)]


class EnabledChange(ConfigurationModel):
    """A provider switched on or off, as `router.set_enabled` does.

    Attributes:
        provider: Its name.
        enabled: Whether it takes part.
    """

    provider: str
    enabled: bool


class BehaviourChange(ConfigurationModel):
    """An upstream that behaves differently from now on.

    Attributes:
        provider: Its name.
        behaviour: How it behaves.
    """

    provider: str
    behaviour: BehaviourConfig


class ChangeConfig(ConfigurationModel):
    """Something that an operator does, or that changes for good, at an instant.

    Attributes:
        at: When, seconds from the start.
        set_weight: Sets the weight of a provider.
        set_enabled: Switches a provider on or off.
        eject: Name of the provider that is taken out by hand.
        restore: Name of the provider that is brought back by hand.
        reload: A configuration that is applied: a file, or its content.
        behaviour: An upstream that behaves differently.
        drain: Takes no more requests, and waits as many seconds for those in flight.
    """

    at: Instant
    set_weight: WeightChange | None = None
    set_enabled: EnabledChange | None = None
    eject: str | None = None
    restore: str | None = None
    reload: str | dict[str, Any] | None = None
    behaviour: BehaviourChange | None = None
    drain: Annotated[float, Field(gt=0, le=3_600)] | None = None

    @model_validator(mode="after")
    def _is_one_thing(self) -> Self:
        if len(self.what) != 1:
            known = ", ".join(name for name in type(self).model_fields if name != "at")
            msg = f"a change is exactly one of: {known}"
            raise ValueError(msg)
        return self

    @property
    def what(self) -> list[str]:
        """Names of the things that it changes."""
        return [
            name
            for name in type(self).model_fields
            if name != "at" and getattr(self, name) is not None
        ]


class Scenario(ConfigurationModel):
    """What happens in a simulation.

    Attributes:
        duration: How long requests arrive, seconds.
        seed: Seed of everything that is left to chance.
        phases: The requests; empty when recorded requests are played.
        providers: How the upstreams behave, by name; `*` for those that are not named.
        faults: What goes wrong, where and when.
        changes: What is changed, and when.
    """

    duration: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
    seed: int = 0
    phases: tuple[PhaseConfig, ...] = ()
    providers: dict[str, BehaviourConfig] = Field(default_factory=dict)
    faults: tuple[FaultConfig, ...] = ()
    changes: tuple[ChangeConfig, ...] = ()

    @model_validator(mode="after")
    def _happens_within(self) -> Self:
        for kind in ("phases", "faults", "changes"):
            for index, item in enumerate(getattr(self, kind)):
                if item.at >= self.duration:
                    msg = f"{kind}[{index}] begins at {item.at:g} s, after the end of the scenario"
                    raise ValueError(msg)
        drains = [change.at for change in self.changes if change.drain is not None]
        if len(drains) > 1:
            msg = "a router can be drained once only"
            raise ValueError(msg)
        return self


DEFAULT_BEHAVIOUR = BehaviourConfig()

PRIORITIES: dict[str, Priority] = {priority.word: priority for priority in Priority}
