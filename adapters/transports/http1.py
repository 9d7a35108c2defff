"""The default transport on asyncio: HTTP/1.1 of our own, parsed in C by httptools."""

import asyncio  # its protocols and sockets are what this is made of
from typing import Final

import httpx

from adapters.transports.http1_answer import AnswerBody, Exchange
from adapters.transports.http1_connection import Http1Connection
from adapters.transports.http1_pool import LoopConnections
from adapters.transports.http1_request import Target, head_of, target_of
from adapters.transports.limits import (
    DEFAULT_CONCURRENT_CALLS,
    CallLimits,
    PoolStatistics,
    limits_of,
    statistics_of,
    take_slot,
)
from adapters.transports.per_loop import PerLoop
from adapters.transports.request_body import content_of

_HTTP_1_0: Final = {"http_version": b"HTTP/1.0"}
_HTTP_1_1: Final = {"http_version": b"HTTP/1.1"}


class Http1Transport(httpx.AsyncBaseTransport):
    """Sends HTTP/1.1 requests on asyncio or uvloop.

    One object serves any number of event loops and threads: each loop gets connections of its
    own at its first request, closed by `aclose()` there, or when the loop's runner ends the loop.
    Nothing happens behind the caller's back: no retry, redirect, cookie, proxy from the
    environment, decompression, or header but the framing and a missing `Host`.
    """

    def __init__(self, *, limit: int = DEFAULT_CONCURRENT_CALLS) -> None:
        """Make the transport; no I/O, no task, no running loop needed.

        Args:
            limit: Calls that may run at once on one event loop. A further call waits for as
                long as its `pool` limit says.
        """
        self._limit = limit
        self._connections = PerLoop(lambda: LoopConnections(limit))

    def __repr__(self) -> str:
        """Name the bound."""
        return f"Http1Transport(limit={self._limit})"

    def statistics(self) -> PoolStatistics:
        """Return the use of the running loop's slots.

        Raises:
            RuntimeError: No asyncio loop is running.
        """
        connections = self._connections.find(asyncio.get_running_loop())
        if connections is None:
            return PoolStatistics(limit=self._limit, in_flight=0, waiting=0)
        return statistics_of(connections.slots, self._limit)

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
        body = await content_of(request)
        head = head_of(request, target, len(body))
        connections = await self._slot(limits)
        connection = connections.take_idle(target.origin)
        if connection is None:
            connection = await _connect(connections, target, limits)
        exchange = Exchange(connections.loop, head_only=request.method == "HEAD")
        connection.start(exchange, head, body, limits)  # the slot is the exchange's from now on
        await exchange.head()
        return _response(exchange)

    async def aclose(self) -> None:
        """Close the running loop's connections; the next request opens new ones."""
        await self._connections.aclose(asyncio.get_running_loop())

    async def _slot(self, limits: CallLimits) -> LoopConnections:
        """Return the running loop's connections, with one of their slots taken."""
        loop = asyncio.get_running_loop()
        while True:
            connections = self._connections.find(loop) or await self._connections.open(loop)
            await take_slot(connections.slots, limits.pool)
            if not connections.closed:
                return connections
            connections.slots.release()  # closed while we waited


async def _connect(
    connections: LoopConnections, target: Target, limits: CallLimits
) -> Http1Connection:
    """Make a connection, or give the slot back that is held for it."""
    try:
        return await connections.connect(target.origin, seconds=limits.connect)
    except BaseException:
        connections.slots.release()
        raise


def _response(exchange: Exchange) -> httpx.Response:
    headers = exchange.headers
    response = httpx.Response(
        exchange.status,
        headers=headers,
        stream=AnswerBody(exchange),
        extensions=_HTTP_1_0 if exchange.http_1_0 else _HTTP_1_1,
    )
    # httpx would try the encodings out on all of it at the first look at a header: 3 µs.
    if b"".join([value for _, value in headers]).isascii():
        response.headers.encoding = "ascii"
    return response
