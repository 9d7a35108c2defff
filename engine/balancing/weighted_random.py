"""`WeightedRandom`: each eligible target with a chance in proportion to its weight."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from engine.balancing.balancer import Balancer, TargetT

DRAWS = 4
"""Draws from the whole set before the eligible ones are filtered out. With half of the
weight not eligible, 1 - 0.5 ** 4 = 94 % of the picks never look at all targets."""


class WeightedRandom(Balancer[TargetT]):
    """Draws from running totals made once: a pick is one bisection.

    A draw that falls on a target that is not eligible is drawn again, which gives exactly
    the distribution of the weights over the eligible ones (rejection sampling). One that
    falls on a target of share s is kept with chance s: exactly weight times share counts.

    Args:
        targets: The targets.
        rng: Source of chance.
    """

    def __init__(self, targets: Sequence[TargetT], rng: random.Random) -> None:
        super().__init__(targets)
        self._random = rng.random
        self._totals = list(accumulate(target.weight for target in self.targets))
        self._total = self._totals[-1]
        # The product below may round up to the total itself: then it is the last target.
        self._last = len(self.targets) - 1

    def pick(self, eligible: Callable[[TargetT], bool]) -> TargetT | None:
        """Pick an eligible target by its weight."""
        drawn: tuple[float, ...] = ()
        for _ in range(DRAWS):
            draw = self._random()
            drawn += (draw,)
            target = self.targets[bisect_right(self._totals, draw * self._total, 0, self._last)]
            if eligible(target):
                share = target.share
                if share >= 1:
                    self.drawn = drawn
                    return target
                accepted = self._random()
                drawn += (accepted,)
                if accepted < share:
                    self.drawn = drawn
                    return target
        self.drawn = drawn
        return self._pick_filtered([target for target in self.targets if eligible(target)])

    def _pick_filtered(self, targets: list[TargetT]) -> TargetT | None:
        if not targets:
            return None
        totals = list(accumulate(target.weight * target.share for target in targets))
        draw = self._random()
        self.drawn += (draw,)
        return targets[bisect_right(totals, draw * totals[-1], 0, len(totals) - 1)]
