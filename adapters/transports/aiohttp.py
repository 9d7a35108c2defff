"""The default transport on asyncio: aiohttp behind httpx's transport interface."""

import asyncio  # aiohttp runs on asyncio alone
import contextlib
import functools
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import httpx
from multidict import CIMultiDict

from adapters.transports.aiohttp_failures import FOREIGN, maybe_accepted
from adapters.transports.aiohttp_session import (
    LoopSession,
    SlicedBody,
    client_timeout,
    target_of,
)
from adapters.transports.limits import (
    DEFAULT_CONCURRENT_CALLS,
    CallLimits,
    PoolStatistics,
    limits_of,
    statistics_of,
    take_slot,
)
from adapters.transports.per_loop import PerLoop
from adapters.transports.request_body import BODY_SLICE_BYTES, content_of
from adapters.transports.tls import shared_tls_context

if TYPE_CHECKING:
    import ssl

    from aiohttp import ClientResponse

# Message framing is written by the transport, from the body that it really sends. An expectation
# would make aiohttp wait for a go-ahead that no limit covers.
_FRAMING: Final = frozenset({"content-length", "expect", "transfer-encoding"})
# A token, as RFC 9110 section 5.6.2 has it.
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HTTP_1_0: Final = b"HTTP/1.0"
_HTTP_1_1: Final = b"HTTP/1.1"


class AiohttpTransport(httpx.AsyncBaseTransport):
    """Sends HTTP/1.1 requests with aiohttp, on asyncio or uvloop.

    One object serves any number of event loops and threads: each loop gets its own session at
    its first request, closed by `aclose()` there, or when the loop's runner ends the loop.
    Nothing happens behind the caller's back: no retry, redirect, cookie, proxy from the
    environment, decompression, or header but the framing.
    """

    def __init__(self, *, limit: int = DEFAULT_CONCURRENT_CALLS) -> None:
        """Make the transport; no I/O, no task, no running loop needed.

        Args:
            limit: Calls that may run at once on one event loop. A further call waits for as
                long as its `pool` limit says.
        """
        self._limit = limit
        self._sessions = PerLoop(lambda: LoopSession(limit))

    def __repr__(self) -> str:
        """Name the bound."""
        return f"AiohttpTransport(limit={self._limit})"

    def statistics(self) -> PoolStatistics:
        """Return the use of the running loop's slots.

        Raises:
            RuntimeError: No asyncio loop is running.
        """
        session = self._sessions.find(asyncio.get_running_loop())
        if session is None:
            return PoolStatistics(limit=self._limit, in_flight=0, waiting=0)
        return statistics_of(session.slots, self._limit)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return as soon as the headers of its answer are here.

        The limits are those of `request.extensions["timeout"]`. The caller must read the body to
        its end or close it.

        Raises:
            httpx.UnsupportedProtocol: The URL cannot be called; nothing was sent.
            httpx.LocalProtocolError: The request is not valid HTTP; nothing was sent.
            httpx.PoolTimeout: No free slot in time; nothing was sent.
            httpx.ConnectTimeout: No connection in time; nothing was sent.
            httpx.ConnectError: No connection; nothing was sent.
            httpx.WriteTimeout: The upstream stopped taking the body; it may have acted on it.
            httpx.WriteError: Lost while writing; the upstream may have the request.
            httpx.ReadTimeout: No headers in time; the upstream may have the request.
            httpx.ReadError: Lost while waiting; the upstream may have the request.
            httpx.RemoteProtocolError: Closed unanswered, or the answer is not HTTP; the upstream
                may have the request.
            RuntimeError: No asyncio loop is running.
        """
        limits = limits_of(request)
        url = request.url
        target = target_of(url.raw_scheme, url.netloc, url.raw_path)
        headers = _wire_headers(request)
        body = await _wire_body(request, limits)
        tls: ssl.SSLContext | bool = shared_tls_context() if target.scheme == "https" else True
        session = await self._session(limits)
        try:
            answer = await session.client.request(
                request.method,
                target,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=client_timeout(limits.connect, limits.read),
                ssl=tls,
            )
        except FOREIGN as error:
            session.slots.release()
            failure = maybe_accepted(error)
        except BaseException:
            session.slots.release()
            raise
        else:
            return _response(answer, session)
        # Outside the handler, so that the original, which holds the request, is not kept.
        raise failure

    async def aclose(self) -> None:
        """Close the running loop's connections; the next request opens new ones."""
        await self._sessions.aclose(asyncio.get_running_loop())

    async def _session(self, limits: CallLimits) -> LoopSession:
        """Return the running loop's session, with one of its slots taken."""
        loop = asyncio.get_running_loop()
        while True:
            session = self._sessions.find(loop) or await self._sessions.open(loop)
            await take_slot(session.slots, limits.pool)
            if not session.client.closed:
                return session
            session.slots.release()  # closed while we waited


class AnswerBody(httpx.AsyncByteStream):
    """The body of an answer as it comes off the socket; one read is one chunk.

    Iterating may raise `httpx.ReadTimeout` (silence), `httpx.RemoteProtocolError` (cut or
    garbled) or `httpx.ReadError` (connection lost), after all that had arrived was handed over.
    Closing is immediate and may be repeated; it cuts the connection unless all was received.
    """

    __slots__ = ("_answer", "_closed", "_content", "_protocol", "_session")

    def __init__(self, answer: "ClientResponse", session: LoopSession) -> None:
        """Take over an answer whose headers are here, and the slot it holds."""
        self._closed = False
        self._answer = answer
        self._content = answer.content
        self._session = session
        connection = answer.connection
        if connection is None:  # the whole body came with the headers
            self._protocol = None
            session.slots.release()
        else:
            self._protocol = connection.protocol
            # aiohttp gives the connection back at the last byte, or when we close: so the slot.
            connection.add_callback(session.slots.release)
            session.bodies.add(self)

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return itself: there is one body to read."""
        return self

    async def __anext__(self) -> bytes:
        """Return what has arrived, waiting for at least one byte.

        Raises:
            StopAsyncIteration: The body is complete.
        """
        content = self._content
        if content.exception() is not None and not self._closed and content._buffer:  # noqa: SLF001
            # Everything that came before a cut is a fact; aiohttp would drop it.
            return content._read_nowait(-1)  # noqa: SLF001
        try:
            chunk = await content.readany()
        except FOREIGN as error:
            failure = maybe_accepted(self._lost() or error)
        except BaseException:
            self.close()  # cancelled: cut now, whether or not the caller remembers to
            raise
        else:
            if chunk:
                return chunk
            if not self._reset_unseen():
                self.close()
                raise StopAsyncIteration
            failure = httpx.ReadError("the connection was lost before the end of the body")
        self.close()
        raise failure

    def close(self) -> None:
        """Give up the connection at once, and end whoever is reading."""
        if not self._closed:
            self._closed = True
            self._session.bodies.discard(self)
            self._answer.close()

    async def aclose(self) -> None:
        """Do as `close()` does; it never waits."""
        self.close()

    def __del__(self) -> None:
        """Give up the connection of an answer that was dropped, neither read nor closed."""
        if not self._closed:
            # Collected by any thread at any time; and the loop may have ended.
            with contextlib.suppress(RuntimeError):
                self._session.loop.call_soon_threadsafe(self._answer.close)

    def _lost(self) -> OSError | None:
        """Return the loss of the connection, if that is what the body failed of."""
        error = None if self._protocol is None else self._protocol.exception()
        return error if isinstance(error, OSError) else None

    def _reset_unseen(self) -> bool:
        """Say whether a reset was taken for the end of a body that only a close can end."""
        if self._lost() is None:
            return False
        headers = self._answer.headers
        return "Content-Length" not in headers and "Transfer-Encoding" not in headers


def _response(answer: "ClientResponse", session: LoopSession) -> httpx.Response:
    return httpx.Response(
        answer.status,
        headers=answer.raw_headers,
        stream=AnswerBody(answer, session),
        extensions={"http_version": _HTTP_1_0 if answer.version == (1, 0) else _HTTP_1_1},
    )


def _wire_headers(request: httpx.Request) -> CIMultiDict[str]:
    """Return the headers in aiohttp's form: as the caller set them, less the framing.

    Raises:
        httpx.LocalProtocolError: A header is not text that can be written back as the same bytes.
    """
    spelling: dict[str, str] = {}
    headers: CIMultiDict[str] = CIMultiDict()
    try:
        for raw_name, raw_value in request.headers.raw:
            name, folded = _header_name(raw_name)
            if folded not in _FRAMING:
                # aiohttp keeps repeated headers only where they are spelled alike.
                headers.add(spelling.setdefault(folded, name), raw_value.decode("utf-8"))
    except ValueError:
        failure = httpx.LocalProtocolError("a header of the request is not valid HTTP")
    else:
        return headers
    raise failure


@functools.lru_cache(maxsize=512)
def _header_name(raw: bytes) -> tuple[str, str]:
    """Return a header's name as it is spelled, and in small letters.

    Raises:
        ValueError: It is no name; aiohttp would write it nevertheless.
    """
    if not _TOKEN.fullmatch(raw):
        message = "not a header name"
        raise ValueError(message)
    name = raw.decode("ascii")
    return name, name.lower()


async def _wire_body(request: httpx.Request, limits: CallLimits) -> bytes | SlicedBody | None:
    content = await content_of(request)
    if len(content) > BODY_SLICE_BYTES:
        return SlicedBody(content, write_seconds=limits.write)
    return content or None
