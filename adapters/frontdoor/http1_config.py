"""What Hypercorn is told, and what `adapters.frontdoor.http1_protocol` needs beside it."""

from __future__ import annotations

# asyncio, because this belongs to Hypercorn's asyncio server.
import asyncio
import socket
import time
import weakref
from typing import TYPE_CHECKING, Final

import anyio
from hypercorn.asyncio.worker_context import EventWrapper
from hypercorn.config import Config, Sockets
from hypercorn.typing import WorkerContext

if TYPE_CHECKING:
    from adapters.frontdoor.http1_protocol import Http1Protocol


LINGER_SECONDS: Final = 0.5
"""How long a client has to ask on after an answer that had begun before the end was known."""


class Http1Config(Config):
    """Hypercorn's settings, with a listening socket of ours and what `Http1Protocol` needs.

    Attributes:
        listener: the socket to accept from; Hypercorn closes it.
        head_seconds: the longest time for a request head, from its first byte.
        ending: True once idle connections are no longer kept.
        connections: the open connections.
        lingering: those that stay open for a moment at the end, see `let_linger`.
    """

    def __init__(self, listener: socket.socket, *, head_seconds: float) -> None:
        """Keep the socket and start without connections."""
        super().__init__()
        self.listener = listener
        self.head_seconds = head_seconds
        self.ending = False
        self.connections: weakref.WeakSet[Http1Protocol] = weakref.WeakSet()
        self.lingering: set[Http1Protocol] = set()
        self._dated = 0
        self._own_fields = b""

    def own_fields(self) -> bytes:
        """Give the server's own answer headers as lines, with a date written once a second."""
        second = int(time.time())  # noqa: TID251 - a date in a header is the wall clock's
        if second != self._dated:
            pairs = self.response_headers("h11")
            self._own_fields = b"".join([b"%b: %b\r\n" % pair for pair in pairs])
            self._dated = second
        return self._own_fields

    def create_sockets(self) -> Sockets:
        """Give Hypercorn the socket, without a detour over its number."""
        return Sockets([], [self.listener], [])

    def follow(self, context: WorkerContext) -> None:
        """Close idle connections when Hypercorn ends, as its own task per connection would."""
        if not isinstance(context.terminated, _Terminated):
            context.terminated = _Terminated(self)

    def close_idle_connections(self) -> None:
        """Close every connection without a request now, and every other one after its request."""
        self.ending = True
        for protocol in list(self.connections):
            protocol.close_if_idle()

    async def let_linger(self) -> None:
        """Wait for those whose last answer could not say that the connection would close.

        A client that asks on just then is told that the server is draining.
        """
        with anyio.move_on_after(LINGER_SECONDS):
            while self.lingering:  # noqa: ASYNC110 - connections end in callbacks, not in tasks
                await anyio.sleep(LINGER_SECONDS / 20)

    def abort_connections(self) -> int:
        """Close every open connection at once, unsent data included.

        Returns:
            How many there were.
        """
        left = list(self.connections)
        for protocol in left:
            protocol.abort()
        return len(left)


class _Terminated(EventWrapper):
    """Hypercorn's event of its end, which also tells the connections."""

    def __init__(self, config: Http1Config) -> None:
        super().__init__()
        self._config = config

    async def set(self) -> None:
        """Tell them after Hypercorn has closed the listening socket, which it does next."""
        await super().set()
        asyncio.get_running_loop().call_soon(self._config.close_idle_connections)
