"""`Balancer`: picks one of several targets that could serve a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Generic, Protocol, TypeVar


class Weighted(Protocol):
    """What a balancer needs to know of a target."""

    @property
    def weight(self) -> float:
        """How many requests it gets, relative to the others; above 0."""
        ...

    @property
    def load(self) -> float:
        """Requests that it has in hand or in its queue."""
        ...

    @property
    def share(self) -> float:
        """The part of its weight that counts now: above 0, and 1 but for a slow start."""
        ...


TargetT = TypeVar("TargetT", bound=Weighted)


class Balancer(ABC, Generic[TargetT]):
    """Picks among a fixed set of targets, all with a weight above 0.

    Weights are a snapshot: a change makes a new balancer, so that a pick never sees half
    of it. Shares change with time; each pick reads them. What counts is weight times share.
    A pick never waits.

    Attributes:
        remembers: Whether a pick hangs on more than weights, shares and chance.
        targets: The targets.
        drawn: The random numbers of the last pick, in the order in which they were drawn.
    """

    remembers: ClassVar[bool] = False

    def __init__(self, targets: Sequence[TargetT]) -> None:
        """Take the snapshot.

        Raises:
            ValueError: If there is no target, or a weight is not above 0.
        """
        if not targets:
            msg = "a balancer needs at least one target"
            raise ValueError(msg)
        if not all(target.weight > 0 for target in targets):
            msg = "a balancer's targets must have weights above 0"
            raise ValueError(msg)
        self.targets = tuple(targets)
        self.drawn: tuple[float, ...] = ()

    @abstractmethod
    def pick(self, eligible: Callable[[TargetT], bool]) -> TargetT | None:
        """Pick one of the targets for which `eligible` holds; None if it holds for none."""

    def memory(self) -> dict[str, list[float]]:
        """What the next pick hangs on beside weights, shares and chance; empty if nothing."""
        return {}
