"""httpcore's network with two guards.

A handshake that is given up midway closes its socket; and of addresses that must not be called
nobody is told a byte.
"""

import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import httpcore
from httpcore import SOCKET_OPTION

from adapters.transports.address_filter import RefusedAddressError, is_refused
from adapters.transports.per_loop import running_on_trio


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects as httpcore does on the running event loop, with one limit for all of connecting."""

    def __init__(self) -> None:
        """Pick httpcore's network for the running event loop."""
        self._network: httpcore.AsyncNetworkBackend = (
            httpcore.TrioBackend() if running_on_trio() else httpcore.AnyIOBackend()
        )

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
        local_address: str | None = None,
        socket_options: Iterable[SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect.

        Raises:
            httpcore.ConnectTimeout: No connection in time.
            httpcore.ConnectError: No connection, or none that may be used.
        """
        deadline = None if timeout is None else anyio.current_time() + timeout
        stream = await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        # httpcore finds the addresses itself, so what it found is judged by whom it has reached.
        peer = stream.get_extra_info("server_addr")
        if peer is None or is_refused(host, str(peer[0])):
            with anyio.CancelScope(shield=True):
                await stream.aclose()
            failure = httpcore.ConnectError()
            # Not its cause: httpcore's pool takes that off.
            failure.__context__ = RefusedAddressError()
            raise failure
        return _TcpStream(stream, deadline)

    async def sleep(self, seconds: float) -> None:
        """Sleep; httpcore's interface asks for it."""
        await self._network.sleep(seconds)


class _TcpStream(httpcore.AsyncNetworkStream):
    """A TCP connection on which TLS may be started, until the deadline of the connect."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, deadline: float | None) -> None:
        self._stream = stream
        self._deadline = deadline

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
    ) -> httpcore.AsyncNetworkStream:
        if self._deadline is not None:
            timeout = max(self._deadline - anyio.current_time(), 0.001)
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            # httpcore closes it after an error, but not when cancelled.
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()
            raise

    async def read(
        self,
        max_bytes: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
    ) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(
        self,
        buffer: bytes,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's signature
    ) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
