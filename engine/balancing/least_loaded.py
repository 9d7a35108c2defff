"""`LeastLoaded`: the target with the least work for its weight."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import ClassVar

from engine.balancing.balancer import Balancer, TargetT


class LeastLoaded(Balancer[TargetT]):
    """Picks the target with the smallest (load + 1) / (weight · share); chance decides a tie.

    The + 1 counts the request that is being placed: without it, weights would mean
    nothing while all targets are idle. A tie is broken by an even draw, so that targets
    of equal weight share an idle system and the first of them is not favoured.

    Args:
        targets: The targets.
        rng: Source of chance for ties.
    """

    remembers: ClassVar[bool] = True

    def __init__(self, targets: Sequence[TargetT], rng: random.Random) -> None:
        super().__init__(targets)
        self._random = rng.random

    def pick(self, eligible: Callable[[TargetT], bool]) -> TargetT | None:
        """Pick the eligible target with the least load for its weight."""
        best: TargetT | None = None
        best_cost = best_key = float("inf")
        drawn = []
        for target in self.targets:
            if not eligible(target):
                continue
            cost = (target.load + 1) / (target.weight * target.share)
            if cost > best_cost:
                continue
            # The smallest of n even draws is an even choice among n, in one pass.
            key = self._random()
            drawn.append(key)
            if cost < best_cost or key < best_key:
                best, best_cost, best_key = target, cost, key
        self.drawn = tuple(drawn)
        return best

    def memory(self) -> dict[str, list[float]]:
        """The work that each target has now."""
        return {"load": [target.load for target in self.targets]}
