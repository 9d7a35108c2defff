"""Random durations and sizes as a scenario describes them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from engine.config import ConfigurationModel

Amount = Annotated[float, Field(ge=0, le=10_000_000, allow_inf_nan=False)]
Sampler = Callable[[], float]

Z95 = 1.6449
"""The standard normal distribution's 95th percentile."""


class Constant(ConfigurationModel):
    """Always the same; in a file also a bare number.

    Attributes:
        value: Seconds, or tokens.
    """

    kind: Literal["constant"] = "constant"
    value: Amount

    def sampler(self, rng: random.Random) -> Sampler:  # noqa: ARG002 - the others need it
        """A function that draws one value."""
        value = self.value
        return lambda: value


class Uniform(ConfigurationModel):
    """Anything between two bounds, equally likely.

    Attributes:
        low: The lower bound.
        high: The upper bound.
    """

    kind: Literal["uniform"]
    low: Amount
    high: Amount

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            msg = "low must not be above high"
            raise ValueError(msg)
        return self

    def sampler(self, rng: random.Random) -> Sampler:
        """A function that draws one value."""
        chance, low, width = rng.random, self.low, self.high - self.low
        return lambda: low + width * chance()


class Exponential(ConfigurationModel):
    """Without memory: many short, few long.

    Attributes:
        mean: The mean.
    """

    kind: Literal["exponential"]
    mean: Annotated[Amount, Field(gt=0)]

    def sampler(self, rng: random.Random) -> Sampler:
        """A function that draws one value."""
        draw, rate = rng.expovariate, 1 / self.mean
        return lambda: draw(rate)


class Lognormal(ConfigurationModel):
    """Like most answer times: a hump and a long tail.

    Attributes:
        median: Half of the values lie below.
        p95: 95 of 100 values lie below.
    """

    kind: Literal["lognormal"]
    median: Annotated[Amount, Field(gt=0)]
    p95: Annotated[Amount, Field(gt=0)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.median > self.p95:
            msg = "p95 must not be below the median"
            raise ValueError(msg)
        return self

    def sampler(self, rng: random.Random) -> Sampler:
        """A function that draws one value."""
        gauss, exp, median = rng.gauss, math.exp, self.median
        sigma = math.log(self.p95 / median) / Z95
        return lambda: median * exp(gauss(0.0, sigma))


def _from_number(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    return value


Distribution = Annotated[
    Annotated[Constant | Uniform | Exponential | Lognormal, Field(discriminator="kind")],
    BeforeValidator(_from_number),
]
"""A number, or an object with a `kind`."""
