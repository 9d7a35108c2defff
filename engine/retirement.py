"""`Retirement`: lets actors that left the configuration finish, then stops and closes them.

An actor may still be wanted as long as a request is open that was accepted while it was
part of the configuration: that request may be in its mailbox, in its hands, or about to
come for its next attempt. When the last of these has ended, nobody can reach the actor any
more, and its provider can be closed without a look back. A request that does not end in
time is cut off at the drain limit.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from engine.actor import ProviderActor
from engine.ledger import Ledger
from engine.model_catalogue import ModelCatalogue
from engine.provider_lifetime import ProviderPool
from engine.request_run import RequestRun
from engine.supervisor import Supervisor

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger("engine.router")

LOOK_EVERY = 0.05
"""Seconds between two looks at what is still open, while anything retires: one pass over
the open requests, 0.1 ms for a thousand of them. Requests need not count themselves for it."""

LARGEST = 64
"""Changes whose actors may be finishing at the same time; the next change waits."""

PATIENCE = 1.0
"""Seconds that a change waits for room before actors are let go that have nothing in hand,
although an older request could still come to them for another attempt."""


@dataclass(frozen=True, slots=True, eq=False)
class _Leaving:
    """The actors that one change has left without work to come.

    Attributes:
        actors: The actors.
        successor: Number of the first generation that they are no part of.
        until: Instant at which what is left is cut off.
    """

    actors: Sequence[ProviderActor]
    successor: int
    until: float

    @property
    def idle(self) -> bool:
        return not any(actor.in_flight or len(actor.mailbox) for actor in self.actors)


def oldest_generation(ledger: Ledger) -> float:
    """Number of the oldest generation that an open request has; infinity if there is none."""
    runs = (entry for entry in ledger.entries() if isinstance(entry, RequestRun))
    return min((run.generation.number for run in runs), default=math.inf)


class Retirement:
    """Drains the actors that left the configuration.

    Args:
        supervisor: Runs the actors.
        pool: Closes their providers.
        catalogue: May be asking a provider for its models, which must not be closed then.
        clock: The router's clock.
        ledger: Knows the open requests.
    """

    def __init__(
        self,
        *,
        supervisor: Supervisor,
        pool: ProviderPool,
        catalogue: ModelCatalogue,
        clock: Callable[[], float],
        ledger: Ledger,
    ) -> None:
        self._supervisor = supervisor
        self._pool = pool
        self._catalogue = catalogue
        self._clock = clock
        self._ledger = ledger
        self._leaving: list[_Leaving] = []
        self._ending = 0
        self._pressed = False
        self._wanted = anyio.Event()

    @property
    def has_room(self) -> bool:
        """Whether one more change may leave actors behind."""
        return len(self._leaving) + self._ending < LARGEST

    def add(self, actors: Sequence[ProviderActor], *, successor: int, limit: float) -> None:
        """Let actors finish; never waits.

        Args:
            actors: They are in no plan of the current generation.
            successor: Number of the first generation that they are no part of.
            limit: Seconds after which what they still hold is cut off.
        """
        if actors:
            self._leaving.append(_Leaving(actors, successor, self._clock() + limit))
            self._wanted.set()

    async def wait_for_room(self, limit: float) -> bool:
        """Wait until one more change may leave actors behind.

        Returns:
            Whether it may, within `limit` seconds.
        """
        start = self._clock()
        try:
            while not self.has_room and (waited := self._clock() - start) < limit:
                self._pressed = waited >= PATIENCE
                await anyio.sleep(LOOK_EVERY)
        finally:
            self._pressed = False
        return self.has_room

    async def run(self) -> None:
        """Watch over those that leave, until cancelled."""
        async with anyio.create_task_group() as group:
            while True:
                while self._leaving:
                    self._look(group)
                    await anyio.sleep(self._pause())
                self._wanted = anyio.Event()
                await self._wanted.wait()

    def _pause(self) -> float:
        soonest = min((each.until for each in self._leaving), default=math.inf)
        return max(0.0, min(LOOK_EVERY, soonest - self._clock()))

    def _look(self, group: TaskGroup) -> None:
        now, oldest = self._clock(), oldest_generation(self._ledger)
        staying = []
        for each in self._leaving:
            done = each.idle and (each.successor <= oldest or self._pressed)
            if done or now >= each.until:
                self._ending += 1
                group.start_soon(self._end, each)
            else:
                staying.append(each)
        self._leaving = staying

    async def _end(self, leaving: _Leaving) -> None:
        try:
            async with anyio.create_task_group() as group:
                for actor in leaving.actors:
                    group.start_soon(self._end_actor, actor)
        finally:
            self._ending -= 1

    async def _end_actor(self, actor: ProviderActor) -> None:
        if cut := actor.in_flight + len(actor.mailbox):
            logger.warning(
                "provider %s left the configuration: %d requests there were cut off at the "
                "drain limit", actor.name, cut,
            )  # fmt: skip
        await self._supervisor.retire(actor)
        while self._catalogue.asks(actor.provider):  # noqa: ASYNC110 - 5 s at most, and rarely
            await anyio.sleep(LOOK_EVERY)
        await self._pool.close([actor.provider])
