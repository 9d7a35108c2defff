"""One request on an HTTP/1.1 connection, as an ASGI app sees it: ``receive`` and ``send``."""

from __future__ import annotations

# asyncio, because this is a part of the asyncio server (see http1_protocol).
import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from adapters.frontdoor.http1_answer import AnswerWriter

if TYPE_CHECKING:
    from starlette.types import Message

    from adapters.frontdoor.http1_protocol import Http1Protocol
    from adapters.frontdoor.http1_reader import RequestHead

_HIGH_WATER: Final = 64 * 1024


class RequestStream:
    """The request's body on its way in, and its answer on its way out.

    It is also the `ClientConnection` that an exchange finds in its scope.

    Attributes:
        answer: what has been sent.
        body_complete: True once the whole body has come.
        on_gone: called once when the client leaves before the answer is complete.
        gone: True once the client has left before the answer was complete.
    """

    __slots__ = ("_buffered", "_connection", "_end_told", "_ended", "_news", "_parts", "answer",
                 "body_complete", "gone", "on_gone")  # fmt: skip

    def __init__(self, connection: Http1Protocol, head: RequestHead) -> None:
        """Belong to a connection."""
        self._connection = connection
        self._parts: list[bytes] = []
        self._buffered = 0
        self._news: asyncio.Event | None = None
        self._end_told = False
        self._ended = False
        self.on_gone: Callable[[], None] | None = None
        self.gone = False
        self.body_complete = False
        self.answer = AnswerWriter(
            method=head.method, http_version=head.http_version, keep_alive=head.keep_alive
        )

    @property
    def full(self) -> bool:
        """True while so much of the body waits for the app that no more should be read."""
        return self._buffered > _HIGH_WATER

    # ── for the connection ───────────────────────────────────────────────────────

    def add(self, data: bytes, *, complete: bool) -> None:
        """Take what came of the body."""
        if data:
            self._parts.append(data)
            self._buffered += len(data)
        self.body_complete = complete
        self._tell()

    def leave(self) -> None:
        """Hear that the client is gone. A body that is cut short is of no use and is dropped."""
        if self._ended:
            return
        self.end()
        self.gone = True
        if self.on_gone is not None:
            self.on_gone()

    def end(self) -> None:
        """Give the app nothing more but the disconnect."""
        self._ended = True
        self._parts.clear()
        self._buffered = 0
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    # ── for the app ──────────────────────────────────────────────────────────────

    def abort(self) -> None:
        """Close the connection now and throw away what has not been sent."""
        self._connection.abort()

    async def receive(self) -> Message:
        """Give what has come of the body, then wait for the disconnect; ASGI ``receive``."""
        while not self._ended:
            if self._parts or (self.body_complete and not self._end_told):
                return self._next_part()
            if self._news is None:
                self._news = asyncio.Event()
            await self._news.wait()
        return {"type": "http.disconnect"}

    def _next_part(self) -> Message:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        was_full, self._buffered = self.full, 0
        self._end_told = self.body_complete
        if was_full:
            self._connection.steer_reading()
        return {"type": "http.request", "body": data, "more_body": not self.body_complete}

    async def send(self, message: Any) -> None:
        """Send a message of the answer; ASGI ``send``.

        Raises:
            AnswerError: the message cannot stand here, or cannot be written as HTTP/1.1.
        """
        if self._ended:
            return
        kind = message["type"]
        connection = self._connection
        if kind == "http.response.body":
            more = message.get("more_body", False)
            data = self.answer.part(message.get("body", b""), more=more)
            if data:
                connection.transport.write(data)
            if connection.write_paused:
                await connection.drained()
            if not more and not self._ended:
                connection.answered(self)
        elif kind == "http.response.start":
            self.answer.start(
                message["status"],
                message.get("headers", ()),
                own_fields=connection.config.own_fields(),
            )
