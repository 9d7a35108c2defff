"""`IdempotencyStore`: requests with an idempotency key run once, and their answers are kept.

A second request with the same key and the same fingerprint joins the running one, also in
the middle of its stream, or gets the answer that was kept. Only whole answers are kept: a
failure is told to those who waited for it, and a later request runs anew.

The work of a key is a task of the router, so that no caller's leaving harms the others.
When the last one has left, the work is cancelled; whoever comes with the key before it
has ended waits for that, so that the work of one key never runs twice at the same time.

Bounds. `entries` counts what runs and what is kept; the answer that was not asked for the
longest goes first, and what runs is never evicted. When everything is running, a new key
is served as if it had none. `max_bytes` counts kept answers and the logs of running
streams. One answer may take an eighth of it: a larger one is not kept, and a stream whose
log has no room (left) goes on for its readers, but nobody can join it (409) any more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

import anyio

from engine.answer_stream import ChunkFeed
from engine.config import IdempotencyConfig
from engine.errors import DeadlineExceededError
from engine.idempotency import cannot_join, check_key, fingerprint, key_reused
from engine.operations import Chunk, Replayed, Request, Response
from engine.shared_answer import SharedResponse, SharedWork, Slot, wait_for
from engine.shared_stream import SharedLog, SharedOpening, SharedStream, cost

SHARES = 8
"""One answer takes at most this part of `max_bytes`, so that it cannot evict all others."""

Start = Callable[..., object]
"""Starts a coroutine function with its arguments as a task: a task group's `start_soon`."""

W = TypeVar("W", bound=SharedWork)
T = TypeVar("T")

OpenFeed = Callable[[], AbstractAsyncContextManager[ChunkFeed]]


@dataclass(frozen=True, slots=True)
class IdempotencyStatus:
    """Counts of a store at one instant.

    Attributes:
        entries: Keys that are known, running and kept.
        running: Of those, the ones whose work has not ended.
        bytes: Size of the kept answers and of the running streams' logs.
        joined: Requests that joined a running one, since the start.
        stored: Requests that got a kept answer, since the start.
        evicted: Kept answers that made room for others before their time, since the start.
        unrecorded: Requests served as if they had no key, as all entries were running.
    """

    entries: int
    running: int
    bytes: int
    joined: int
    stored: int
    evicted: int
    unrecorded: int


class IdempotencyStore:
    """Runs the requests of one router that carry an idempotency key.

    Args:
        config: How much is kept, and for how long.
        clock: Monotonic seconds.
        start: Starts a task that ends with the router: its task group's `start_soon`.
        event: Makes an event of the running event loop.
    """

    __slots__ = (
        "_ageing",
        "_clock",
        "_config",
        "_event",
        "_evicted",
        "_joined",
        "_kept",
        "_kept_bytes",
        "_log_bytes",
        "_running",
        "_share",
        "_start",
        "_stored",
        "_unrecorded",
    )

    def __init__(
        self,
        config: IdempotencyConfig,
        *,
        clock: Callable[[], float],
        start: Start,
        event: Callable[[], anyio.Event] = anyio.Event,
    ) -> None:
        self._config = config
        self._share = config.max_bytes // SHARES
        self._clock = clock
        self._start = start
        self._event = event
        self._running: dict[Slot, SharedWork] = {}
        # The same answers twice: by their latest use, and by their age.
        self._kept: OrderedDict[Slot, SharedWork] = OrderedDict()
        self._ageing: OrderedDict[Slot, SharedWork] = OrderedDict()
        self._kept_bytes = 0
        self._log_bytes = 0
        self._joined = 0
        self._stored = 0
        self._evicted = 0
        self._unrecorded = 0

    async def complete(
        self,
        scope: str,
        key: str,
        request: Request,
        run: Callable[[], Awaitable[Response]],
        *,
        deadline: float | None = None,
    ) -> Response:
        """Get a whole answer: by running the request, by joining it, or from the store.

        Args:
            scope: Whose key it is: keys of different scopes have nothing in common.
            key: The idempotency key.
            request: What is asked.
            run: Asks it; called at most once, in a task of the router.
            deadline: When a caller that joins must have been answered, an instant of the
                clock. The first caller waits for what `run` makes of its own deadline.

        Raises:
            InvalidRequestError: If the key is none (400) or was used for another request
                (422).
            DeadlineExceededError: If the deadline passed before the answer was there.
            GatewayError: What `run` raised, for all who waited.
        """
        slot, mark = (scope, check_key(key)), fingerprint(request)
        await self._until_free(slot, deadline)
        shared, replayed = self._find(slot, mark, SharedResponse)
        if shared is None:
            shared = self._begin(slot, mark, SharedResponse, self._answer, run)
        try:
            await self._wait(shared.ended, None if replayed is None else deadline)
            return shared.answer(replayed)
        finally:
            if replayed is not Replayed.STORED:
                shared.leave()

    def stream(
        self,
        scope: str,
        key: str,
        request: Request,
        open: OpenFeed,  # noqa: A002 - what it does
        *,
        deadline: float | None = None,
    ) -> SharedOpening:
        """Get an answer in chunks: by running the request, by joining it, or from the store.

        Entering waits for the first useful event; a reader that joins reads from there on
        its own. Arguments are those of `complete`; `open` is entered at most once, in a
        task of the router.

        Raises:
            InvalidRequestError: On entering, as `complete` does; also if the running stream
                cannot be joined any more (409).
            DeadlineExceededError: On entering, if the deadline passed.
            GatewayError: On entering, what `open` raised.
            StreamTruncatedError: On reading, if the stream broke.
        """

        async def enter() -> SharedStream:
            return await self._enter(scope, key, request, open, deadline)

        return SharedOpening(enter)

    def apply(self, config: IdempotencyConfig) -> None:
        """Go by another configuration from now on; what it has no room for is evicted."""
        self._config = config
        self._share = config.max_bytes // SHARES
        latest = self._clock() + config.ttl
        for shared in self._kept.values():
            shared.expires = min(shared.expires, latest)
        while self._kept and (
            len(self._running) + len(self._kept) > config.entries
            or self._kept_bytes + self._log_bytes > config.max_bytes
        ):
            self._evict()

    def status(self) -> IdempotencyStatus:
        """The counts now."""
        self._expire()
        return IdempotencyStatus(
            entries=len(self._running) + len(self._kept),
            running=len(self._running),
            bytes=self._kept_bytes + self._log_bytes,
            joined=self._joined,
            stored=self._stored,
            evicted=self._evicted,
            unrecorded=self._unrecorded,
        )

    # ── callers ──────────────────────────────────────────────────────────────────

    async def _enter(
        self, scope: str, key: str, request: Request, open_feed: OpenFeed, deadline: float | None
    ) -> SharedStream:
        slot, mark = (scope, check_key(key)), fingerprint(request)
        await self._until_free(slot, deadline)
        log, replayed = self._find(slot, mark, SharedLog)
        if log is None:
            log = self._begin(slot, mark, SharedLog, self._copy, open_feed)
        if replayed is None:
            deadline = None
        try:
            await self._until_opened(log, deadline)
        except BaseException:
            log.leave()
            raise
        leave = _stay if replayed is Replayed.STORED else log.leave
        return SharedStream(
            log, replayed=replayed, leave=leave, deadline=deadline, clock=self._clock
        )

    async def _until_opened(self, log: SharedLog, deadline: float | None) -> None:
        while not log.opened:
            log.raise_failure()
            if not await log.changed(deadline, self._clock):
                raise _too_late()

    async def _until_free(self, slot: Slot, deadline: float | None) -> None:
        """Wait for the end of work that nobody wanted any more."""
        while (running := self._running.get(slot)) is not None and running.abandoned:
            await self._wait(running.ended, deadline)

    async def _wait(self, event: anyio.Event, deadline: float | None) -> None:
        if not await wait_for(event, deadline, self._clock):
            raise _too_late()

    def _find(self, slot: Slot, mark: bytes, kind: type[W]) -> tuple[W | None, Replayed | None]:
        """What is there for a key, and how it is given.

        Raises:
            InvalidRequestError: If the key was used for another request, or is running and
                cannot be joined any more.
        """
        self._expire()
        found = self._kept.get(slot) or self._running.get(slot)
        if found is None:
            return None, None
        if found.fingerprint != mark:
            raise key_reused()
        # Whether it streams is a part of the fingerprint.
        assert isinstance(found, kind)
        if slot in self._kept:
            self._kept.move_to_end(slot)
            self._stored += 1
            return found, Replayed.STORED
        if not found.joinable:
            raise cannot_join()
        found.waiting += 1
        self._joined += 1
        return found, Replayed.JOINED

    def _begin(
        self, slot: Slot, mark: bytes, kind: type[W], do: Callable[[W, T], Awaitable[None]], what: T
    ) -> W:
        shared = kind(slot, mark, recorded=self._make_place(), event=self._event)
        self._start(self._work, shared, do, what)
        if shared.recorded:
            self._running[slot] = shared
        return shared

    # ── work ─────────────────────────────────────────────────────────────────────

    async def _work(self, shared: W, do: Callable[[W, T], Awaitable[None]], what: T) -> None:
        """Run the work of one key to its end, as a task of the router."""
        try:
            if not shared.abandoned:
                with shared.scope:
                    await do(shared, what)
        except anyio.get_cancelled_exc_class():
            shared.close()
            raise
        except Exception as error:  # noqa: BLE001 - the border: it is raised again where it is waited for
            shared.fail(error)
        except BaseException:
            # It takes the router down, and with it whoever could tell them later.
            shared.close()
            raise
        finally:
            self._end(shared)

    async def _answer(self, shared: SharedResponse, run: Callable[[], Awaitable[Response]]) -> None:
        shared.put(await run())

    async def _copy(self, log: SharedLog, open_feed: OpenFeed) -> None:
        """Copy a stream into its log, no faster than the fastest reader reads."""
        async with open_feed() as feed:
            log.open(feed)
            async for chunk in feed:
                self._record(log, [chunk, *feed.ready()])
                log.usage = feed.usage
                await log.wanted()
            log.usage = feed.usage
            log.finish()

    def _record(self, log: SharedLog, chunks: list[Chunk]) -> None:
        if log.joinable:
            size = sum(map(cost, chunks))
            if log.size + size <= self._share and self._fits(size):
                log.size += size
                self._log_bytes += size
            else:
                self._log_bytes -= log.size
                log.give_up()
        log.append(chunks)

    def _end(self, shared: SharedWork) -> None:
        if shared.recorded:
            del self._running[shared.slot]
            self._log_bytes -= shared.size
            weight = shared.weight if shared.succeeded else None
            if weight is not None and weight <= self._share and self._fits(weight):
                self._keep(shared, weight)
        shared.end()

    # ── what is kept ─────────────────────────────────────────────────────────────

    def _keep(self, shared: SharedWork, weight: int) -> None:
        shared.size = weight
        shared.expires = self._clock() + self._config.ttl
        self._kept_bytes += weight
        self._kept[shared.slot] = self._ageing[shared.slot] = shared
        shared.keep()

    def _drop(self, slot: Slot) -> None:
        self._kept_bytes -= self._kept.pop(slot).size
        del self._ageing[slot]

    def _expire(self) -> None:
        now = self._clock()
        while self._ageing:
            slot, oldest = next(iter(self._ageing.items()))
            if oldest.expires > now:
                return
            self._drop(slot)

    def _evict(self) -> None:
        self._drop(next(iter(self._kept)))
        self._evicted += 1

    def _make_place(self) -> bool:
        """Make room for one more key; False if everything that is known is running."""
        while len(self._running) + len(self._kept) >= self._config.entries:
            if not self._kept:
                self._unrecorded += 1
                return False
            self._evict()
        return True

    def _fits(self, size: int) -> bool:
        """Make room for more bytes; False if the running streams leave none."""
        if self._log_bytes + size > self._config.max_bytes:
            return False
        while self._kept_bytes + self._log_bytes + size > self._config.max_bytes:
            self._evict()
        return True

    def __repr__(self) -> str:
        # Keys are the callers' own and may say more than they know: they stay out.
        return f"IdempotencyStore({len(self._running)} running, {len(self._kept)} kept)"


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError(
        "the request's deadline passed while another one with its idempotency key was running"
    )


def _stay() -> None:
    """Nobody waits for an answer that is kept, so nobody leaves it."""
