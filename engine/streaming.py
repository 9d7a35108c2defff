"""`ResponseStream`: a streamed answer in the hands of the caller.

The worker that opened the source reads it, into a small buffer, and closes it: an adapter
is never touched by two tasks. The caller takes chunks from the buffer. Several events of
one network read are one hop between tasks, and a limit that passes reaches the caller
even if the adapter hangs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio

from engine.errors import GatewayError, StreamTruncatedError
from engine.ledger import Outcome
from engine.operations import Chunk, Replayed, Usage
from engine.provider import ChunkSource
from engine.resilience.deadline import DeadlineWheel

Settle = Callable[[Outcome, BaseException | None], None]

BUFFER_CHUNKS = 64
BUFFER_BYTES = 65_536
"""What may be read ahead of the caller: a network read or two. At either bound the source
is not read on until the caller has taken half, so back-pressure reaches the upstream."""


class ResponseStream:
    """Chunks of one answer: `async for chunk in stream`. Read it in one task at a time.

    Attributes:
        provider: Name of the provider that answers.
        attempts: How many upstream calls it took to get here, this one included.
        request_id: The request's id.
        upstream_seconds: Time spent upstream until the first useful event.
        fallbacks: Other models that were asked because the one asked for could not answer.
        usage: Tokens as the provider counted them, once it has said so.
        replayed: None; for what an idempotency key shares see `SharedStream`.
    """

    __slots__ = (
        "_chunks",
        "_clock",
        "_closed",
        "_concluded",
        "_cut",
        "_deadline",
        "_ended",
        "_event",
        "_filling",
        "_idle",
        "_room",
        "_settle",
        "_size",
        "_waiter",
        "_waiting_since",
        "_wheel",
        "attempts",
        "fallbacks",
        "provider",
        "replayed",
        "request_id",
        "tick",
        "upstream_seconds",
        "usage",
    )

    def __init__(
        self,
        held: list[Chunk],
        *,
        ended: bool,
        provider: str,
        idle: float,
        deadline: float,
        wheel: DeadlineWheel,
        clock: Callable[[], float],
        event: Callable[[], anyio.Event] = anyio.Event,
    ) -> None:
        self._chunks: deque[Chunk] = deque()
        self._size = 0
        self._ended = ended
        self._closed = False
        self._concluded = False
        self._cut: StreamTruncatedError | None = None
        self._settle: Settle | None = None
        self._idle = idle
        self._deadline = deadline
        self._wheel = wheel
        self._clock = clock
        self._event = event
        self._filling: anyio.CancelScope | None = None
        self._waiting_since: float | None = None
        self._waiter: anyio.Event | None = None
        self._room: anyio.Event | None = None
        self.tick: int | None = None
        self.provider = provider
        self.attempts = 1
        self.request_id = ""
        self.upstream_seconds = 0.0
        self.fallbacks: tuple[str, ...] = ()
        self.replayed: Replayed | None = None
        self.usage: Usage | None = None
        for chunk in held:
            self._put(chunk)
        wheel.add(self, min(deadline, clock() + idle))

    # ── the caller's side ────────────────────────────────────────────────────────

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """Wait for the next chunk.

        Raises:
            StreamTruncatedError: If the stream broke; what came so far is not the whole.
        """
        while not self._chunks:
            if self._cut is not None:
                self._conclude()
                raise self._cut
            if self._ended or self._closed:
                self._conclude()
                raise StopAsyncIteration
            self._waiter = self._event()
            await self._waiter.wait()
        chunk = self._chunks.popleft()
        self._size -= len(chunk.data)
        self._make_room()
        return chunk

    def ready(self) -> list[Chunk]:
        """Take the chunks that are here already; never waits, and may be empty."""
        chunks = list(self._chunks)
        self._chunks.clear()
        self._size = 0
        self._make_room()
        return chunks

    def release(self) -> None:
        """Let go: the upstream is closed, and the outcome is counted. Idempotent."""
        self._closed = True
        if self._filling is not None:
            self._filling.cancel()
        self._conclude()

    @property
    def failure(self) -> StreamTruncatedError | None:
        """Why the stream is truncated, or None."""
        return self._cut

    @property
    def complete(self) -> bool:
        """Whether the provider said that the answer is complete."""
        return self._ended

    async def aclose(self) -> None:
        """Let go of the stream; the upstream is closed at once if it is not complete."""
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

    # ── the worker's side ────────────────────────────────────────────────────────

    async def fill(self, source: ChunkSource) -> None:
        """Read the source until it ends, breaks, or nobody wants it; told by `failure`."""
        try:
            with anyio.CancelScope() as self._filling:
                if not self._closed and self._cut is None:
                    await self._read_on(source)
        except StopAsyncIteration:
            self._ended = True
        except GatewayError as error:
            self._break(error.message, error)
        except anyio.get_cancelled_exc_class():
            self.cut("the gateway is closing")
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the border: an adapter may raise anything
            self._break(f"the adapter failed with {type(error).__name__}", error)
        except BaseException:
            # It takes the actor down, and with it whoever could tell the caller later.
            self.cut("its actor crashed")
            raise
        finally:
            self._filling = None
            self._waiting_since = None
            self._wake()

    async def _read_on(self, source: ChunkSource) -> None:
        while True:
            self._waiting_since = self._clock()
            self._put(await source.__anext__())
            self._wake()
            if len(self._chunks) >= BUFFER_CHUNKS or self._size >= BUFFER_BYTES:
                self._waiting_since = None
                self._room = self._event()
                await self._room.wait()

    def _put(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk.data)
        # Only the few chunks that speak of usage are worth parsing.
        if b'"usage"' in chunk.data:
            self._note_usage(chunk)

    def _note_usage(self, chunk: Chunk) -> None:
        try:
            self.usage = chunk.usage or self.usage
        except (ValueError, RecursionError):
            # Not ours to judge: the chunk goes on as it came, and its usage is not known.
            return

    def _wake(self) -> None:
        if self._waiter is not None:
            self._waiter.set()
            self._waiter = None

    def _make_room(self) -> None:
        if (
            self._room is not None
            and len(self._chunks) <= BUFFER_CHUNKS // 2
            and self._size <= BUFFER_BYTES // 2
        ):
            self._room.set()
            self._room = None

    # ── the end ──────────────────────────────────────────────────────────────────

    def settle_with(self, settle: Settle) -> None:
        """Set who is told, once, how the stream ended; at once if it has ended already."""
        self._settle = settle
        if self._concluded:
            self._tell()

    def cut(self, message: str) -> None:
        """End the stream as truncated, also under a caller that waits or never reads."""
        if self._concluded:
            return
        self._break(message, None)
        if self._filling is not None:
            self._filling.cancel()
        self._wake()
        self._conclude()

    def _break(self, message: str, cause: BaseException | None) -> None:
        if self._cut is None:
            self._cut = StreamTruncatedError(
                f"the stream from provider {self.provider!r} broke off: {message}",
                provider=self.provider,
            )
            self._cut.__cause__ = cause

    def _conclude(self) -> None:
        if self._concluded:
            return
        self._concluded = True
        self._wheel.discard(self)
        self._tell()

    def _tell(self) -> None:
        if self._settle is None:
            return
        if self._cut is not None:
            self._settle(Outcome.TRUNCATED, self._cut)
        elif self._ended and not self._chunks:
            self._settle(Outcome.COMPLETED, None)
        else:
            self._settle(Outcome.CANCELLED, None)

    def on_due(self, now: float) -> None:
        """A limit may have passed: the deadline, or the time between two events."""
        since = self._waiting_since
        if now >= self._deadline:
            self.cut("the request's deadline passed")
        elif since is not None and now - since >= self._idle:
            self.cut(f"no event within {self._idle:g} s")
        else:
            self._wheel.add(
                self, min(self._deadline, (now if since is None else since) + self._idle)
            )

    def __repr__(self) -> str:
        state = "cut" if self._cut else "complete" if self._ended else "open"
        return f"ResponseStream(provider={self.provider!r}, {state})"
