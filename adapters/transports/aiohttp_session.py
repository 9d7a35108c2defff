"""An aiohttp session for one event loop, stripped of everything a gateway must not have."""

import asyncio  # aiohttp runs on asyncio alone
import functools
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol, cast

import aiohttp
import anyio
import httpx
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.helpers import _EXC_SENTINEL
from multidict import CIMultiDict
from yarl import URL

from adapters.transports.address_filter import permitted
from adapters.transports.aiohttp_failures import FOREIGN, BodyStalledError, not_sent
from adapters.transports.limits import KEEPALIVE_SECONDS
from adapters.transports.request_body import BODY_SLICE_BYTES

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

_KIB: Final = 1_024
MAX_HEADER_LINE_BYTES: Final = 16 * _KIB
MAX_HEADERS: Final = 256  # providers send about thirty
# Twice this much may wait unread in memory before the socket is no longer read.
READ_BUFFER_BYTES: Final = 64 * _KIB
_CLOSING_SECONDS: Final = 1.0
# What aiohttp would still add of itself while it writes the body.
_AUTOMATIC_HEADERS: Final[CIMultiDict[None]] = CIMultiDict({"Content-Type": None})


class ClosableBody(Protocol):
    """An answer's body that can be given up from outside."""

    def close(self) -> None:
        """Close its connection at once and end whoever reads it."""


class SlicedBody(aiohttp.Payload):
    """A large request body, written in slices of which each must be taken in time."""

    _autoclose = True

    def __init__(self, content: bytes, *, write_seconds: float) -> None:
        """Hold `content`, which is not copied, and the time limit of each slice."""
        super().__init__(content)
        self._content = content
        self._size = len(content)
        self._write_seconds = write_seconds

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content as text; aiohttp's interface asks for it."""
        return self._content.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the content.

        Raises:
            BodyStalledError: The upstream took nothing for as long as the write limit.
        """
        content = memoryview(self._content)
        try:
            for start in range(0, len(content), BODY_SLICE_BYTES):
                # aiohttp runs this in a task of its own, where no anyio scope of ours reaches.
                async with asyncio.timeout(self._write_seconds):
                    await writer.write(content[start : start + BODY_SLICE_BYTES])
        except TimeoutError:
            raise BodyStalledError from None


class BareRequest(ClientRequest):
    """A request with no header that nobody set."""

    def update_auto_headers(
        self,
        skip_auto_headers: Iterable[str] | None,  # noqa: ARG002  # aiohttp's signature
    ) -> None:
        """Add none; aiohttp's own way to add none costs 5 µs a request."""
        self._skip_auto_headers = _AUTOMATIC_HEADERS


class NoCookies(aiohttp.DummyCookieJar):
    """Keeps no cookie, and does not even parse one."""

    def update_cookies_from_headers(self, headers: Sequence[str], response_url: URL) -> None:
        """Ignore what the upstream wants remembered."""


class GuardedProtocol(ResponseHandler):
    """A connection that tells the reader of the body, too, what went wrong."""

    def set_exception(
        self,
        exc: BaseException,
        exc_cause: BaseException = _EXC_SENTINEL,
    ) -> None:
        """Fail the connection, and the body that is being received on it.

        Without this, a chunk that cannot be parsed leaves the body's reader waiting for ever:
        aiohttp fails the connection, stops the read limit, and forgets the body.
        """
        super().set_exception(exc, exc_cause)
        body = self._payload
        if body is not None and body.exception() is None and not body.is_eof():
            body.set_exception(exc)


class GuardedConnector(aiohttp.TCPConnector):
    """A connector whose failures are known not to have sent anything, and that cuts at once.

    aiohttp offers no public place for any of its five guards. They lean on private names of
    aiohttp 3.14, and each has its test in the contract that all transports keep.
    """

    def __init__(self) -> None:
        """Make a connector for the running loop; it does not count, its session does."""
        super().__init__(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
        self._factory = cast(
            "functools.partial[ResponseHandler]",
            functools.partial(GuardedProtocol, loop=self._loop),
        )

    async def connect(
        self,
        req: "ClientRequest",
        traces: "list[Trace]",
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # aiohttp's signature
    ) -> "Connection":
        """Find or make a connection.

        Raises:
            httpx.ConnectTimeout: No connection in time.
            httpx.ConnectError: Refused, unresolvable, or no TLS.
        """
        try:
            return await super().connect(req, traces, timeout)
        except FOREIGN as error:
            failure = not_sent(error)
        # Outside the handler, so that the original, which holds the request, is not kept.
        raise failure

    async def _get(self, key: "ConnectionKey", traces: "list[Trace]") -> "Connection | None":
        # aiohttp hands out idle connections without looking at what came in while they idled:
        # bytes after the end of an answer would be read as the answer to the next request.
        while (connection := await super()._get(key, traces)) is not None:
            protocol = connection.protocol
            if protocol is not None and not protocol.should_close:
                return connection
            connection.close()
        return None

    async def _resolve_host(
        self, host: str, port: int, traces: "Sequence[Trace] | None" = None
    ) -> "list[ResolveResult]":
        # Here and not in a resolver, which would not be asked about an address.
        found = await super()._resolve_host(host, port, traces)
        return permitted(host, found, lambda each: each["host"])

    def _release(
        self,
        key: "ConnectionKey",
        protocol: "ResponseHandler",
        *,
        should_close: bool = False,
    ) -> None:
        # A plain close waits until all that was written has been taken, and TLS waits for the
        # peer's good-bye; a call given up midway must not.
        if should_close:
            protocol.abort()
        super()._release(key, protocol, should_close=should_close)

    def abort_calls(self) -> None:
        """Cut every connection that is carrying a call."""
        for protocol in tuple(self._acquired):
            protocol.abort()


class LoopSession:
    """The connections of one event loop: client, slots, and the bodies being read.

    At most `limit` connections carry calls. Idle ones stay up to 15 seconds, at most `limit`
    for each upstream.
    """

    __slots__ = ("bodies", "client", "connector", "loop", "slots")

    def __init__(self, limit: int) -> None:
        """Open the session on the running loop; no connection is made yet."""
        # Slots are counted by us: aiohttp loses a wake-up when the waiter it chose is cancelled.
        self.slots = anyio.Semaphore(limit, max_value=limit, fast_acquire=True)
        # Held weakly, so that an answer that is dropped can clean up after itself.
        self.bodies: weakref.WeakSet[ClosableBody] = weakref.WeakSet()
        self.loop = asyncio.get_running_loop()
        self.connector = GuardedConnector()
        self.client = aiohttp.ClientSession(
            connector=self.connector,
            cookie_jar=NoCookies(),
            request_class=BareRequest,
            auto_decompress=False,
            trust_env=False,
            raise_for_status=False,
            read_bufsize=READ_BUFFER_BYTES,
            max_line_size=MAX_HEADER_LINE_BYTES,
            max_field_size=MAX_HEADER_LINE_BYTES,
            max_headers=MAX_HEADERS,
        )
        # There is one owner of retries, and it is not aiohttp, which repeats idempotent methods.
        # No public switch exists; aiohttp's own test client sets the same attribute.
        self.client._retry_connection = False  # noqa: SLF001

    async def aclose(self) -> None:
        """Close every connection, those in use too; their calls end with an error."""
        for body in tuple(self.bodies):
            body.close()
        self.connector.abort_calls()
        # Everything is cut already; this waits for the loop to say so, and not for ever.
        with anyio.move_on_after(_CLOSING_SECONDS):
            await self.client.close()

    def abandon(self) -> None:
        """Forget a session whose loop is closed; its sockets close when they are collected."""
        self.client.detach()
        self.connector._close()  # noqa: SLF001  # the public close needs a loop to await it on


@functools.lru_cache(maxsize=256)
def client_timeout(connect: float, read: float) -> aiohttp.ClientTimeout:
    """Return aiohttp's form of two limits in seconds; no total, which is the caller's deadline."""
    return aiohttp.ClientTimeout(
        total=None,
        connect=connect,
        sock_read=read,
        ceil_threshold=float("inf"),  # else 5.1 s could become 7
    )


@functools.lru_cache(maxsize=1_024)
def target_of(scheme: bytes, authority: bytes, path: bytes) -> URL:
    """Return aiohttp's form of a URL, without its user part; parsing costs more than a look-up.

    Raises:
        httpx.UnsupportedProtocol: Neither `http` nor `https`, or no host.
    """
    if scheme not in {b"http", b"https"} or not authority:
        message = "only http and https URLs with a host can be called"
        raise httpx.UnsupportedProtocol(message)
    return URL(f"{scheme.decode()}://{authority.decode()}{path.decode()}", encoded=True)
