"""`AnswerStream`: a streamed answer as its reader sees it, shared with others or not."""

from __future__ import annotations

from typing import Protocol, Self

from engine.errors import StreamTruncatedError
from engine.operations import Chunk, Replayed, Usage


class ChunkFeed(Protocol):
    """What is read to the end by one reader: the chunks, and how they came to be.

    Attributes:
        provider: Name of the provider that answers.
        attempts: How many upstream calls it took.
        request_id: The id of the request that was sent upstream.
        upstream_seconds: Time spent upstream until the first useful event.
        fallbacks: Other models that were asked because the one asked for could not answer.
        usage: Tokens as the provider counted them, once it has said so.
    """

    provider: str
    attempts: int
    request_id: str
    upstream_seconds: float
    fallbacks: tuple[str, ...]

    @property
    def usage(self) -> Usage | None:
        """Tokens as the provider counted them, once it has said so."""
        ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Chunk:
        """Wait for the next chunk.

        Raises:
            StreamTruncatedError: If the stream broke.
        """
        ...

    def ready(self) -> list[Chunk]:
        """Take chunks that are here already; never waits, and may be empty."""
        ...


class AnswerStream(ChunkFeed, Protocol):
    """Everything that a front door does with a streamed answer.

    Attributes:
        replayed: How the answer was shared by an idempotency key; None if it was not.
    """

    replayed: Replayed | None

    @property
    def failure(self) -> StreamTruncatedError | None:
        """Why the stream is truncated, or None."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the provider said that the answer is complete."""
        ...

    def cut(self, message: str) -> None:
        """End the stream as truncated, also under a reader that waits."""
        ...

    def release(self) -> None:
        """Let go of the stream. Idempotent."""
        ...

    async def aclose(self) -> None:
        """Let go of the stream. Idempotent."""
        ...
