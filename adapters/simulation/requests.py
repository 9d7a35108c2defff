"""Requests of a simulation: what a caller wants, and what became of it."""

from __future__ import annotations

import heapq
import json
import math
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate

from adapters.simulation.scenario import PRIORITIES, PhaseConfig, Scenario
from engine.config import GatewayConfig
from engine.operations import ChatRequest
from engine.priority import Priority

TEMPLATES = 64
"""Different sizes of requests in a phase. A request's body is never changed, so requests
share theirs: making one each would cost as much as a tenth of the engine's work on it."""

CHARACTERS_PER_TOKEN = 4
LONGEST_PROMPT = 200_000
"""Characters of a prompt that are really written; the size in tokens is kept apart."""


class Asked:
    """One request of a caller, and the record of what became of it.

    Attributes:
        at: When it is asked, seconds from the start.
        request: What is asked.
        output_tokens: Length of its answer.
        timeout: Seconds within which the caller wants it; None leaves it to the router.
        priority: Its class; None for the default.
        leaves_after: Seconds after which the caller leaves; None for one who waits.
        seconds: How long its answer takes upstream, where a record says so.
        number: Its place in the order of arrival, from 1.
        begun: When it was asked, an instant of the clock.
        deadline: When it must have ended, an instant of the clock.
        max_attempts: Attempts that it may take.
        may_be_billed_twice: Whether it may be repeated though it may have been executed.
        maybe_billed: Whether an upstream may have executed it in a call that failed.
        unreachable: Whether an upstream could not be reached in any of its calls.
        committed: Whether its caller has been given a part of an answer.
        attempts: Attempts that upstreams have seen.
        ended: When the caller had the ending; None before.
    """

    __slots__ = (
        "at", "attempts", "begun", "committed", "deadline", "ended", "leaves_after",
        "max_attempts", "may_be_billed_twice", "maybe_billed", "number", "output_tokens",
        "priority", "request", "seconds", "timeout", "unreachable",
    )  # fmt: skip

    def __init__(
        self,
        at: float,
        request: ChatRequest,
        *,
        output_tokens: float = 0.0,
        timeout: float | None = None,
        priority: Priority | None = None,
        leaves_after: float | None = None,
        seconds: float | None = None,
    ) -> None:
        self.at = at
        self.request = request
        self.output_tokens = output_tokens
        self.timeout = timeout
        self.priority = priority
        self.leaves_after = leaves_after
        self.seconds = seconds
        self.number = 0
        self.begun = 0.0
        self.deadline = math.inf
        self.max_attempts = 0
        self.may_be_billed_twice = True
        self.maybe_billed = False
        self.unreachable = False
        self.committed = False
        self.attempts = 0
        self.ended: float | None = None


def chat_request(
    model: str, *, input_tokens: float, output_tokens: float, streamed: bool
) -> ChatRequest:
    """A chat request of some size."""
    prompt = "x" * min(LONGEST_PROMPT, int(input_tokens) * CHARACTERS_PER_TOKEN)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max(1, int(output_tokens)),
        "stream": streamed,
    }
    return ChatRequest.from_body(body, json.dumps(body).encode())


def arrivals(scenario: Scenario, config: GatewayConfig, seed: int) -> Iterator[Asked]:
    """The requests of all phases in the order of their instants, drawn as they are needed."""
    served = tuple(model.name for model in config.models) or ("default",)
    phases = [
        _phase(phase, served, scenario.duration, random.Random(f"phase {index} {seed}"))
        for index, phase in enumerate(scenario.phases)
    ]
    # Merging costs half a microsecond a request, even where there is nothing to merge.
    return phases[0] if len(phases) == 1 else heapq.merge(*phases, key=lambda asked: asked.at)


def _phase(
    phase: PhaseConfig, served: Sequence[str], duration: float, rng: random.Random
) -> Iterator[Asked]:
    models = phase.models or dict.fromkeys(served, 1.0)
    templates = _templates(phase, list(models), rng)
    bounds = list(accumulate(models.values()))
    names = list(models)
    words = [PRIORITIES[word] for word in phase.priorities]
    word_bounds = list(accumulate(phase.priorities.values()))
    deadline = None if phase.deadline is None else phase.deadline.sampler(rng)
    leave = phase.cancel_after.sampler(rng)
    end = duration if phase.until is None else min(phase.until, duration)
    chance, rate, poisson = rng.random, phase.rate, phase.arrivals == "poisson"
    at = phase.at
    while True:
        at += -math.log(1.0 - chance()) / rate if poisson else 1 / rate
        if at >= end:
            return
        name = names[0] if len(names) == 1 else names[_draw(bounds, chance())]
        sizes = templates[name]
        plain, streamed, tokens = sizes[int(chance() * len(sizes))]
        asked = Asked(
            at,
            streamed if phase.streamed and chance() < phase.streamed else plain,
            output_tokens=tokens,
            priority=words[_draw(word_bounds, chance())] if words else None,
        )
        if deadline is not None:
            asked.timeout = max(0.001, deadline())
        if phase.cancelled and chance() < phase.cancelled:
            asked.leaves_after = leave()
        yield asked


def _draw(bounds: Sequence[float], chance: float) -> int:
    point = chance * bounds[-1]
    return next((index for index, bound in enumerate(bounds) if point < bound), len(bounds) - 1)


def _templates(
    phase: PhaseConfig, models: Sequence[str], rng: random.Random
) -> dict[str, list[tuple[ChatRequest, ChatRequest, float]]]:
    given, made = phase.input_tokens.sampler(rng), phase.output_tokens.sampler(rng)
    vary = phase.input_tokens.kind != "constant" or phase.output_tokens.kind != "constant"
    sizes = [(given(), made()) for _ in range(TEMPLATES if vary else 1)]
    return {
        model: [
            (
                chat_request(model, input_tokens=size, output_tokens=out, streamed=False),
                chat_request(model, input_tokens=size, output_tokens=out, streamed=True),
                out,
            )
            for size, out in sizes
        ]
        for model in models
    }
