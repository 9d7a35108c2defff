"""`Dispatcher`: from a plan to the actor that gets the request, or the reasons why none."""

from __future__ import annotations

from collections.abc import Collection

from engine.errors import GatewayError, NoProviderAvailableError, UnsupportedOperationError
from engine.operations import Operation
from engine.plan import Plan, Target

NOBODY: Collection[Target] = frozenset()


class Dispatcher:
    """Picks by the plan's balancers among the targets that could serve now. Never waits."""

    def choose(
        self,
        plan: Plan,
        operation: Operation,
        *,
        excluded: Collection[Target] = NOBODY,
        only: Collection[Target] | None = None,
    ) -> Target | None:
        """Pick a target of the first tier that has one.

        Args:
            plan: Who can serve the model.
            operation: What is asked; an actor must offer it.
            excluded: Targets that were tried already.
            only: If given, nobody else is considered.
        """

        def eligible(target: Target) -> bool:
            return (
                target.actor.unavailable(operation) is None
                and target not in excluded
                and (only is None or target in only)
            )

        for balancer in plan.tiers:
            target = balancer.pick(eligible)
            if target is not None:
                return target
        return None

    def refusal(self, plan: Plan, operation: Operation, model: str) -> GatewayError:
        """The error for a request that nobody could be found for, with the reasons."""
        passed_over: dict[str, str] = {}
        soonest = float("inf")
        for balancer in plan.tiers:
            for target in balancer.targets:
                reason = target.actor.unavailable(operation) or "tried"
                passed_over[target.actor.name] = reason
                soonest = min(soonest, target.actor.available_in())
        reasons = set(passed_over.values())
        if reasons == {"unsupported_operation"}:
            return UnsupportedOperationError(
                f"no provider of model {model!r} offers {operation.value!r}", param="model"
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
        return error
