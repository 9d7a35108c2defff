"""`Supervisor`: starts the actors, restarts those that crash, and stops them.

One for one, as in OTP: a crash concerns no other actor. Only crashes come here, which
are bugs; a provider's failure is an answer and stays inside its actor. Actors come and go
with the configuration: one that is added runs until it is retired.
"""

from __future__ import annotations

import contextvars
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import anyio

from engine.actor import ProviderActor
from engine.status import ActorState

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

logger = logging.getLogger("engine.supervisor")

INTENSITY = 5
PERIOD = 30.0
"""More than 5 crashes within 30 s and the actor is taken down for a while. OTP's default
of 1 in 5 s suits processes that share state; here a burst of poisoned requests may crash
an actor several times although the provider is well."""

DOWN_FOR = 60.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class _Life:
    """The task that keeps one actor alive: how to end it, and whether it has ended."""

    __slots__ = ("ended", "scope")

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()


class RestartIntensity:
    """Counts the crashes of one actor, and says when it crashes too often.

    An actor that was down for that is on trial: one more crash takes it down again, until
    it has served for `PERIOD` without one.
    """

    def __init__(self) -> None:
        self._crashes: deque[float] = deque(maxlen=INTENSITY)
        self._on_trial = False

    def crashed(self, now: float, *, served: float) -> bool:
        """Count a crash; True if the actor must be taken down.

        Args:
            now: When it crashed, an instant of the router's clock.
            served: How long it had run, seconds.
        """
        if served >= PERIOD:
            self._on_trial = False
        in_full = len(self._crashes) == INTENSITY
        too_often = self._on_trial or (in_full and now - self._crashes[0] < PERIOD)
        self._crashes.append(now)
        self._on_trial = too_often or self._on_trial
        return too_often

    def recent(self, now: float) -> int:
        """Crashes within the last `PERIOD`, at most `INTENSITY`."""
        return sum(1 for at in self._crashes if now - at < PERIOD)


class Supervisor:
    """Keeps actors alive.

    Args:
        actors: The actors to begin with, which nobody else runs.
        clock: The router's clock.
        rng: Source of the jitter of the pauses between restarts.
    """

    def __init__(
        self,
        actors: Iterable[ProviderActor],
        *,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._lives = {actor: _Life() for actor in actors}
        self._clock = clock
        self._rng = rng
        self._group: TaskGroup | None = None
        self._stopped = False

    async def run(self) -> None:
        """Run all actors until cancelled; then answer whatever they still hold."""
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                for actor, life in self._lives.items():
                    self._start(actor, life)
                # The group stays open for those that are added later.
                await anyio.sleep_forever()
        finally:
            self.stop()

    def add(self, actor: ProviderActor) -> None:
        """Run one more actor; one that comes after the end is stopped at once."""
        if self._stopped:
            actor.stop(ActorState.STOPPED)
            return
        life = self._lives[actor] = _Life()
        if self._group is not None:
            self._start(actor, life)

    async def retire(self, actor: ProviderActor) -> None:
        """Stop one actor for good, and wait until its tasks have ended.

        What it still holds is answered with an error that says so. Actors that are not
        run here (any more) are passed over.
        """
        life = self._lives.get(actor)
        if life is None:
            return
        # First the reason, then the cancellation: whoever is answered by it is told why.
        actor.stop(ActorState.RETIRED)
        if self._group is not None:
            life.scope.cancel()
            await life.ended.wait()
            # A last crash, or a start that was under way, may have had the last word.
            actor.stop(ActorState.STOPPED if self._stopped else ActorState.RETIRED)
        self._lives.pop(actor, None)

    def stop(self) -> None:
        """Tell every actor that it is over, the last one first."""
        self._stopped = True
        for actor in reversed(self._lives):
            actor.stop(ActorState.STOPPED)

    def _start(self, actor: ProviderActor, life: _Life) -> None:
        assert self._group is not None
        # In an empty context: an actor outlives whoever happened to add it, and must not
        # carry that task's trace and variables.
        contextvars.Context().run(self._group.start_soon, self._live, actor, life)

    async def _live(self, actor: ProviderActor, life: _Life) -> None:
        try:
            with life.scope:
                await self._keep_alive(actor)
        finally:
            life.ended.set()

    async def _keep_alive(self, actor: ProviderActor) -> None:
        intensity = RestartIntensity()
        while True:
            started = self._clock()
            try:
                await actor.run()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as crash:
                if _ends_the_process(crash):
                    raise
                _log_crash(actor, crash)
            now = self._clock()
            down = intensity.crashed(now, served=now - started)
            actor.stop(ActorState.DOWN if down else ActorState.RESTARTING)
            await anyio.sleep(DOWN_FOR if down else self._pause(intensity.recent(now)))
            actor.restarts += 1

    def _pause(self, crashes: int) -> float:
        # OTP restarts at once and at the same instant everywhere; half of the pause is
        # jitter, so that many actors that share one cause do not return together.
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (crashes - 1))
        return pause * self._rng.uniform(0.5, 1.0)


def _ends_the_process(crash: BaseException) -> bool:
    if isinstance(crash, BaseExceptionGroup):
        return any(map(_ends_the_process, crash.exceptions))
    return isinstance(crash, KeyboardInterrupt)


def _log_crash(actor: ProviderActor, crash: BaseException) -> None:
    while isinstance(crash, BaseExceptionGroup) and len(crash.exceptions) == 1:
        crash = crash.exceptions[0]
    # The type and the place, never the text: it may hold what a caller wrote.
    trace = crash.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace else "unknown"
    logger.error("actor %s crashed: %s at %s", actor.name, type(crash).__name__, place)
