"""What a router tells about itself: immutable snapshots for people, `/status` and metrics."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from engine.ledger import LedgerStatus
from engine.mailbox import MailboxStatus
from engine.resilience.health import HealthStatus


class ActorState(StrEnum):
    """What an actor is doing; never silent."""

    STARTING = "starting"
    SERVING = "serving"
    RESTARTING = "restarting"
    DOWN = "down"
    RETIRED = "retired"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ActorStatus:
    """One actor at one instant.

    Attributes:
        name: The provider's name.
        type: The provider's type.
        state: What the actor is doing.
        mailbox: Its queue.
        in_flight: Attempts that run, streams included.
        concurrency: Attempts that may run at the same time now.
        workers: Tasks that serve, or wait to.
        health: What its attempts came to, and whether it may be picked.
        ejected_until: Seconds from now until it may be picked again; None if it may now, or
            if that is not known.
        reason: Why it may not be picked, or None.
        weight: Its configured weight.
        share: Its part of all picks so far, between 0 and 1.
        picked: How often it was picked.
        completed: Attempts that succeeded.
        failed: Attempts that failed, by error class.
        restarts: How often the supervisor restarted it.
        retries_denied: Further attempts there that the retry budget did not allow.
    """

    name: str
    type: str
    state: ActorState
    mailbox: MailboxStatus
    in_flight: int
    concurrency: int
    workers: int
    health: HealthStatus
    ejected_until: float | None
    reason: str | None
    weight: float
    share: float
    picked: int
    completed: int
    failed: dict[str, int]
    restarts: int
    retries_denied: int


@dataclass(frozen=True, slots=True)
class RouterStatus:
    """A router at one instant.

    Attributes:
        ready: Whether requests can be served.
        ledger: Requests in, out and in flight.
        actors: One entry a provider, in the order of the configuration.
        seed: The seed of all random choices, which makes them repeatable.
        generation: Number of the configuration that serves, 1 for the first; 0 before the
            router is entered.
        reloads: How often a configuration was applied since then.
        reload_error: When and why the last reload was refused; None if it was applied.
    """

    ready: bool
    ledger: LedgerStatus
    actors: tuple[ActorStatus, ...]
    seed: int
    generation: int = 0
    reloads: int = 0
    reload_error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        result = asdict(self)
        result["ledger"]["outcomes"] = {
            outcome.value: count for outcome, count in self.ledger.outcomes.items()
        }
        result["ledger"]["conservation_error"] = self.ledger.conservation_error
        return result
