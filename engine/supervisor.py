"""`Supervisor`: starts the actors, restarts those that crash, and stops them all.

One for one, as in OTP: a crash concerns no other actor. Only crashes come here, which
are bugs; a provider's failure is an answer and stays inside its actor.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Iterable

import anyio

from engine.actor import ProviderActor
from engine.status import ActorState

logger = logging.getLogger("engine.supervisor")

INTENSITY = 5
PERIOD = 30.0
"""More than 5 crashes within 30 s and the actor is taken down for a while. OTP's default
of 1 in 5 s suits processes that share state; here a burst of poisoned requests may crash
an actor several times although the provider is well."""

DOWN_FOR = 60.0
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0


class Supervisor:
    """Keeps actors alive.

    Args:
        actors: The actors, which nobody else runs.
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
        self._actors = list(actors)
        self._clock = clock
        self._rng = rng

    async def run(self) -> None:
        """Run all actors until cancelled; then answer whatever they still hold."""
        try:
            async with anyio.create_task_group() as group:
                for actor in self._actors:
                    group.start_soon(self._keep_alive, actor)
        finally:
            self.stop()

    def stop(self) -> None:
        """Tell every actor that it is over, the last one first."""
        for actor in reversed(self._actors):
            actor.stop(ActorState.STOPPED)

    async def _keep_alive(self, actor: ProviderActor) -> None:
        crashes: deque[float] = deque(maxlen=INTENSITY)
        while True:
            try:
                await actor.run()
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as crash:
                if _ends_the_process(crash):
                    raise
                _log_crash(actor, crash)
            now = self._clock()
            too_often = len(crashes) == INTENSITY and now - crashes[0] < PERIOD
            crashes.append(now)
            actor.stop(ActorState.DOWN if too_often else ActorState.RESTARTING)
            recent = sum(1 for at in crashes if now - at < PERIOD)
            await anyio.sleep(DOWN_FOR if too_often else self._pause(recent))
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
