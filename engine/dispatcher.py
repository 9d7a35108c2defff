"""`Dispatcher`: from a plan to the actor that gets the request, or the reasons why none."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from engine.errors import GatewayError, NoProviderAvailableError, UnsupportedOperationError
from engine.operations import Operation
from engine.plan import Plan, Target, Tier
from engine.priority import Priority
from engine.resilience.health import LAST_RESORT, SOFT

NOBODY: Collection[Target] = frozenset()

TRIED = "tried"

_RESORTS: tuple[tuple[str, frozenset[str]], ...] = (
    ("healthy", frozenset()),
    ("unproven", frozenset(SOFT)),
    ("last_resort", frozenset(SOFT | LAST_RESORT)),
)
"""How far the rules are bent, and the reasons that no longer count then."""


@dataclass(slots=True)
class Asked:
    """What a target must be able to do.

    Attributes:
        operation: What is asked.
        priority: How much it matters.
        remaining: Seconds until the request's deadline.
        excluded: Targets that were tried already.
        only: If not None, nobody else is considered.
        recorded: Whether the choice's facts are wanted.
    """

    operation: Operation
    priority: Priority = Priority.CRITICAL
    remaining: float = float("inf")
    excluded: Collection[Target] = NOBODY
    only: Collection[Target] | None = None
    recorded: bool = False


@dataclass(slots=True)
class Choice:
    """A pick, with what it takes to understand and to repeat it.

    Attributes:
        target: Who was picked.
        tier: The tier that it was picked from.
        resort: `healthy`; `unproven` or `last_resort` if nobody better was there.
        passed_over: For each target that was looked at and could not be taken, why, by label.
        facts: What the balancer's choice hung on beside the weights: the random numbers
            that it `drew`, the `share` of those in slow start, and its memory.
    """

    target: Target
    tier: Tier
    resort: str
    passed_over: dict[str, str]
    facts: dict[str, Any]


class Dispatcher:
    """Picks by the plan's balancers among the targets that could serve now. Never waits."""

    def choose(self, plan: Plan, asked: Asked) -> Choice | None:
        """Pick a target of the first tier that has one.

        Within a tier, those that have proven themselves go first. If no tier has anybody
        and some are ejected, one of these is taken: a small chance beats none.
        """
        passed_over: dict[str, str] = {}
        for tier in plan.tiers:
            choice = self._pick(tier, asked, _RESORTS[0], passed_over)
            if choice is not None:
                return choice
            if SOFT.intersection(passed_over.values()):
                choice = self._pick(tier, asked, _RESORTS[1], passed_over)
                if choice is not None:
                    return choice
        if LAST_RESORT.intersection(passed_over.values()):
            for tier in plan.tiers:
                choice = self._pick(tier, asked, _RESORTS[2], passed_over)
                if choice is not None:
                    return choice
        return None

    @staticmethod
    def _pick(
        tier: Tier,
        asked: Asked,
        resort: tuple[str, frozenset[str]],
        passed_over: dict[str, str],
    ) -> Choice | None:
        name, forgiven = resort
        facts: dict[str, Any] = {}
        seen: dict[Target, bool] = {}
        # What is taken as it is ends the pick, and is looked at once anyway: only what may be
        # looked at again is noted, which in nearly every pick is nothing.
        excluded, only = asked.excluded, asked.only

        def eligible(target: Target) -> bool:
            # A balancer may look twice, and time goes on in between: the first look counts,
            # or the choice could not be repeated from its record.
            known = seen.get(target)
            if known is not None:
                return known
            if target in excluded or (only is not None and target not in only):
                reason: str | None = TRIED
            else:
                reason = target.actor.unavailable(
                    asked.operation, asked.priority, asked.remaining, forgiven=forgiven
                )
            if reason is None:
                share = target.share = target.actor.share
                if share < 1 and asked.recorded:
                    facts.setdefault("share", {})[target.label] = share
                if passed_over:
                    # What an earlier resort said of it is no longer so.
                    passed_over.pop(target.label, None)
                if share < 1:
                    seen[target] = True
                return True
            passed_over[target.label] = reason
            seen[target] = False
            return False

        balancer = tier.balancer
        if balancer.remembers and asked.recorded:
            facts.update(balancer.memory())
        target = balancer.pick(eligible)
        if target is None:
            return None
        facts["drew"] = balancer.drawn
        return Choice(target, tier, name, passed_over, facts)

    def refusal(self, plan: Plan, asked: Asked, model: str) -> GatewayError:
        """The error for a request that nobody could be found for, with the reasons."""
        passed_over: dict[str, str] = {}
        soonest = float("inf")
        for tier in plan.tiers:
            for target in tier.balancer.targets:
                actor = target.actor
                reason = actor.unavailable(asked.operation, asked.priority, asked.remaining)
                passed_over[target.label] = reason or TRIED
                soonest = min(soonest, actor.available_in(asked.remaining))
        reasons = set(passed_over.values())
        if reasons == {"unsupported_operation"}:
            return UnsupportedOperationError(
                f"no provider of model {model!r} offers {asked.operation.value!r}", param="model"
            )
        shown = ", ".join(f"{name}: {reason}" for name, reason in list(passed_over.items())[:8])
        error = NoProviderAvailableError(
            f"no provider of model {model!r} can take the request now ({shown})",
            reason=reasons.pop() if len(reasons) == 1 else "no_provider_available",
            # Never less than a tenth of a second: a client that comes back at once helps nobody.
            retry_after=max(0.1, min(soonest, 300.0)),
            passed_over=passed_over,
        )
        if error.reason == "rate_limited":
            error.status = 429
            error.type = "rate_limit_error"
        elif error.reason == "deadline_too_short":
            error.status = 504
            error.type = "timeout_error"
        return error
