"""`SharedLog` and `SharedStream`: one streamed answer, read by several from its beginning.

The work writes what comes from upstream into a log, each reader reads the log at its own
speed. The work reads on when the fastest reader has taken all there is, so back-pressure
reaches the upstream. While the whole log is held, others may join. Once it has outgrown
its share of the store nobody can, and only a window of it is held: enough for readers
that keep pace, and a reader that has fallen out of it is cut.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import anyio
import anyio.lowlevel

from engine.answer_stream import ChunkFeed
from engine.errors import StreamTruncatedError
from engine.operations import Chunk, Replayed, Usage
from engine.shared_answer import CLOSING, SharedWork, Slot, wait_for

CHUNK_COST = 100
"""Bytes that Python takes for a chunk beside its data; it bounds streams of empty chunks."""

WINDOW_BYTES = 65_536
"""What is held of a log that has outgrown its share: as much as a stream of its own holds."""

READY_CHUNKS = 64
"""Chunks that are taken at once, and after how many a reader gives others a turn."""


def cost(chunk: Chunk) -> int:
    """Bytes that a chunk takes in a log."""
    return len(chunk.data) + CHUNK_COST


class SharedLog(SharedWork):
    """The chunks of one answer that came so far.

    Attributes:
        provider: Name of the provider that answers.
        attempts: How many upstream calls it took.
        request_id: The id of the request that was sent upstream.
        upstream_seconds: Time spent upstream until the first useful event.
        fallbacks: Other models that were asked because the one asked for could not answer.
        usage: Tokens as the provider counted them, once it has said so.
        opened: Whether the first useful event has come.
        complete: Whether the provider said that the answer is complete.
        base: Index of the first chunk that is still held.
    """

    __slots__ = (
        "_changed",
        "_chunks",
        "_event",
        "_front",
        "_held",
        "_hungry",
        "_whole",
        "attempts",
        "base",
        "complete",
        "fallbacks",
        "opened",
        "provider",
        "request_id",
        "upstream_seconds",
        "usage",
    )

    def __init__(
        self, slot: Slot, fingerprint: bytes, *, recorded: bool, event: Callable[[], anyio.Event]
    ) -> None:
        super().__init__(slot, fingerprint, recorded=recorded, event=event)
        self._event = event
        self._chunks: list[Chunk] = []
        self._held = 0
        self._front = 0
        self._whole = recorded
        self._changed: anyio.Event | None = None
        self._hungry: anyio.Event | None = None
        self.base = 0
        self.provider = ""
        self.attempts = 0
        self.request_id = ""
        self.upstream_seconds = 0.0
        self.fallbacks: tuple[str, ...] = ()
        self.usage: Usage | None = None
        self.opened = False
        self.complete = False

    @property
    def joinable(self) -> bool:
        """Whether the log is held from its first chunk on, and will be kept."""
        return self._whole

    @property
    def succeeded(self) -> bool:
        """Whether the whole answer is here."""
        return self.complete

    @property
    def weight(self) -> int | None:
        """Bytes that it takes to keep the answer, or None if it cannot be kept."""
        return self.size if self._whole else None

    @property
    def length(self) -> int:
        """Chunks that came so far, those that are not held any more included."""
        return self.base + len(self._chunks)

    # ── the side of the work ─────────────────────────────────────────────────────

    def open(self, feed: ChunkFeed) -> None:
        """Note that the first useful event has come, and from whom."""
        self.provider, self.request_id = feed.provider, feed.request_id
        self.attempts, self.upstream_seconds = feed.attempts, feed.upstream_seconds
        self.fallbacks = feed.fallbacks
        self.opened = True
        self._wake()

    def append(self, chunks: list[Chunk]) -> None:
        """Give chunks to the readers."""
        # What an adapter parsed is left behind: it weighs more than the data.
        self._chunks += [Chunk(chunk.data, commits=chunk.commits) for chunk in chunks]
        self._held += sum(map(cost, chunks))
        if not self._whole:
            self._trim()
        self._wake()

    def give_up(self) -> None:
        """Hold no more than the window from now on; nobody can join any more."""
        self._whole = False
        self.size = 0
        self._trim()

    async def wanted(self) -> None:
        """Wait until the fastest reader has taken everything that is here."""
        while self._front < self.length:
            self._hungry = self._event()
            await self._hungry.wait()

    def finish(self) -> None:
        """Note that the answer is complete."""
        self.complete = True
        self._wake()

    def fail(self, error: BaseException) -> None:
        """Note why there is no (whole) answer; once it has begun, it is truncated."""
        if self.opened and not isinstance(error, StreamTruncatedError):
            cause, error = error, self.broken(f"the gateway met {type(error).__name__}")
            error.__cause__ = cause
        super().fail(error)
        self._wake()

    def close(self) -> None:
        """Tell all who wait that the router goes away."""
        if self.opened:
            self.fail(self.broken(CLOSING))
        else:
            super().close()

    def end(self) -> None:
        """Say that nothing of it runs any more."""
        super().end()
        self._wake()

    def broken(self, message: str) -> StreamTruncatedError:
        """The error of a reader whose stream breaks off."""
        return StreamTruncatedError(
            f"the stream from provider {self.provider!r} broke off: {message}",
            provider=self.provider,
        )

    def _trim(self) -> None:
        """Forget what the fastest reader has taken and the window has no room for."""
        drop = 0
        while drop < self._front - self.base:
            size = cost(self._chunks[drop])
            if self._held - size < WINDOW_BYTES:
                break
            self._held -= size
            drop += 1
        del self._chunks[:drop]
        self.base += drop

    # ── the side of the readers ──────────────────────────────────────────────────

    def read(self, position: int, count: int) -> list[Chunk]:
        """The next chunks for the reader that has read up to `position`."""
        start = position - self.base
        found = self._chunks[start : start + count]
        end = position + len(found)
        if end > self._front:
            self._front = end
            if self._hungry is not None and end == self.length:
                self._hungry.set()
                self._hungry = None
        # A chunk each: a reader that looks into it parses its own.
        return [Chunk(chunk.data, commits=chunk.commits) for chunk in found]

    async def changed(self, deadline: float | None, clock: Callable[[], float]) -> bool:
        """Wait for the next change, at most until a deadline; tells whether it came."""
        if self._changed is None:
            self._changed = self._event()
        return await wait_for(self._changed, deadline, clock)

    def wake(self) -> None:
        """Let every reader look again."""
        self._wake()

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None


class SharedStream:
    """One reader of a shared log: `async for chunk in stream`, as of a `ResponseStream`.

    Attributes:
        provider: Name of the provider that answers.
        attempts: How many upstream calls it took; 0 if the answer is replayed.
        request_id: The id of the request that was sent upstream.
        upstream_seconds: Time spent upstream until the first useful event; 0 if stored.
        fallbacks: Other models that were asked because the one asked for could not answer.
        replayed: How the answer came to be shared with this reader; None for the first.
    """

    __slots__ = (
        "_clock",
        "_cut",
        "_deadline",
        "_leave",
        "_log",
        "_position",
        "_released",
        "attempts",
        "fallbacks",
        "provider",
        "replayed",
        "request_id",
        "upstream_seconds",
    )

    def __init__(
        self,
        log: SharedLog,
        *,
        replayed: Replayed | None,
        leave: Callable[[], None],
        deadline: float | None,
        clock: Callable[[], float],
    ) -> None:
        self._log = log
        self._position = 0
        self._leave = leave
        self._deadline = deadline
        self._clock = clock
        self._released = False
        self._cut: StreamTruncatedError | None = None
        self.provider = log.provider
        self.attempts = log.attempts if replayed is None else 0
        self.request_id = log.request_id
        self.upstream_seconds = 0.0 if replayed is Replayed.STORED else log.upstream_seconds
        self.fallbacks = log.fallbacks
        self.replayed = replayed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """Wait for the next chunk.

        Raises:
            StreamTruncatedError: If the stream broke, the reader's time is over, or it is
                too far behind the others; what came so far is not the whole.
        """
        if self._position and self._position % READY_CHUNKS == 0:
            # A kept answer would never let anybody else run.
            await anyio.lowlevel.checkpoint()
        log = self._log
        while True:
            if self._released and self._cut is None:
                raise StopAsyncIteration
            if self._position < log.base:
                self.cut("this reader fell too far behind the others that share the answer")
            if self._cut is not None:
                raise self._cut
            if self._position < log.length:
                return self._take(1)[0]
            if log.complete:
                raise StopAsyncIteration
            log.raise_failure()
            if not await log.changed(self._deadline, self._clock):
                self.cut("the request's deadline passed")

    def ready(self) -> list[Chunk]:
        """Take chunks that are here already, 64 at most; never waits, and may be empty."""
        if self._released or self._position < self._log.base:
            return []
        return self._take(READY_CHUNKS)

    def _take(self, count: int) -> list[Chunk]:
        found = self._log.read(self._position, count)
        self._position += len(found)
        return found

    @property
    def usage(self) -> Usage | None:
        """Tokens as the provider counted them, once it has said so."""
        return self._log.usage

    @property
    def failure(self) -> StreamTruncatedError | None:
        """Why the stream is truncated, or None."""
        failure = self._cut or self._log.failure
        return failure if isinstance(failure, StreamTruncatedError) else None

    @property
    def complete(self) -> bool:
        """Whether the provider said that the answer is complete."""
        return self._log.complete

    def cut(self, message: str) -> None:
        """End this reader's stream as truncated, also under a reader that waits."""
        if self._released:
            return
        self._cut = self._log.broken(message)
        self.release()
        self._log.wake()

    def release(self) -> None:
        """Let go: the last reader that does so before the end closes the upstream.

        Idempotent.
        """
        if not self._released:
            self._released = True
            self._leave()

    async def aclose(self) -> None:
        """Let go of the stream; see `release`."""
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "cut" if self.failure else "complete" if self.complete else "open"
        return f"SharedStream(provider={self.provider!r}, {state})"


class SharedOpening:
    """What `IdempotencyStore.stream` returns: entering it opens the stream, leaving closes it."""

    __slots__ = ("_enter", "_stream")

    def __init__(self, enter: Callable[[], Awaitable[SharedStream]]) -> None:
        self._enter = enter
        self._stream: SharedStream | None = None

    async def __aenter__(self) -> SharedStream:
        self._stream = await self._enter()
        return self._stream

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stream is not None:
            self._stream.release()
