"""From an origin to a connection: name look-up, TCP over all addresses, TLS.

Whatever fails here failed before a byte of a request was sent, and is told so.
"""

import asyncio  # makes the connections
import collections
import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import aiohappyeyeballs
import anyio
import httpx
from aiohappyeyeballs import AddrInfoType

from adapters.transports.address_filter import permitted
from adapters.transports.http1_connection import ConnectionOwner, Http1Connection
from adapters.transports.http1_request import Origin
from adapters.transports.system_words import system_words
from adapters.transports.tls import shared_tls_context

# Long enough for a burst of new connections, short enough to follow a moved service.
NAMES_KEPT_SECONDS: Final = 10.0
MAX_NAMES: Final = 256
# The head start of each address before the next is tried as well (RFC 8305 section 5).
_NEXT_ADDRESS_SECONDS: Final = 0.25

LookUp = Callable[[str, int], Awaitable[Sequence[AddrInfoType]]]
_Row = tuple[type[Exception], type[httpx.TransportError], str]

# The first row that fits decides, so special cases stand above general ones.
_ROWS: Final[tuple[_Row, ...]] = (
    (socket.gaierror, httpx.ConnectError, "cannot resolve the host name"),
    (ssl.SSLCertVerificationError, httpx.ConnectError, "certificate refused"),
    (ssl.SSLError, httpx.ConnectError, "TLS handshake failed"),
    (TimeoutError, httpx.ConnectTimeout, "no connection in time"),
    (ValueError, httpx.LocalProtocolError, "the address cannot be connected to"),
    (Exception, httpx.ConnectError, "cannot connect"),
)
# uvloop raises RuntimeError where a socket cannot be connected at all.
_FOREIGN: Final = (OSError, ValueError, RuntimeError)


class Resolver:
    """The addresses of host names, kept for ten seconds, for at most 256 of them."""

    def __init__(self, look_up: LookUp | None = None) -> None:
        """Know no name yet.

        Args:
            look_up: Asks for a host and a port; None for the running loop, which asks the system.
        """
        self._look_up = look_up or _ask_the_system
        self._known: dict[tuple[str, int], tuple[float, Sequence[AddrInfoType]]] = {}
        # A look-up takes a thread of the loop's few: one for each name at a time is enough.
        self._asking: collections.defaultdict[tuple[str, int], anyio.Lock] = (
            collections.defaultdict(anyio.Lock)
        )

    async def find(self, host: str, port: int) -> Sequence[AddrInfoType]:
        """Return the addresses of a host, asking the system if need be.

        Raises:
            OSError: The name does not resolve, or leads where no connection may be made to.
            ValueError: It cannot be a name.
        """
        with contextlib.suppress(socket.gaierror):
            # A plain address: answered at once, without a thread.
            return _addresses(
                host, socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=_NUMERIC)
            )
        key = host, port
        lock = self._asking[key]
        try:
            async with lock:
                loop = asyncio.get_running_loop()
                kept = self._known.get(key)
                if kept is not None and loop.time() < kept[0]:
                    return kept[1]
                found = _addresses(host, await self._look_up(host, port))
                if len(self._known) >= MAX_NAMES:
                    self._known.clear()  # rare, and costs a look-up for each name in use
                self._known[key] = loop.time() + NAMES_KEPT_SECONDS, found
                return found
        finally:
            if not lock.locked():
                self._asking.pop(key, None)

    def forget(self, host: str, port: int) -> None:
        """Ask again the next time: nobody was found at the addresses."""
        self._known.pop((host, port), None)


_NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV


async def _ask_the_system(host: str, port: int) -> Sequence[AddrInfoType]:
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


def _addresses(host: str, found: Sequence[AddrInfoType]) -> Sequence[AddrInfoType]:
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "no address")
    return permitted(host, found, lambda each: str(each[4][0]))


async def connect(
    owner: ConnectionOwner, origin: Origin, resolver: Resolver, *, seconds: float
) -> Http1Connection:
    """Make a connection.

    Args:
        owner: Who will keep it.
        origin: Whom to connect to.
        resolver: Finds the addresses.
        seconds: Limit of everything together.

    Raises:
        httpx.ConnectTimeout: No connection in time.
        httpx.ConnectError: Refused, unresolvable, a forbidden address, or no TLS.
        httpx.LocalProtocolError: The address is impossible.
    """
    connection = Http1Connection(owner, origin, asyncio.get_running_loop())
    try:
        with anyio.fail_after(seconds):
            await _open(connection, origin, resolver)
    except _FOREIGN as error:
        failure = not_sent(error)
    except BaseException:
        connection.abort()  # cancelled in the very moment of its success
        raise
    else:
        return connection
    connection.abort()
    # Outside the handler, so that the original, which names the address, is not kept.
    raise failure


async def _open(connection: Http1Connection, origin: Origin, resolver: Resolver) -> None:
    loop = asyncio.get_running_loop()
    tls = shared_tls_context() if origin.tls else None
    addresses = await resolver.find(origin.host, origin.port)
    try:
        plain = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, loop=loop
        )
    except OSError:
        resolver.forget(origin.host, origin.port)
        raise
    taken = False
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        await loop.create_connection(
            lambda: connection,
            sock=plain,
            ssl=tls,
            # A dot at the end means "no search list", and is in no certificate.
            server_hostname=origin.host.rstrip(".") if tls else None,
        )
        taken = True
    finally:
        if not taken:
            with contextlib.suppress(OSError):
                plain.close()


def not_sent(error: Exception) -> httpx.TransportError:
    """Translate a failure met while connecting: not a byte of the request has left.

    Returns:
        `ConnectTimeout`, `ConnectError`, or `LocalProtocolError` for an impossible address.
    """
    # The system's own limit on a connect, where that is shorter than ours.
    if getattr(error, "errno", None) == errno.ETIMEDOUT:
        error = TimeoutError()
    reason = system_words(error)
    for foreign, ours, text in _ROWS:
        if isinstance(error, foreign):
            return ours(f"{text}: {reason}" if reason else text)
    message = "the last row fits everything"
    raise AssertionError(message)
