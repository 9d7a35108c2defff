"""Whoever comes with a key, leaves, and fails: the work of a key runs once at a time."""

from __future__ import annotations

import contextlib
import json
import random
from collections import Counter
from types import TracebackType
from typing import Self

import anyio
import pytest
import trio
import trio.testing

from engine import (
    BrokenError,
    ChatRequest,
    Chunk,
    DeadlineExceededError,
    GatewayError,
    InvalidRequestError,
    Response,
    StreamTruncatedError,
    Usage,
)
from engine.config import IdempotencyConfig
from engine.idempotency_store import IdempotencyStore
from engine.operations import Replayed
from engine.shared_stream import SharedStream

KEYS = "abcde"
TTL = 20.0
PAUSES = (0, 0.1, 1, 5)
ENDINGS = {
    "ran", "joined", "stored", "left", "BrokenError", "StreamTruncatedError",
    "DeadlineExceededError", "422 idempotency_key_reused", "409 idempotency_in_progress",
}  # fmt: skip
"""All of them must be met, or the schedules prove too little."""


class Upstream:
    """Answers anything, after a while, with a text of its own each time."""

    def __init__(self, rng: random.Random, pauses: tuple[float, ...]) -> None:
        self.rng = rng
        self.pauses = pauses
        self.running: Counter[str] = Counter()
        self.calls = 0
        self.answers: dict[str, bytes | list[bytes]] = {}
        self.ended: dict[str, float] = {}

    async def pause(self) -> None:
        await anyio.sleep(self.rng.choice(self.pauses))

    async def clean_up(self) -> None:
        if self.rng.random() < 0.2:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.rng.choice([0.1, 2]))


class Run:
    """One call for a whole answer."""

    def __init__(self, upstream: Upstream, key: str) -> None:
        self.upstream, self.key = upstream, key

    async def __call__(self) -> Response:
        up = self.upstream
        up.calls += 1
        up.running[self.key] += 1
        name = f"{self.key}-{up.calls}"
        try:
            await up.pause()
            if up.rng.random() < 0.2:
                raise BrokenError(name)
            body = {"text": name + "x" * up.rng.choice([1, 100, 2_000])}
            response = Response(body, json.dumps(body).encode())
            response.request_id = name
            up.answers[name] = response.raw or b""
            return response
        finally:
            await up.clean_up()
            up.running[self.key] -= 1
            up.ended[name] = anyio.current_time()


class Feed:
    """One call for a stream."""

    provider = "a"
    attempts = 1
    fallbacks: tuple[str, ...] = ()
    upstream_seconds = 0.0
    usage: Usage | None = None

    def __init__(self, upstream: Upstream, key: str) -> None:
        self.upstream, self.key = upstream, key
        self.request_id = ""
        self.sent: list[bytes] = []
        self.left = upstream.rng.randint(1, 6)
        self.held: list[Chunk] = []

    async def __aenter__(self) -> Self:
        up = self.upstream
        up.calls += 1
        up.running[self.key] += 1
        self.request_id = f"{self.key}-{up.calls}"
        up.answers[self.request_id] = self.sent
        try:
            await up.pause()
            if up.rng.random() < 0.1:
                raise BrokenError(self.request_id)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.upstream.clean_up()
        self.upstream.running[self.key] -= 1
        self.upstream.ended[self.request_id] = anyio.current_time()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        await self.upstream.pause()
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        rng = self.upstream.rng
        if rng.random() < 0.05:
            raise StreamTruncatedError("cut")
        size = rng.choice([1, 300, 3_000, 30_000])
        batch = [rng.randbytes(size) for _ in range(rng.randint(1, 4))]
        self.sent += batch
        first, *self.held = map(Chunk, batch)
        return first

    def ready(self) -> list[Chunk]:
        held, self.held = self.held, []
        return held


class Scenario:
    """A store with little room, and callers that come, join and leave at random."""

    def __init__(self, seed: int, group: trio.Nursery, pauses: tuple[float, ...] = PAUSES) -> None:
        self.rng = random.Random(seed)
        self.upstream = Upstream(self.rng, pauses)
        self.config = IdempotencyConfig(
            ttl=TTL,
            entries=self.rng.choice([1, 2, 3, 10]),
            max_bytes=self.rng.choice([2_000, 20_000, 500_000]),
        )
        self.store = IdempotencyStore(self.config, clock=anyio.current_time, start=group.start_soon)
        self.seen: Counter[str] = Counter()

    def check(self) -> None:
        status = self.store.status()
        assert 0 <= status.running <= status.entries <= self.config.entries
        assert 0 <= status.bytes <= self.config.max_bytes
        if not status.unrecorded:
            assert all(count <= 1 for count in self.upstream.running.values())

    async def caller(self) -> None:
        rng = self.rng
        await anyio.sleep(rng.uniform(0, 60))
        key = rng.choice(KEYS)
        # Most keys belong to one kind of request; some callers get that wrong.
        streamed = (key in "abc") is (rng.random() < 0.95)
        request = ChatRequest("m", [{"role": "user", "content": key}], stream=streamed)
        deadline = rng.choice([None, anyio.current_time() + 4])
        self.check()
        with anyio.move_on_after(rng.choice([1, 8, 8, 1_000])) as patience:
            try:
                if streamed:
                    await self.read(key, request, deadline)
                else:
                    await self.complete(key, request, deadline)
            except InvalidRequestError as error:
                self.seen[f"{error.status} {error.code}"] += 1
            except (BrokenError, DeadlineExceededError, StreamTruncatedError) as error:
                if error.__cause__ is not None:
                    # What a provider did has no cause here: it is a bug of the store.
                    raise
                self.seen[type(error).__name__] += 1
        if patience.cancelled_caught:
            self.seen["left"] += 1
        self.check()

    async def complete(self, key: str, request: ChatRequest, deadline: float | None) -> None:
        run = Run(self.upstream, key)
        answer = await self.store.complete("", key, request, run, deadline=deadline)
        assert answer.raw == self.upstream.answers[answer.request_id]
        self.note(answer)

    async def read(self, key: str, request: ChatRequest, deadline: float | None) -> None:
        def open_feed() -> Feed:
            return Feed(self.upstream, key)

        got: list[bytes] = []
        slow = self.rng.choice(self.upstream.pauses)
        async with self.store.stream("", key, request, open_feed, deadline=deadline) as stream:
            sent = self.upstream.answers[stream.request_id]
            try:
                async for chunk in stream:
                    got.append(chunk.data)
                    if self.rng.random() < 0.5:
                        got += [more.data for more in stream.ready()]
                    self.check()
                    await anyio.sleep(slow)
            finally:
                # Whatever happened, it is the beginning of what the provider sent.
                assert got == sent[: len(got)]
            assert got == sent
            self.note(stream)

    def note(self, answer: Response | SharedStream) -> None:
        self.seen[answer.replayed or "ran"] += 1
        if answer.replayed is Replayed.STORED and isinstance(answer, Response):
            assert anyio.current_time() - self.upstream.ended[answer.request_id] <= TTL


async def play(seed: int, seen: Counter[str]) -> None:
    async with trio.open_nursery() as group:
        scenario = Scenario(seed, group)
        async with trio.open_nursery() as callers:
            for _ in range(40):
                callers.start_soon(scenario.caller)
        # Whoever has left leaves nothing that runs on.
        await anyio.sleep(30)
        assert scenario.store.status().running == 0
        assert not any(scenario.upstream.running.values())
        assert scenario.store.status().entries == scenario.store.status().bytes == 0
        seen.update(scenario.seen)


def test_random_schedules_keep_every_promise() -> None:
    """Once at a time, the same bytes for all, within the bounds, and nothing left behind."""
    seen: Counter[str] = Counter()
    for seed in range(80):
        try:
            trio.run(play, seed, seen, clock=trio.testing.MockClock(autojump_threshold=0))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert set(seen) == ENDINGS


@pytest.mark.parametrize("streamed", [False, True])
def test_cancelled_at_any_step(streamed: bool) -> None:
    """A caller that leaves at any turn of the loop leaves nothing, and harms nobody."""

    async def main(steps: int) -> bool:
        async with trio.open_nursery() as group:
            scenario = Scenario(1, group, pauses=(0,))
            request = ChatRequest("m", [], stream=streamed)
            ask = scenario.read if streamed else scenario.complete
            done = False

            async def leaves(scope: anyio.CancelScope) -> None:
                nonlocal done
                with scope:
                    with contextlib.suppress(GatewayError):
                        await ask("a", request, None)
                    done = True

            scope = anyio.CancelScope()
            group.start_soon(leaves, scope)
            for _ in range(steps):
                await trio.lowlevel.checkpoint()
            scope.cancel()
            finished = done
            await anyio.sleep(10)
            assert scenario.store.status().running == 0
            assert not any(scenario.upstream.running.values())
            return finished

    for steps in range(1_000):
        clock = trio.testing.MockClock(autojump_threshold=0)
        if trio.run(main, steps, clock=clock):
            return
    pytest.fail("the call never ended")
