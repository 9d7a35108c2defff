"""The load of the soak: what callers do, and how the providers behave."""

from __future__ import annotations

import random

import anyio

from benchmarks.caller import Answer, Caller, Ending, Tally
from benchmarks.scripted_upstream import (
    Behaviour,
    Exchange,
    cut,
    html,
    reset,
    status,
    well,
)
from benchmarks.wire import request_body, request_message

CALLERS = 12
PAUSE = 0.25
"""Seconds between two requests of a caller, on average: some 40 requests a second in all."""

FAILING = 0.2
SLOW = 0.1
CUT = 0.05
LEAVING = 0.1
KEYED = 0.1
STREAMED = 0.4
LONGEST_STAY = 0.08
"""Seconds after which a caller that leaves has left."""


def lively(rng: random.Random) -> Behaviour:
    """A provider that is well: some milliseconds, and streams that take their time."""
    quick = [well(latency=0.002 * number, gap=0.001 * number) for number in range(5)]

    async def behave(exchange: Exchange) -> None:
        await rng.choice(quick)(exchange)

    return behave


def shaky(rng: random.Random) -> Behaviour:
    """A provider of whose answers a fifth fails, some are slow, and some are cut in the middle."""
    failures = (
        status("500 Internal Server Error"),
        status("503 Service Unavailable"),
        status("429 Too Many Requests"),
        reset,
        html,
    )
    slow, otherwise = well(latency=0.5, gap=0.02), lively(rng)

    async def behave(exchange: Exchange) -> None:
        drawn = rng.random()
        if drawn < FAILING:
            await rng.choice(failures)(exchange)
        elif drawn < FAILING + SLOW:
            await slow(exchange)
        elif drawn < FAILING + SLOW + CUT:
            await cut(exchange)
        else:
            await otherwise(exchange)

    return behave


class Crowd:
    """Callers that ask, leave, and ask twice with one idempotency key; they can be paused.

    Args:
        port: Where they ask.
        seed: Of everything that is left to chance.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.tally = Tally()
        self.unlike = 0
        self._port = port
        self._rng = random.Random(seed)
        self._present = 0
        self._keys = 0
        self._go = anyio.Event()
        self._go.set()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with anyio.create_task_group() as group:
            for _ in range(CALLERS):
                group.start_soon(self._come_and_go)

    def pause(self) -> None:
        """Begin no further request."""
        self._go = anyio.Event()

    def resume(self) -> None:
        """Go on."""
        self._go.set()

    @property
    def resting(self) -> bool:
        """Whether nobody waits for anything, or has a connection."""
        return not self._present

    async def _come_and_go(self) -> None:
        while True:
            self._present += 1
            # Connections are closed in a pause, so that none is left that we know of.
            async with Caller(self._port) as caller:
                while self._go.is_set():
                    await self._act(caller)
                    await anyio.sleep(self._rng.expovariate(1 / PAUSE))
            self._present -= 1
            await self._go.wait()

    async def _act(self, caller: Caller) -> None:
        drawn = self._rng.random()
        streamed = self._rng.random() < STREAMED
        if drawn < LEAVING:
            await self._leave(caller, streamed=streamed)
        elif drawn < LEAVING + KEYED:
            await self._ask_thrice(streamed=streamed)
        else:
            await self._ask(caller, streamed=streamed)

    async def _ask(self, caller: Caller, *fields: tuple[str, str], streamed: bool) -> Answer | None:
        message = request_message(self._port, request_body(streamed=streamed), *fields)
        answer = await caller.ask(message)
        if answer is not None:
            self.tally.count(answer, streamed=streamed)
        return answer

    async def _leave(self, caller: Caller, *, streamed: bool) -> None:
        message = request_message(self._port, request_body(streamed=streamed))
        if await caller.send(message):
            self.tally.left += 1
            await anyio.sleep(self._rng.uniform(0, LONGEST_STAY))
        await caller.leave()

    async def _ask_thrice(self, *, streamed: bool) -> None:
        """Ask with one key: twice at the same time, and once more when both have answers."""
        self._keys += 1
        key = ("idempotency-key", f"soak-{self._keys}")
        answers: list[Answer | None] = []

        async def ask() -> None:
            async with Caller(self._port) as caller:
                answers.append(await self._ask(caller, key, streamed=streamed))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            group.start_soon(ask)
        await ask()
        # An answer is kept; a failure is not, and the next one with the key begins anew.
        right = {
            answer.body
            for answer in answers
            if answer is not None and answer.ending is Ending.RIGHT and not answer.streamed
        }
        self.unlike += len(right) > 1
