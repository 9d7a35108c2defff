"""The portable transport: httpx's own, on trio and asyncio, with guards for its known faults.

Five faults of httpcore 1.0.9 shape this module.

* Its pool looks at every connection for every idle one on each call, so that a pool of 100 spends
  milliseconds on it (encode/httpx #3215): calls are spread over pools of ten.
* It loses a slot when a call is cancelled at a bad moment (encode/httpcore #1093): slots are
  counted outside, and a pool that has lost one is replaced.
* It drops idle connections while there are more connections than `max_keepalive_connections`,
  busy ones included: the two limits are kept equal.
* It takes bytes after the end of one answer for the start of the next: a connection with such a
  surplus is closed.
* It leaves the socket open when it is cancelled in a TLS handshake: `httpx_backend.py` closes it.

One difference to the aiohttp transport remains: httpcore reads nothing before it has written the
whole body, so an upstream that refuses an upload early is heard only if it closes as well.
"""

import collections
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, cast

import anyio
import httpcore
import httpx

from adapters.transports.httpx_backend import GuardedBackend
from adapters.transports.limits import (
    DEFAULT_CONCURRENT_CALLS,
    KEEPALIVE_SECONDS,
    CallLimits,
    PoolStatistics,
    limits_of,
    statistics_of,
    take_slot,
)
from adapters.transports.per_loop import PerLoop, required_loop
from adapters.transports.request_body import SlicedStream, content_of
from adapters.transports.system_words import system_words
from adapters.transports.tls import shared_tls_context

POOL_CONNECTIONS: Final = 10
# Origins whose idle connections are kept; the one unused for longest makes room.
MAX_ORIGINS: Final = 256
# By our count the pool has a free slot, so its answer is immediate unless it has lost one.
_SLOT_LOST_SECONDS: Final = 0.05

FOREIGN: Final = (httpx.TransportError, OSError, ValueError)
"""Everything that httpx lets out: its own errors, and now and then a raw one."""

_Origin = tuple[bytes, bytes]
_Row = tuple[type[Exception], type[httpx.TransportError], str]

# The first row that fits decides.
_TEXTS: Final[tuple[_Row, ...]] = (
    (httpx.UnsupportedProtocol, httpx.UnsupportedProtocol, "only http and https can be called"),
    (httpx.LocalProtocolError, httpx.LocalProtocolError, "the request cannot be written as HTTP"),
    (httpx.PoolTimeout, httpx.PoolTimeout, "no free connection slot in time"),
    (httpx.ConnectTimeout, httpx.ConnectTimeout, "no connection in time"),
    (httpx.ConnectError, httpx.ConnectError, "cannot connect"),
    (httpx.WriteTimeout, httpx.WriteTimeout, "the upstream took no more of the body in time"),
    (httpx.WriteError, httpx.WriteError, "connection lost while writing"),
    (httpx.ReadTimeout, httpx.ReadTimeout, "the upstream sent nothing in time"),
    (httpx.RemoteProtocolError, httpx.RemoteProtocolError, "the answer is cut or malformed HTTP"),
    (ValueError, httpx.LocalProtocolError, "the request cannot be written as HTTP"),
    (Exception, httpx.ReadError, "connection lost"),
)


class SmallPool:
    """One httpx transport of at most ten connections to one origin."""

    __slots__ = ("active", "retired", "transport")

    def __init__(self) -> None:
        """Make the pool; no connection is made yet."""
        self.active = 0
        self.retired = False
        self.transport = httpx.AsyncHTTPTransport(
            verify=shared_tls_context(),
            trust_env=False,
            http1=True,
            http2=False,
            retries=0,
            limits=httpx.Limits(
                max_connections=POOL_CONNECTIONS,
                max_keepalive_connections=POOL_CONNECTIONS,
                keepalive_expiry=KEEPALIVE_SECONDS,
            ),
        )
        # httpcore takes a network of one's own; httpx has no way to hand it on.
        self.transport._pool._network_backend = GuardedBackend()  # noqa: SLF001

    def has_room(self) -> bool:
        """Say whether a further call may be given to this pool."""
        return self.active < POOL_CONNECTIONS and not self.retired

    def has_lost_a_slot(self) -> bool:
        """Say whether more connections are taken than there are calls."""
        connections = self.transport._pool.connections  # noqa: SLF001  # httpx shows it nowhere
        taken = sum(not (each.is_idle() or each.is_closed()) for each in connections)
        return taken > self.active


class LoopPools:
    """The small pools of one event loop, by origin, and the count of all their slots."""

    def __init__(self, limit: int) -> None:
        """Make room for `limit` calls at once."""
        self.slots = anyio.Semaphore(limit, max_value=limit, fast_acquire=True)
        self.closed = False
        self._origins: collections.OrderedDict[_Origin, list[SmallPool]] = collections.OrderedDict()

    def count_in(self, origin: _Origin) -> SmallPool:
        """Pick a pool for a call to `origin`, and count the call in."""
        pools = self._origins.setdefault(origin, [])
        self._origins.move_to_end(origin)
        for pool in pools:  # the first with room: calls gather where connections are warm
            if pool.has_room():
                break
        else:
            pool = SmallPool()
            pools.append(pool)
        pool.active += 1
        return pool

    async def close_if_done(self, pool: SmallPool) -> None:
        """Close a retired pool after its last call, even while being cancelled."""
        if pool.retired and pool.active == 0:
            with anyio.CancelScope(shield=True):
                await pool.transport.aclose()

    def retire(self, pool: SmallPool, origin: _Origin) -> None:
        """Give the pool no further call; the last of its calls closes it."""
        pool.retired = True
        pools = self._origins.get(origin, [])
        if pool in pools:
            pools.remove(pool)

    async def forget_origins(self) -> None:
        """Close the pools of the origin unused for longest, if there are too many."""
        if len(self._origins) <= MAX_ORIGINS:
            return
        for origin, pools in self._origins.items():
            if not any(pool.active for pool in pools):
                del self._origins[origin]
                await _close(pools)
                return

    async def aclose(self) -> None:
        """Close every connection, those in use too; their calls end with an error."""
        self.closed = True
        pools = [pool for pools in self._origins.values() for pool in pools]
        self._origins.clear()
        await _close(pools)

    def abandon(self) -> None:
        """Forget the pools of a loop that has ended."""
        self._origins.clear()


async def _close(pools: list[SmallPool]) -> None:
    with anyio.CancelScope(shield=True):
        for pool in pools:
            await pool.transport.aclose()


class Call:
    """A call that holds a slot and a place in a small pool, both until `end()`."""

    __slots__ = ("_ended", "_origin", "_pool", "_pools")

    def __init__(self, pools: LoopPools, origin: _Origin) -> None:
        """Count the call in; the slot is taken already."""
        self._pools = pools
        self._origin = origin
        self._pool = pools.count_in(origin)
        self._ended = False

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send the request, once more in a new pool if this one has no slot left to give.

        Raises:
            httpx.TransportError: Any of httpx's, with texts that may hold secrets.
        """
        await self._pools.forget_origins()
        try:
            return await self._pool.transport.handle_async_request(request)
        except httpx.PoolTimeout:
            pass  # nothing was sent: the pool takes itself for full, and by our count it is not
        full = self._pool
        self._pools.retire(full, self._origin)
        self._pool = self._pools.count_in(self._origin)
        full.active -= 1
        await self._pools.close_if_done(full)
        return await self._pool.transport.handle_async_request(request)

    async def end(self) -> None:
        """Give slot and place back, and replace the pool if it lost a slot over this call."""
        if self._ended:
            return
        self._ended = True
        self._pools.slots.release()
        self._pool.active -= 1
        if self._pool.has_lost_a_slot():
            self._pools.retire(self._pool, self._origin)
        await self._pools.close_if_done(self._pool)


class HttpxPoolTransport(httpx.AsyncBaseTransport):
    """Sends HTTP/1.1 requests with httpx's own client, on trio and asyncio.

    One object serves any number of event loops and threads, each with pools of its own, closed by
    `aclose()` there, or when the loop's runner ends the loop. No retry, redirect, cookie, proxy
    from the environment, or decompression.
    """

    def __init__(self, *, limit: int = DEFAULT_CONCURRENT_CALLS) -> None:
        """Make the transport; no I/O, no task, no running loop needed.

        Args:
            limit: Calls that may run at once on one event loop. A further call waits for as
                long as its `pool` limit says.
        """
        self._limit = limit
        self._pools = PerLoop(lambda: LoopPools(limit))

    def __repr__(self) -> str:
        """Name the bound."""
        return f"HttpxPoolTransport(limit={self._limit})"

    def statistics(self) -> PoolStatistics:
        """Return the use of the running loop's slots.

        Raises:
            RuntimeError: No event loop is running.
        """
        pools = self._pools.find(required_loop())
        if pools is None:
            return PoolStatistics(limit=self._limit, in_flight=0, waiting=0)
        return statistics_of(pools.slots, self._limit)

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
        """
        limits = limits_of(request)
        bounded = await _bounded(request, limits)
        pools = await self._slot(limits)
        call = Call(pools, (request.url.raw_scheme, request.url.netloc))
        try:
            response = await call.send(bounded)
        except FOREIGN as error:
            failure = told_without_secrets(error)
        except BaseException:
            await call.end()
            raise
        else:
            response.stream = PooledBody(response, call)
            return response
        await call.end()
        # Outside the handler, so that the original is not kept.
        raise failure

    async def aclose(self) -> None:
        """Close the running loop's connections; the next request opens new ones."""
        await self._pools.aclose(required_loop())

    async def _slot(self, limits: CallLimits) -> LoopPools:
        """Return the running loop's pools, with one of their slots taken."""
        loop = required_loop()
        while True:
            pools = self._pools.find(loop) or await self._pools.open(loop)
            await take_slot(pools.slots, limits.pool)
            if not pools.closed:
                return pools
            pools.slots.release()  # closed while we waited


class PooledBody(httpx.AsyncByteStream):
    """The body of an answer as it comes off the socket; one read is one chunk.

    Iterating may raise `httpx.ReadTimeout` (silence), `httpx.RemoteProtocolError` (cut or
    garbled) or `httpx.ReadError` (connection lost). Closing may be repeated; it cuts the
    connection unless all was received.
    """

    __slots__ = ("_call", "_chunks", "_stream")

    def __init__(self, response: httpx.Response, call: Call) -> None:
        """Take over an answer whose headers are here, and the call it belongs to."""
        stream = cast("httpx.AsyncByteStream", response.stream)
        self._stream = stream
        self._chunks = cast("AsyncGenerator[bytes]", aiter(stream))
        self._call = call

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Return itself: there is one body to read."""
        return self

    async def __anext__(self) -> bytes:
        """Return what has arrived, waiting for at least one byte.

        Raises:
            StopAsyncIteration: The body is complete.
        """
        try:
            return await anext(self._chunks)
        except FOREIGN as error:
            failure = told_without_secrets(error)
        except BaseException:  # the end; or cancelled: cut now, though the caller may forget to
            await self.aclose()
            raise
        await self.aclose()
        raise failure

    async def aclose(self) -> None:
        """Give up the connection unless the body is complete, even while being cancelled."""
        with anyio.CancelScope(shield=True):
            try:
                spoilt = _spoilt_connection(self._stream)
                await self._stream.aclose()
                await self._chunks.aclose()
                if spoilt is not None:
                    # Nobody can have taken it since: nothing above waits once it is given back.
                    await spoilt.aclose()
            finally:
                await self._call.end()


def _spoilt_connection(stream: httpx.AsyncByteStream) -> httpcore.AsyncHTTP11Connection | None:
    """Return the connection of a body, if more came on it than the body."""
    # httpx's stream, the pool's, the connection's, the connection; httpcore shows none of them.
    inner: object = stream
    for name in ("_httpcore_stream", "_stream", "_connection"):
        inner = getattr(inner, name, None)
    if isinstance(inner, httpcore.AsyncHTTP11Connection) and inner._h11_state.trailing_data[0]:  # noqa: SLF001
        return inner
    return None


def told_without_secrets(error: Exception) -> httpx.TransportError:
    """Translate what httpx lets out into the same class with a text of ours.

    httpx's classes are right already; its texts are not, since those of h11 quote headers.
    """
    for foreign, ours, text in _TEXTS:
        if isinstance(error, foreign):
            reason = system_words(error) if issubclass(ours, httpx.ConnectError) else ""
            return ours(f"{text}: {reason}" if reason else text)
    message = "the last row fits everything"
    raise AssertionError(message)


async def _bounded(request: httpx.Request, limits: CallLimits) -> httpx.Request:
    """Return the same request with finite limits, and no wait for what is known to be free."""
    timeout = limits._replace(pool=_SLOT_LOST_SECONDS)._asdict()
    return httpx.Request(
        request.method,
        request.url,
        headers=request.headers,
        stream=SlicedStream(await content_of(request)),
        extensions={**request.extensions, "timeout": timeout},
    )
