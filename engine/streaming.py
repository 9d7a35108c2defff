"""`ResponseStream`: a streamed answer in the hands of the caller.

The worker that opened it stays with it until the caller lets go; the caller reads from
the adapter directly, so that an event costs no hop between tasks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio

from engine.errors import GatewayError, StreamTruncatedError
from engine.ledger import Outcome
from engine.operations import Chunk, Usage
from engine.provider import ChunkSource
from engine.resilience.deadline import DeadlineWheel

Settle = Callable[[Outcome, BaseException | None], None]


class ResponseStream:
    """Chunks of one answer: `async for chunk in stream`. Read it in one task at a time.

    Attributes:
        provider: Name of the provider that answers.
        attempts: How many upstream calls it took to get here, this one included.
        request_id: The request's id.
        upstream_seconds: Time spent upstream until the first useful event.
        usage: Tokens as the provider counted them, once it has said so.
        released: Set when the caller has let go; the worker then closes the upstream.
    """

    __slots__ = (
        "_clock",
        "_cut",
        "_deadline",
        "_ended",
        "_held",
        "_idle",
        "_last_event",
        "_reading",
        "_scope",
        "_settle",
        "_source",
        "_wheel",
        "attempts",
        "provider",
        "released",
        "request_id",
        "tick",
        "upstream_seconds",
        "usage",
    )

    def __init__(
        self,
        source: ChunkSource,
        held: list[Chunk],
        *,
        ended: bool,
        provider: str,
        idle: float,
        deadline: float,
        wheel: DeadlineWheel,
        clock: Callable[[], float],
    ) -> None:
        self._source = source
        self._held = deque(held)
        self._ended = ended
        self._idle = idle
        self._deadline = deadline
        self._wheel = wheel
        self._clock = clock
        self._last_event = clock()
        self._reading = False
        self._scope: anyio.CancelScope | None = None
        self._cut: StreamTruncatedError | None = None
        self._settle: Settle | None = None
        self.tick: int | None = None
        self.provider = provider
        self.attempts = 1
        self.request_id = ""
        self.upstream_seconds = 0.0
        self.usage: Usage | None = None
        self.released = anyio.Event()
        wheel.add(self, min(deadline, self._last_event + idle))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        """Wait for the next chunk.

        Raises:
            StreamTruncatedError: If the stream broke; what came so far is not the whole.
        """
        if self._held:
            chunk = self._held.popleft()
        elif self._cut is not None:
            self.release()
            raise self._cut
        elif self._ended or self.released.is_set():
            self.release()
            raise StopAsyncIteration
        else:
            chunk = await self._read()
        # Only the few chunks that speak of usage are worth parsing.
        if b'"usage"' in chunk.data:
            self._note_usage(chunk)
        return chunk

    def _note_usage(self, chunk: Chunk) -> None:
        try:
            self.usage = chunk.usage or self.usage
        except (ValueError, RecursionError):
            # Not ours to judge: the chunk goes on as it came, and its usage is not known.
            return

    async def _read(self) -> Chunk:
        scope = self._scope = anyio.CancelScope()
        self._reading = True
        # A caller that took its time before asking again is no idle provider.
        self._last_event = self._clock()
        try:
            with scope:
                chunk = await self._source.__anext__()
                self._last_event = self._clock()
                return chunk
        except StopAsyncIteration:
            self._ended = True
            self.release()
            raise
        except GatewayError as error:
            self._break(error.message, error)
        except Exception as error:  # noqa: BLE001 - the border: an adapter may raise anything
            self._break(f"the adapter failed with {type(error).__name__}", error)
        finally:
            self._reading = False
        # Only `cut` cancels the scope, and it has said why.
        self.release()
        raise self._cut or StreamTruncatedError("the stream was cut", provider=self.provider)

    def _break(self, message: str, cause: BaseException | None) -> None:
        self._cut = StreamTruncatedError(
            f"the stream from provider {self.provider!r} broke off: {message}",
            provider=self.provider,
        )
        self._cut.__cause__ = cause

    def settle_with(self, settle: Settle) -> None:
        """Set who is told, once, how the stream ended; at once if it has ended already."""
        self._settle = settle
        if self.released.is_set():
            self._tell()

    def cut(self, message: str) -> None:
        """End the stream as truncated, also under a reader that waits."""
        if self.released.is_set() or self._cut is not None:
            return
        self._break(message, None)
        self._held.clear()
        if self._reading and self._scope is not None:
            self._scope.cancel()
        else:
            self.release()

    def release(self) -> None:
        """Let go: the upstream is closed, and the outcome is counted. Idempotent."""
        if self.released.is_set():
            return
        self._wheel.discard(self)
        self.released.set()
        self._tell()

    def _tell(self) -> None:
        if self._settle is None:
            return
        if self._cut is not None:
            self._settle(Outcome.TRUNCATED, self._cut)
        elif self._ended and not self._held:
            self._settle(Outcome.COMPLETED, None)
        else:
            self._settle(Outcome.CANCELLED, None)

    @property
    def failure(self) -> StreamTruncatedError | None:
        """Why the stream is truncated, or None."""
        return self._cut

    @property
    def complete(self) -> bool:
        """Whether the provider said that the answer is complete."""
        return self._ended

    def on_due(self, now: float) -> None:
        """A limit may have passed: the deadline, or the time between two events."""
        if now >= self._deadline:
            self.cut("the request's deadline passed")
        elif self._reading and now - self._last_event >= self._idle:
            self.cut(f"no event within {self._idle:g} s")
        else:
            last = self._last_event if self._reading else now
            self._wheel.add(self, min(self._deadline, last + self._idle))

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

    def __repr__(self) -> str:
        state = "cut" if self._cut else "complete" if self._ended else "open"
        return f"ResponseStream(provider={self.provider!r}, {state})"
