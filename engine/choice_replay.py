"""`repeat_choice`: makes a recorded choice again, from what the record says alone.

If the answer is not the recorded target, the record left something out, or the balancer
follows something that it must not know of.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.balancing.balancer import Balancer
from engine.balancing.least_loaded import LeastLoaded
from engine.balancing.smooth_weighted import SmoothWeighted
from engine.balancing.weighted_random import WeightedRandom
from engine.request_record import Pick


@dataclass(slots=True)
class Recalled:
    """A target as it was at the time of the choice.

    Attributes:
        label: What it is called.
        weight: Its share within its tier.
        share: The part of its weight that counted.
        load: Requests that it had in hand or in its mailbox.
    """

    label: str
    weight: float
    share: float
    load: float


class RecalledChance(random.Random):
    """Gives the recorded draws again, in their order.

    Args:
        drawn: The draws.
    """

    def __init__(self, drawn: Iterable[float]) -> None:
        super().__init__(0)
        self._drawn = iter(drawn)

    def random(self) -> float:
        """The next draw.

        Raises:
            ValueError: If more are wanted than were recorded.
        """
        draw = next(self._drawn, None)
        if draw is None:
            msg = "the choice asks for more draws than its record has"
            raise ValueError(msg)
        return draw


class RecalledSmoothWeighted(SmoothWeighted[Recalled]):
    """Begins with the credit that every target had.

    Args:
        targets: The targets.
        credit: How far each of them was behind its share.
    """

    def __init__(self, targets: Sequence[Recalled], credit: Sequence[float]) -> None:
        super().__init__(targets)
        self._credit = list(credit)


def repeat_choice(pick: Pick) -> str:
    """Make a recorded choice again.

    Returns:
        The label of the target that is chosen.

    Raises:
        ValueError: If the record does not hold what the choice hung on.
    """
    pauses: dict[str, float] | None = pick.facts.get("available_in")
    if pauses is not None:
        # All had failed and asked for a pause: the one that ends first is waited for.
        return min(pauses, key=lambda label: pauses[label])
    target = _balancer(pick).pick(lambda target: target.label not in pick.passed_over)
    if target is None:
        msg = "by its record, nobody could be chosen"
        raise ValueError(msg)
    return target.label


def _balancer(pick: Pick) -> Balancer[Recalled]:
    facts = pick.facts
    shares = facts.get("share", {})
    loads = facts.get("load") or [0.0] * len(pick.candidates)
    targets = [
        Recalled(candidate.label, candidate.weight, shares.get(candidate.label, 1.0), load)
        for candidate, load in zip(pick.candidates, loads, strict=True)
    ]
    chance = RecalledChance(facts["drew"])
    match pick.balancer:
        case "WeightedRandom":
            return WeightedRandom(targets, chance)
        case "LeastLoaded":
            return LeastLoaded(targets, chance)
        case "SmoothWeighted":
            return RecalledSmoothWeighted(targets, facts["credit"])
        case _:
            pass
    msg = f"there is no balancer {pick.balancer!r} to repeat the choice with"
    raise ValueError(msg)
