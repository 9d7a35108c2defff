"""`RequestRecord`: the story of one request, told by its own facts.

While a request runs only references to facts are kept, which costs a microsecond; the
story is put into words when somebody asks. It is complete enough to repeat each choice:
`engine.choice_replay` finds the same target from the recorded candidates and chance alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from engine.errors import GatewayError, ProviderError

if TYPE_CHECKING:
    from engine.dispatcher import Choice
    from engine.envelope import AttemptFailure, Envelope
    from engine.generation import Generation
    from engine.ledger import Outcome
    from engine.operations import Request, Usage
    from engine.plan import Candidate
    from engine.priority import Priority

MOST_STEPS = 128
"""Steps that one record keeps: two for each of 50 attempts, the most that can be configured,
and some for requests that ended in a mailbox."""

MODEL_CHARACTERS = 256
"""Characters of the model's name that are kept: a caller may write anything there."""


class Pick(NamedTuple):
    """One choice of a target.

    Attributes:
        at: When, an instant of the router's clock.
        model: Public name of the model whose plan was used; None for every name.
        balancer: Name of the balancer's class.
        candidates: The targets of the tier, in the balancer's order.
        picked: Index of the one that was taken.
        resort: `healthy`, `unproven` or `last_resort`; `repeat` for the same one again,
            `hedge` for a second one beside the first.
        passed_over: By label, why a target that was looked at was not taken.
        facts: What the balancer's choice hung on, beside the weights.
    """

    at: float
    model: str | None
    balancer: str
    candidates: tuple[Candidate, ...]
    picked: int
    resort: str
    passed_over: dict[str, str]
    facts: dict[str, Any]

    def as_dict(self, began: float) -> dict[str, Any]:
        """The choice in plain JSON types; times count from the request's beginning."""
        chosen = self.candidates[self.picked]
        passed = {label: why for label, why in self.passed_over.items() if label != chosen.label}
        shares = self.facts.get("share", {})
        weights = {c.label: c.weight * shares.get(c.label, 1.0) for c in self.candidates}
        total = sum(weight for label, weight in weights.items() if label not in passed)
        return {
            "step": "pick",
            "at": round(self.at - began, 6),
            "model": self.model,
            "balancer": self.balancer,
            "resort": self.resort,
            "candidates": [
                {"target": c.label, "model": c.model, "weight": c.weight, "tier": c.tier}
                for c in self.candidates
            ],
            "passed_over": passed,
            "picked": chosen.label,
            "odds": round(weights[chosen.label] / total, 6),
            "facts": self.facts,
        }


class Tries(NamedTuple):
    """The calls at one target that came of a pick.

    Attributes:
        provider: Name of the provider.
        first: Number of the first call.
        calls: How many calls were made; 0 if the request never left the mailbox.
        queue_seconds: Time in the mailbox.
        upstream_seconds: Time in calls.
        until: When this provider had to have answered, an instant of the router's clock.
        failures: The calls that failed.
        result: `answered`, `failed`, or `abandoned` for a call that somebody else overtook
            or whose caller had left.
    """

    provider: str
    first: int
    calls: int
    queue_seconds: float
    upstream_seconds: float
    until: float
    failures: tuple[AttemptFailure, ...]
    result: str

    def as_dict(self, began: float) -> dict[str, Any]:
        """The calls in plain JSON types."""
        return {
            "step": "attempts",
            "provider": self.provider,
            "first": self.first,
            "calls": self.calls,
            "result": self.result,
            "queue_seconds": round(self.queue_seconds, 6),
            "upstream_seconds": round(self.upstream_seconds, 6),
            "limit": round(self.until - began, 6),
            "failures": [
                {
                    "attempt": failure.number,
                    "class": failure.error_class.value,
                    "replay": failure.replay.value,
                    "seconds": round(failure.seconds, 6),
                    "wasted": failure.replay.value != "not_accepted",
                }
                for failure in self.failures
            ],
        }


class Told(Protocol):
    """What a record asks of its request.

    Attributes:
        attempts: Upstream calls made so far.
        fallbacks: Other models that were asked, in order.
    """

    attempts: int
    fallbacks: tuple[str, ...]

    @property
    def request(self) -> Request:
        """What was asked."""
        ...

    @property
    def request_id(self) -> str:
        """Its id."""
        ...

    @property
    def generation(self) -> Generation:
        """The configuration under which it was accepted."""
        ...

    @property
    def priority(self) -> Priority:
        """How much it matters."""
        ...

    @property
    def streamed(self) -> bool:
        """Whether the caller wants a stream."""
        ...

    @property
    def deadline(self) -> float:
        """When it must have ended, an instant of the router's clock."""
        ...


class RequestRecord:
    """What one request met, in order.

    Attributes:
        request_id: The request's id.
        ended: Whether it has ended.
    """

    __slots__ = (
        "_attempts",
        "_began",
        "_deadline",
        "_ended_at",
        "_error",
        "_fallbacks",
        "_generation",
        "_model",
        "_operation",
        "_outcome",
        "_priority",
        "_provider",
        "_steps",
        "_streamed",
        "_usage",
        "request_id",
    )

    def __init__(self, run: Told, began: float) -> None:
        request = run.request
        self.request_id = run.request_id
        self._model = request.model[:MODEL_CHARACTERS]
        self._operation = request.operation
        self._streamed = run.streamed
        self._priority = run.priority
        self._generation = run.generation.number
        self._began = began
        self._deadline = run.deadline
        self._steps: list[Pick | Tries] = []
        self._ended_at: float | None = None
        self._outcome: Outcome | None = None
        self._error: str | None = None
        self._attempts = 0
        self._provider: str | None = None
        self._fallbacks: tuple[str, ...] = ()
        self._usage: Usage | None = None

    @property
    def ended(self) -> bool:
        """Whether the request has ended."""
        return self._outcome is not None

    @property
    def picks(self) -> list[Pick]:
        """The choices that were made, in order."""
        return [step for step in self._steps if isinstance(step, Pick)]

    def picked(self, at: float, model: str | None, choice: Choice, resort: str) -> None:
        """Note a choice."""
        if len(self._steps) < MOST_STEPS:
            balancer, candidates = choice.tier.balancer, choice.tier.candidates
            self._steps.append(
                Pick(
                    at,
                    model,
                    type(balancer).__name__,
                    candidates,
                    choice.target.index,
                    resort,
                    choice.passed_over,
                    choice.facts,
                )
            )

    def tried(self, envelope: Envelope, before: int, result: str) -> None:
        """Note what became of an envelope; `before` is the number of calls before it."""
        if len(self._steps) < MOST_STEPS:
            picked_up = envelope.picked_up_at
            self._steps.append(
                Tries(
                    envelope.config.name,
                    before + 1,
                    envelope.number - before,
                    0.0 if picked_up is None else picked_up - envelope.queued_at,
                    envelope.upstream_seconds,
                    envelope.until,
                    tuple(envelope.failures or ()),
                    result,
                )
            )

    def end(
        self,
        run: Told,
        outcome: Outcome,
        *,
        at: float,
        provider: str | None,
        error: BaseException | None,
        usage: Usage | None,
    ) -> None:
        """Note how the request ended. From here on it needs nothing of the request itself."""
        self._outcome = outcome
        self._ended_at = at
        self._attempts = run.attempts
        self._provider = provider
        self._fallbacks = run.fallbacks
        self._usage = usage
        self._error = _word(error)

    def as_dict(self, seed: int, now: float, wall: float | None = None) -> dict[str, Any]:
        """The story in plain JSON types.

        Args:
            seed: Seed of the router's choices.
            now: The current instant of the router's clock.
            wall: The same instant as seconds since 1970; None if it is not known.
        """
        began = self._began
        return {
            "request_id": self.request_id,
            "model": self._model,
            "operation": self._operation.value,
            "streamed": self._streamed,
            "priority": self._priority.word,
            "generation": self._generation,
            "seed": seed,
            "age": round(now - began, 3),
            "began": None if wall is None else round(wall - (now - began), 3),
            "deadline": round(self._deadline - began, 6),
            "seconds": round((now if self._ended_at is None else self._ended_at) - began, 6),
            "outcome": None if self._outcome is None else self._outcome.value,
            "error": self._error,
            "attempts": self._attempts,
            "provider": self._provider,
            "fallbacks": list(self._fallbacks),
            "usage": None
            if self._usage is None
            else {"input": self._usage.input_tokens, "output": self._usage.output_tokens},
            "steps": [step.as_dict(began) for step in self._steps],
        }


def _word(error: BaseException | None) -> str | None:
    """What an error is called, without its text: that may hold what a caller wrote."""
    if error is None:
        return None
    if isinstance(error, ProviderError):
        return error.error_class.value
    if isinstance(error, GatewayError) and error.code:
        return error.code
    return type(error).__name__
