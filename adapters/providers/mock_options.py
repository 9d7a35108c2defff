"""Settings of the mock providers."""

from __future__ import annotations

import random
from typing import Annotated, Literal

from pydantic import Field, model_validator

from engine.config import ConfigurationModel, ModelName

FaultName = Literal[
    # No connection: certainly not sent.
    "refused", "dns", "tls", "connect_timeout", "pool_timeout",
    # Lost or silent before any answer.
    "reset_before", "closed_early", "write_error", "read_timeout", "hang",
    # Statuses.
    "redirect", "http_400", "http_401", "http_402", "http_403", "http_404", "http_405",
    "http_408", "http_409", "http_413", "http_415", "http_422", "http_425", "http_429",
    "http_500", "http_501", "http_502", "http_503", "http_504", "http_529",
    "quota_429", "model_not_found", "context_length", "content_filter",
    # Status 200 and something that is no answer.
    "html", "not_json", "empty", "cut_json", "empty_choices", "wrong_content_type", "error_200",
    # Answers and streams that break on the way; a stream's faults do the like to a whole answer.
    "reset_after", "cut_stream", "early_end", "stall_first", "stall_stream", "error_event_first",
    "error_event_mid", "garbled_first", "garbled_event", "oversized_event", "endless_stream",
    "slow_trickle",
    # Odd, and yet complete.
    "no_done", "double_done",
]  # fmt: skip
"""What can go wrong on purpose; the names are explained in `docs/PROVIDERS.md`."""

Delay = Annotated[float, Field(ge=0, le=3_600, allow_inf_nan=False)]


class NormalDelay(ConfigurationModel):
    """A wait drawn from a normal distribution, never below zero.

    Attributes:
        mean: Seconds.
        sigma: Standard deviation, seconds.
    """

    mean: Delay
    sigma: Delay


DelayChoice = Delay | tuple[Delay, Delay] | NormalDelay
"""A fixed wait, one drawn evenly between two bounds, or one of a normal distribution."""


class MockOptions(ConfigurationModel):
    """What a mock provider answers, how fast, and how often it fails.

    Attributes:
        imitates: Whose dialect it speaks; None looks for "vllm" in `base_url` and `name`.
        models: What `GET /models` lists. Any model name is served.
        text: The answer; None for one that says it is a mock's.
        reply_tokens: Makes the answer that many tokens long instead; a token is a word.
        embedding_dimensions: Length of embeddings when the request names none.
        latency: Wait until the answer's headers, seconds.
        time_to_first_token: Further wait until the first token, seconds.
        tokens_per_second: How fast tokens follow; None for at once.
        fault: Goes wrong at every call.
        error_rate: Share of calls, drawn at random, at which `error` goes wrong.
        error: The fault of `error_rate`.
        script: For each call in turn `ok` or a fault; goes before `fault` and `error_rate`.
        repeat_script: Whether the script starts again at its end, or everything is well then.
        retry_after: `Retry-After` of the answers 429, 503 and 529, as it is sent.
        seed: Seed of all random choices, together with the provider's name.
    """

    imitates: Literal["openai", "vllm"] | None = None
    models: Annotated[tuple[ModelName, ...], Field(max_length=1_000)] = ("mock-model",)
    text: Annotated[str, Field(max_length=100_000)] | None = None
    reply_tokens: Annotated[int, Field(ge=0, le=10_000)] | None = None
    embedding_dimensions: Annotated[int, Field(ge=1, le=10_000)] = 8
    latency: DelayChoice = 0.0
    time_to_first_token: DelayChoice = 0.0
    tokens_per_second: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    fault: FaultName | None = None
    error_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    error: FaultName = "http_500"
    script: Annotated[tuple[FaultName | Literal["ok"], ...], Field(max_length=10_000)] = ()
    repeat_script: bool = True
    retry_after: float | str | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _bounds_in_order(self) -> MockOptions:
        for name in ("latency", "time_to_first_token"):
            delay = getattr(self, name)
            if isinstance(delay, tuple) and delay[0] > delay[1]:
                raise ValueError(f"{name}: the lower bound must come first")
        if isinstance(self.retry_after, str) and not self.retry_after.isprintable():
            raise ValueError("retry_after must be printable")
        return self


def draw_delay(delay: DelayChoice, rng: random.Random) -> float:
    """Seconds to wait this time; a fixed delay takes nothing from `rng`."""
    if isinstance(delay, NormalDelay):
        return max(0.0, rng.gauss(delay.mean, delay.sigma))
    if isinstance(delay, tuple):
        return rng.uniform(*delay)
    return delay


def draw_fault(options: MockOptions, call: int, rng: random.Random) -> str | None:
    """What goes wrong at a call, if anything.

    Args:
        options: The mock's settings.
        call: The call's number, from 0.
        rng: Asked only if it depends on chance.
    """
    if options.script and (options.repeat_script or call < len(options.script)):
        step = options.script[call % len(options.script)]
        return None if step == "ok" else step
    if options.script:
        return None
    if options.fault is not None:
        return options.fault
    if options.error_rate and rng.random() < options.error_rate:
        return options.error
    return None
