"""One HTTP/1.1 connection: httptools parses, asyncio's protocol callbacks do the rest.

There is no task: the loop calls in with data, time and losses, and one future wakes the caller.
"""

import asyncio  # a protocol is asyncio's by nature
from typing import Final, Protocol, cast

import httptools
import httpx

from adapters.transports.http1_answer import Exchange, Failure
from adapters.transports.http1_request import Head, Origin
from adapters.transports.limits import CallLimits
from adapters.transports.request_body import BODY_SLICE_BYTES
from adapters.transports.system_words import system_words

_KIB: Final = 1_024
MAX_HEADER_LINE_BYTES: Final = 16 * _KIB
MAX_HEADERS: Final = 256  # providers send about thirty
MAX_INFORMATIONAL: Final = 10
# What may come in without a whole header section or a byte of body in it: heads and trailers, and
# extensions of chunks. The parser keeps a line that is not at its end, so this bounds memory too.
MAX_QUIET_BYTES: Final = 256 * _KIB
# Above this, what waits unread keeps the socket from being read. One read more may come on top.
READ_BUFFER_BYTES: Final = 128 * _KIB
# Up to here head and body go out in one piece; copying costs less than a second write.
_JOINED_BYTES: Final = 64 * _KIB
_INFORMATIONAL: Final = 100
_SWITCHING: Final = 101
_OK: Final = 200
_REFUSAL: Final = 400

_MALFORMED: Final[Failure] = (httpx.RemoteProtocolError, "the answer is malformed HTTP")


class _StopParsing(Exception):  # noqa: N818  # not an error: how a callback ends the parsing
    pass


class ConnectionOwner(Protocol):
    """Who keeps the connections of an event loop, and is told what becomes of them."""

    def call_ended(self, connection: "Http1Connection", *, reusable: bool) -> None:
        """Take back the slot of a call, and its connection if that is as good as new."""

    def lost(self, connection: "Http1Connection") -> None:
        """Forget a connection that has ended."""


class Http1Connection(asyncio.Protocol):
    """A connection that carries one call at a time.

    Attributes:
        origin: Whom it leads to.
        opened_at: When it was made, by the loop's clock.
        idle_since: When its last call ended, by the loop's clock.
        reading_paused: Whether too much waits unread.
    """

    def __init__(
        self, owner: ConnectionOwner, origin: Origin, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Prepare for a socket, which `connection_made` brings."""
        self.origin = origin
        self.opened_at = self.idle_since = 0.0
        self.reading_paused = False
        self._owner = owner
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._unsent: memoryview | None = None
        self._writing_paused = False
        self._keep = True
        self._informational = 0
        self._quiet_bytes = 0
        self._read_seconds = self._write_seconds = 0.0
        # One timer serves many calls: it looks at `_deadline` when it rings, and sleeps on.
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        parser = httptools.HttpResponseParser(self)
        # Framing that cannot be taken for anything else, and that real servers are known to send.
        parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._parser = parser
        self._feed = parser.feed_data

    def usable(self) -> bool:
        """Say whether a call may be started."""
        transport = self._transport
        return transport is not None and not transport.is_closing()

    def start(self, exchange: Exchange, head: Head, body: bytes, limits: CallLimits) -> None:
        """Send a request; its answer fills `exchange`. The caller holds a slot for it."""
        transport = self._transport
        assert transport is not None, "a call needs a connection"
        self._exchange = exchange
        exchange.source = self
        self._headers = []
        self._keep = head.keeps_alive
        self._informational = self._quiet_bytes = 0
        self._read_seconds, self._write_seconds = limits.read, limits.write
        if len(body) <= _JOINED_BYTES:
            transport.write(head.data + body)
        else:
            transport.write(head.data)
            self._unsent = memoryview(body)
            self._write_on()
        self._watch()

    def give_up(self) -> None:
        """End the call, if there is one, and cut the connection."""
        self._end_call(reusable=False)

    def fail(self, failure: Failure) -> None:
        """End the call, if there is one, with an error, and cut the connection."""
        exchange = self._exchange
        if exchange is not None and exchange.failure is None:
            exchange.failure = failure
        self._end_call(reusable=False)

    def abort(self) -> None:
        """Close the socket now, whatever is still to be written."""
        if self._transport is not None:
            self._transport.abort()

    def resume_reading(self) -> None:
        """Go on reading: what waited was taken."""
        self.reading_paused = False
        if self.usable():
            assert self._transport is not None
            self._transport.resume_reading()
            self._watch()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket over, TLS included."""
        # uvloop's is none by its class.
        self._transport = cast("asyncio.Transport", transport)
        self.opened_at = self.idle_since = self._loop.time()

    def data_received(self, data: bytes) -> None:
        """Parse what came in and pass it on."""
        exchange = self._exchange
        if exchange is None:
            self.abort()  # nobody asked: an answer to nothing must not become the next one's
            return
        had_status, had_size = exchange.status, exchange.size
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not exchange.complete:
                self.fail(_MALFORMED)
                return
            self._keep = False  # more came than the answer
        if exchange.complete:
            self._end_call(reusable=self._keep and not self._sending())
            return
        if exchange.size != had_size or exchange.status != had_status:
            self._quiet_bytes = 0
            exchange.wake()
        else:
            self._quiet_bytes += len(data)
            if self._quiet_bytes > MAX_QUIET_BYTES:
                self.fail(_MALFORMED)
                return
        if not self._uploading(exchange):
            self._deadline = self._loop.time() + self._read_seconds
        if exchange.size > READ_BUFFER_BYTES and not self.reading_paused and self.usable():
            assert self._transport is not None
            self.reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """Take the end of input for the end: a client has no use for half a connection."""
        self._input_ended(None)
        # A plain close would first wait until all that was written has been taken.
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the call, if there is one, with what the loss means for it."""
        self._input_ended(exc)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport = None
        del self._feed, self._parser  # they refer back to us
        self._owner.lost(self)

    def pause_writing(self) -> None:
        """Write no more for now: the upstream takes less than we send."""
        self._writing_paused = True
        self._watch()

    def resume_writing(self) -> None:
        """Write on: the upstream has taken what it was sent."""
        self._writing_paused = False
        self._write_on()
        self._watch()

    # What the parser calls. What is raised here ends the parsing.

    def on_message_begin(self) -> None:
        """Refuse a second answer."""
        if self._exchange is None or self._exchange.complete:
            raise _StopParsing

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header, of the answer or (to no use) of its trailer."""
        headers = self._headers
        if len(headers) >= MAX_HEADERS or len(name) + len(value) > MAX_HEADER_LINE_BYTES:
            raise _StopParsing
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Hand the headers over, or drop those of an informational answer."""
        exchange = self._exchange
        assert exchange is not None
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        if status < _OK:
            self._informational += 1
            if (
                status < _INFORMATIONAL
                or status == _SWITCHING
                or self._informational > MAX_INFORMATIONAL
            ):
                raise _StopParsing
            return
        version = self._parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise _StopParsing
            exchange.http_1_0 = True
        exchange.status = status
        exchange.headers = headers
        if self._unsent is not None:
            self._keep = False
            if status >= _REFUSAL:
                self._unsent = None  # the rest would be read by nobody
        if exchange.head_only:
            exchange.complete = True
            self._keep = False  # the parser would wait for a body
            raise _StopParsing

    def on_body(self, data: bytes) -> None:
        """Keep a piece of the body."""
        exchange = self._exchange
        assert exchange is not None
        exchange.chunks.append(data)
        exchange.size += len(data)

    def on_message_complete(self) -> None:
        """Note the end of the answer; an informational one has none."""
        exchange = self._exchange
        assert exchange is not None
        if exchange.status:
            exchange.complete = True
            self._keep = self._keep and self._parser.should_keep_alive()

    # What remains.

    def _sending(self) -> bool:
        """Say whether a part of the request waits for the upstream to take it."""
        return self._unsent is not None or self._writing_paused

    def _uploading(self, exchange: Exchange) -> bool:
        """Say whether it is the upstream's turn to take more, rather than to send."""
        return self._sending() and exchange.status < _REFUSAL

    def _write_on(self) -> None:
        """Write slices of the body until the socket takes no more for now."""
        while self._unsent is not None and not self._writing_paused and self.usable():
            assert self._transport is not None
            piece, rest = self._unsent[:BODY_SLICE_BYTES], self._unsent[BODY_SLICE_BYTES:]
            self._unsent = rest or None
            self._transport.write(piece)

    def _input_ended(self, error: Exception | None) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        if error is not None:
            self.fail(_loss(error, sending=self._uploading(exchange)))
        elif not exchange.status:
            self.fail((httpx.RemoteProtocolError, "closed without an answer"))
        elif _ends_with_the_connection(exchange.headers):
            exchange.complete = True
            self._end_call(reusable=False)
        else:
            self.fail((httpx.RemoteProtocolError, "the body was cut or garbled"))

    def _end_call(self, *, reusable: bool) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            self.abort()
            return
        transport = self._transport
        # Bytes of the request that the upstream has not taken would follow the next one's.
        reusable = reusable and transport is not None and not transport.get_write_buffer_size()
        exchange.source = None
        self._unsent = None
        if not reusable:
            self.abort()
        elif self.reading_paused:
            self.resume_reading()
        self._owner.call_ended(self, reusable=reusable)
        exchange.wake()

    def _watch(self) -> None:
        """Start the limit of what is waited for now, as long as there is a call."""
        exchange = self._exchange
        if exchange is None:
            return
        seconds = self._write_seconds if self._uploading(exchange) else self._read_seconds
        deadline = self._deadline = self._loop.time() + seconds
        timer = self._timer
        if timer is not None:
            if timer.when() <= deadline:
                return
            timer.cancel()
        self._timer = self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        # Idle, or held back by the reader: the next call, or the reader, starts the limit anew.
        exchange = self._exchange
        if exchange is None or self.reading_paused:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._ring)
        elif self._uploading(exchange):
            self.fail((httpx.WriteTimeout, "the upstream took no more of the body in time"))
        else:
            self.fail((httpx.ReadTimeout, "the upstream sent nothing in time"))


def _loss(error: Exception, *, sending: bool) -> Failure:
    """Tell the loss of a connection in httpx's words."""
    if isinstance(error, TimeoutError):
        return httpx.ReadTimeout, "the upstream sent nothing in time"
    reason = system_words(error)
    kind, text = (
        (httpx.WriteError, "connection lost while writing")
        if sending
        else (httpx.ReadError, "connection lost")
    )
    return kind, f"{text}: {reason}" if reason else text


def _ends_with_the_connection(headers: list[tuple[bytes, bytes]]) -> bool:
    """Say whether a body has no other end (RFC 9112 section 6.3)."""
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    if codings:
        return not codings[-1].lower().rstrip().endswith(b"chunked")
    return all(name.lower() != b"content-length" for name, _ in headers)
