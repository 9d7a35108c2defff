"""`SmoothWeighted`: exact shares without chance, spread as evenly as they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from engine.balancing.balancer import Balancer, TargetT


class SmoothWeighted(Balancer[TargetT]):
    """Smooth weighted round robin, as nginx does it (its commit 52327e0, 2012).

    At each pick every eligible target gains its weight (times its share); the one with the
    most is picked and pays the sum. Over any n picks with all eligible, a target that has
    the part p of all weights is picked at least p·n - 1 and at most p·n + 1 times for two
    targets; in general the error stays below the number of targets and is zero after each
    full cycle.

    Args:
        targets: The targets.
    """

    remembers: ClassVar[bool] = True

    def __init__(self, targets: Sequence[TargetT]) -> None:
        super().__init__(targets)
        self._credit = [0.0] * len(self.targets)

    def pick(self, eligible: Callable[[TargetT], bool]) -> TargetT | None:
        """Pick the eligible target that is furthest behind its share."""
        best = -1
        total = 0.0
        credit = self._credit
        for index, target in enumerate(self.targets):
            if not eligible(target):
                continue
            weight = target.weight * target.share
            total += weight
            credit[index] += weight
            if best < 0 or credit[index] > credit[best]:
                best = index
        if best < 0:
            return None
        credit[best] -= total
        return self.targets[best]

    def memory(self) -> dict[str, list[float]]:
        """How far each target is behind its share."""
        return {"credit": list(self._credit)}
