"""`RepeatPermits`: a further attempt must be allowed by its provider's budget and the router's."""

from __future__ import annotations

from collections.abc import Callable

from engine.errors import ConnectError, GatewayError
from engine.resilience.retry_budget import CONNECT_COST, RetryBudget


class RepeatPermits:
    """Asks both retry budgets, in this order: one provider's, and the one over all of them.

    Args:
        shared: The budget over all providers.
        in_flight: Requests of the router that have not ended.
    """

    __slots__ = ("_in_flight", "shared")

    def __init__(self, shared: RetryBudget, in_flight: Callable[[], int]) -> None:
        self.shared = shared
        self._in_flight = in_flight

    def take(
        self, own: RetryBudget, in_flight: int, failure: GatewayError | None
    ) -> tuple[RetryBudget, ...] | None:
        """Take what one more attempt costs; None if a budget does not allow it.

        Args:
            own: The budget of the provider that is to be asked.
            in_flight: Requests that this provider has in hand or in its mailbox.
            failure: What went wrong before; None for a hedge.

        Returns:
            The budgets that count the attempt as under way: each wants its slot back once.
        """
        cost = CONNECT_COST if isinstance(failure, ConnectError) else 1.0
        if not own.try_take(in_flight, cost):
            return None
        if not self.shared.try_take(self._in_flight(), cost):
            own.give_back_slot()
            return None
        return own, self.shared

    def first_success(self, own: RetryBudget) -> None:
        """A request succeeded at its first attempt, at the provider with this budget."""
        own.first_successes += 1
        self.shared.first_successes += 1
