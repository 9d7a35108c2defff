"""An answer while it arrives: what the connection fills in and the caller takes out."""

import asyncio  # a connection of asyncio wakes who waits here
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Protocol

import httpx

Failure = tuple[type[httpx.TransportError], str]
"""Why an answer is not whole: the class of the error, and our text."""


class AnswerSource(Protocol):
    """The connection that an answer arrives on."""

    reading_paused: bool
    """Whether the socket is left alone because too much waits unread."""

    def resume_reading(self) -> None:
        """Go on reading: what waited was taken."""

    def give_up(self) -> None:
        """Cut the connection; the answer is wanted no more."""


class Exchange:
    """One request's answer, from the first byte sent to the last received.

    Written by its connection, read by one task at a time; all on one event loop.

    Attributes:
        chunks: Body bytes that nobody has taken yet, in order.
        complete: Whether the whole answer has arrived.
        failure: Why it never will.
        head_only: Whether the answer has no body whatever it says (`HEAD`).
        headers: Names and values as they came.
        http_1_0: Whether the upstream speaks HTTP/1.0.
        size: Bytes in `chunks`.
        source: The connection, as long as it is this answer's.
        status: HTTP status, 0 until the headers are here.
    """

    __slots__ = (
        "_loop",
        "_waiter",
        "chunks",
        "complete",
        "failure",
        "head_only",
        "headers",
        "http_1_0",
        "size",
        "source",
        "status",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, *, head_only: bool = False) -> None:
        """Expect an answer on `loop`."""
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self.chunks: list[bytes] = []
        self.complete = False
        self.failure: Failure | None = None
        self.head_only = head_only
        self.headers: list[tuple[bytes, bytes]] = []
        self.http_1_0 = False
        self.size = 0
        self.source: AnswerSource | None = None
        self.status = 0

    def wake(self) -> None:
        """Tell who waits that something has changed."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def head(self) -> None:
        """Wait for the headers.

        Raises:
            httpx.TransportError: They will not come.
        """
        while not self.status:
            if self.failure is not None:
                raise self._error(self.failure)
            await self._changed()

    async def take(self) -> bytes:
        """Return all that has arrived of the body, waiting for at least one byte.

        Raises:
            StopAsyncIteration: The body is complete.
            httpx.TransportError: The rest will not come.
        """
        chunks = self.chunks
        while not chunks:
            if self.failure is not None:
                raise self._error(self.failure)
            if self.complete:
                raise StopAsyncIteration
            await self._changed()
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.size = 0
        source = self.source
        if source is not None and source.reading_paused:
            source.resume_reading()
        return data

    def close(self) -> None:
        """Want no more of it: cut its connection, unless all was received."""
        if self.failure is None and not (self.complete and not self.chunks):
            self.failure = (httpx.ReadError, "the answer was closed before its end")
            self.chunks.clear()
            self.wake()
        if self.source is not None:
            self.source.give_up()

    def close_from_anywhere(self) -> None:
        """Close it from any thread, if it is not at its end."""
        if self.source is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and all with it
                self._loop.call_soon_threadsafe(self.close)

    async def _changed(self) -> None:
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        except BaseException:
            self.close()  # cancelled: cut now, whether or not the caller remembers to
            raise
        finally:
            self._waiter = None

    @staticmethod
    def _error(failure: Failure) -> httpx.TransportError:
        kind, text = failure
        return kind(text)  # a fresh one each time: a raised error gathers tracebacks


class AnswerBody(httpx.AsyncByteStream):
    """The body of an answer as it comes off the socket; one read is all that waits.

    Iterating may raise `httpx.ReadTimeout` (silence), `httpx.RemoteProtocolError` (cut or
    garbled) or `httpx.ReadError` (connection lost), after all that had arrived was handed over.
    Closing is immediate and may be repeated; it cuts the connection unless all was received.
    """

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        """Take over an answer whose headers are here."""
        self._exchange = exchange

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return itself: there is one body to read."""
        return self

    def __anext__(self) -> Coroutine[None, None, bytes]:
        """Return what has arrived, waiting for at least one byte.

        Raises:
            StopAsyncIteration: The body is complete.
        """
        return self._exchange.take()

    async def aclose(self) -> None:
        """Give up the connection at once, and end whoever is reading; it never waits."""
        self._exchange.close()

    def __del__(self) -> None:
        """Give up the connection of an answer that was dropped, neither read nor closed."""
        self._exchange.close_from_anywhere()  # collected by any thread at any time
