"""HTTP/1.1 and nothing else: the one place where we change what Hypercorn does.

Hypercorn 0.18 has five habits that no setting turns off and no app can undo, because they act
before or after the app:

1. It answers ``Upgrade: h2c`` with 101 and takes the HTTP/2 preface on a connection without TLS.
   That is a second parser, chosen by whoever sends the bytes, behind proxies that saw HTTP/1.1.
2. When an app has answered and a body is still coming, it waits for room in a queue that nobody
   reads, for ever: a task and a connection are lost per such request.
3. A leaving client is only an event in that same queue, so noticing it costs each request a task.
4. One timer bounds both an idle kept-alive connection and a request head that trickles in. The
   first should be longer than any client's own, the second short.
5. A client that closes an idle connection leaves it behind until that timer has run out.

`Http1Protocol` is Hypercorn's protocol with these five changed, and `use_http1_only` puts it in its
place. The pins are in ``tests/integration``: if a new Hypercorn works differently, they fail.
"""

# asyncio, because Hypercorn's asyncio server is what is changed here.
import asyncio
import socket
import time
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import h11
import hypercorn.protocol
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config, Sockets
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup, WorkerContext

from adapters.frontdoor.client_connection import CLIENT_STATE_KEY

_REQUEST_TIMEOUT: Final = 408


class Http1Config(Config):
    """Hypercorn's settings, with a listening socket of ours and what `Http1Protocol` needs.

    Attributes:
        listener: the socket to accept from; Hypercorn closes it.
        head_seconds: the longest time for a request head, from its first byte.
        connections: the open connections, for `abort_connections`.
    """

    def __init__(self, listener: socket.socket, *, head_seconds: float) -> None:
        """Keep the socket and start without connections."""
        super().__init__()
        self.listener = listener
        self.head_seconds = head_seconds
        self.connections: weakref.WeakSet[Http1Protocol] = weakref.WeakSet()
        self._dated = 0
        self._own_headers: list[tuple[bytes, bytes]] = []

    def response_headers(self, protocol: str) -> list[tuple[bytes, bytes]]:
        """Give the server's own answer headers, with a date that is written once a second."""
        second = int(time.time())  # noqa: TID251 - a date in a header is the wall clock's
        if second != self._dated:
            self._own_headers = super().response_headers(protocol)
            self._dated = second
        return self._own_headers

    def create_sockets(self) -> Sockets:
        """Give Hypercorn the socket, without a detour over its number."""
        return Sockets([], [self.listener], [])

    def abort_connections(self) -> int:
        """Close every open connection at once, unsent data included.

        Returns:
            How many there were.
        """
        left = list(self.connections)
        for protocol in left:
            protocol.client_connection.abort()
        return len(left)


class HypercornClient:
    """One client's connection, as `adapters.frontdoor.receiver.ClientConnection` wants it."""

    __slots__ = ("_protocol", "on_gone")

    def __init__(self, protocol: "Http1Protocol") -> None:
        """Belong to a protocol."""
        self.on_gone: Callable[[], None] | None = None
        self._protocol = protocol

    def abort(self) -> None:
        """Close the connection now and throw away what has not been sent."""
        server = getattr(self._protocol.send, "__self__", None)
        if isinstance(server, TCPServer):
            server.writer.transport.abort()

    def tell_gone(self) -> None:
        """Call back whoever serves this client's request."""
        if self.on_gone is not None:
            self.on_gone()


class Http1Protocol(H11Protocol):
    """Hypercorn's HTTP/1.1 connection with the five changes of the module's text."""

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        task_group: TaskGroup,
        connection_state: ConnectionState,
        *others: Any,
    ) -> None:
        """Add the client to the state that each request's scope gets a copy of."""
        self.client_connection = HypercornClient(self)
        state = ConnectionState({**connection_state, CLIENT_STATE_KEY: self.client_connection})
        super().__init__(app, config, context, task_group, state, *others)
        self._head_timer: asyncio.TimerHandle | None = None
        if isinstance(config, Http1Config):
            config.connections.add(self)

    async def handle(self, event: Event) -> None:
        """Tell the exchange when its client has left, and time request heads."""
        if isinstance(event, Closed):
            self._stop_head_timer()
            if self.stream is None:
                await self.send(Closed())
                return
            self.client_connection.tell_gone()
        await super().handle(event)
        if self.stream is not None:
            self._stop_head_timer()
        elif isinstance(event, RawData):
            self._time_head()

    async def _check_protocol(self, event: h11.Request) -> None:
        """Stay with HTTP/1.1 whatever the client proposes; the framing gate refuses it."""

    async def _create_stream(self, request: h11.Request) -> None:
        await super()._create_stream(request)
        if isinstance(self.stream, HTTPStream):
            self.stream.app_put = partial(_put_message, self.stream.app_put)

    def _time_head(self) -> None:
        """Start the timer with the first byte of a head, stop it when none is pending."""
        pending = bool(self.connection.trailing_data[0])
        if not pending:
            self._stop_head_timer()
        elif self._head_timer is None and isinstance(self.config, Http1Config):
            loop = asyncio.get_running_loop()
            self._head_timer = loop.call_later(self.config.head_seconds, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.stream is None:
            self.task_group.spawn(self._refuse_late_head)

    async def _refuse_late_head(self) -> None:
        if self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send_error_response(_REQUEST_TIMEOUT)
        await self.send(Closed())


async def _put_message(
    put: Callable[[Any], Awaitable[None]],
    message: Any,
) -> None:
    """Queue a message for the app; the disconnect takes the place of what nobody read before it.

    A body that is cut short is of no use, so nothing is lost, and the end of a request never waits
    for an app that has stopped reading.
    """
    queue: asyncio.Queue[Any] = put.__self__  # type: ignore[attr-defined]
    if message["type"] == "http.disconnect":
        while not queue.empty():
            queue.get_nowait()
    await put(message)


def use_http1_only() -> None:
    """Make Hypercorn, in this process, build `Http1Protocol` for every connection.

    Hypercorn offers no way to pass a protocol in; the name that its connection wrapper looks up is
    the narrowest place to change. Doing it twice is harmless.
    """
    setattr(hypercorn.protocol, "H11Protocol", Http1Protocol)  # noqa: B010 - not an exported name
