"""HTTP/1.1 and nothing else: what stands between Hypercorn's connections and our app.

Hypercorn 0.18 accepts the connections, owns the task of each, and ends them at shutdown. Its own
HTTP layer is replaced here, for what no setting turns off and no app can undo:

1. It answers ``Upgrade: h2c`` with 101 and takes the HTTP/2 preface on a connection without TLS.
   That is a second parser, chosen by whoever sends the bytes, behind proxies that saw HTTP/1.1.
2. When an app has answered and a body is still coming, it waits for room in a queue that nobody
   reads, for ever: a task and a connection are lost per such request.
3. A leaving client is only an event in that same queue, so noticing it costs each request a task.
4. One timer bounds both an idle kept-alive connection and a request head that trickles in. The
   first should be longer than any client's own, the second short.
5. A client that closes an idle connection leaves it behind until that timer has run out.
6. Between a read and the app stand a stream reader, a queue, two locks and a task that is started
   and cancelled for each request, around a parser in Python: four fifths of what a request costs.

`Http1Protocol` takes the place of Hypercorn's ``H11Protocol`` and, on the socket, of asyncio's
stream reader: bytes go straight to `RequestReader`, answers straight to the transport. Everything
else of the connection still reaches Hypercorn's own objects. The pins are in ``tests/integration``:
if a new Hypercorn works differently, they fail.
"""

from __future__ import annotations

# asyncio, because this is a protocol of Hypercorn's asyncio server.
import asyncio
import contextvars
from typing import Any, Final, cast
from urllib.parse import unquote

import hypercorn.protocol
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config
from hypercorn.events import Event, RawData
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup, WorkerContext

from adapters.frontdoor.client_connection import CLIENT_STATE_KEY
from adapters.frontdoor.http1_answer import whole_answer
from adapters.frontdoor.http1_config import LINGER_SECONDS, Http1Config
from adapters.frontdoor.http1_reader import MalformedRequestError, RequestHead, RequestReader
from adapters.frontdoor.http1_stream import RequestStream

_FORBIDDEN: Final = 403
_REQUEST_TIMEOUT: Final = 408
_INTERNAL_ERROR: Final = 500
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Http1Protocol(asyncio.Protocol):
    """One connection: its reader, the request that is being served, and its timers.

    Attributes:
        config: the server's settings.
        transport: the connection's socket.
        write_paused: True while the client does not read as fast as we write.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: Http1Config,
        task_group: TaskGroup,
        state: ConnectionState,
        *,
        addresses: tuple[tuple[str, int] | None, tuple[str, int] | None],
        server: TCPServer,
    ) -> None:
        """Take the place of the connection's stream reader.

        Args:
            app: Hypercorn's wrapper of the ASGI app.
            config: the server's settings.
            task_group: where the tasks of requests run; it ends with the connection.
            state: what the lifespan left for every request.
            addresses: the client's and our own.
            server: Hypercorn's owner of the connection.
        """
        self.config = config
        self.transport = cast("asyncio.Transport", server.writer.transport)
        self.write_paused = False
        self._app: Any = app
        self._task_group = task_group
        self._state = state
        self._client, self._server_address = addresses
        self._server = server
        # Requests start from here, so that nothing of one request shows in the next one's context.
        self._context = contextvars.copy_context()
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(head_limit=config.h11_max_incomplete_size)
        self._stream: RequestStream | None = None
        self._closing = False
        self._reading = True
        self._idle_since = self._loop.time()
        self._idle_timer = self._loop.call_later(config.keep_alive_timeout, self._check_idle)
        self._head_timer: asyncio.TimerHandle | None = None
        self._streams = self.transport.get_protocol()
        config.connections.add(self)
        server.idle_task = cast("Any", _NoTask())

    # ── what Hypercorn calls ─────────────────────────────────────────────────────

    async def initiate(self) -> None:
        """Take the bytes from the socket."""
        self.transport.set_protocol(self)
        if self.config.ending:
            self.close_if_idle()

    async def handle(self, event: Event) -> None:
        """Take what the stream reader still had, or the connection's end."""
        if not isinstance(event, RawData):
            self._client_left()
        elif event.data:
            self.data_received(event.data)

    # ── what the transport calls ─────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if not self._closing:
            self._reader.take(data)
            self._advance()

    def eof_received(self) -> bool | None:
        """Count a client that shuts down its sending half as gone."""
        self._client_left()
        return cast("asyncio.Protocol", self._streams).eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the request, the timers and Hypercorn go."""
        self._client_left()
        self._idle_timer.cancel()
        self._stop_head_timer()
        self.config.lingering.discard(self)
        self._streams.connection_lost(exc)

    def pause_writing(self) -> None:
        """Let writers wait."""
        self.write_paused = True
        self._streams.pause_writing()

    def resume_writing(self) -> None:
        """Let writers go on."""
        self.write_paused = False
        self._streams.resume_writing()

    # ── what a request's stream calls ────────────────────────────────────────────

    async def drained(self) -> None:
        """Wait until the client has read enough."""
        try:
            await self._server.writer.drain()
        except (ConnectionError, RuntimeError):
            self._client_left()

    def answered(self, stream: RequestStream) -> None:
        """Go on to the next request, or close the connection."""
        stream.end()
        self._stream = None
        usable = stream.body_complete and stream.answer.keep_alive and not self._reader.overrun
        if not usable:
            self.close()
            return
        if self.config.ending:
            # Its head went out before the end was known, so the client may ask on at this very
            # moment: it is told so, and not cut off.
            self.config.lingering.add(self)
            self._loop.call_later(LINGER_SECONDS, self.close_if_idle)
        self._idle_since = self._loop.time()
        if self._reader.pending:
            self._advance()
        else:
            self.steer_reading()

    def steer_reading(self) -> None:
        """Read from the socket only what somebody can take."""
        stream = self._stream
        # Nothing is read ahead of the request that is being served.
        wanted = stream is None or (not stream.full and not self._reader.pending)
        if wanted is not self._reading and not self._closing:
            self._reading = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # ── what ends a connection ───────────────────────────────────────────────────

    def close(self) -> None:
        """Close the connection once everything has been sent."""
        self._closing = True
        self._stop_head_timer()
        self.transport.close()

    def close_if_idle(self) -> None:
        """Close the connection if no request is being served on it."""
        if self._stream is None:
            self.close()

    def abort(self) -> None:
        """Close the connection now and throw away what has not been sent."""
        self._closing = True
        self.transport.abort()

    def _client_left(self) -> None:
        """Serve nothing more; Hypercorn closes the connection once the request has ended."""
        self._closing = True
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.leave()

    def _check_idle(self) -> None:
        """Close a connection that has been idle for too long, or look again when it may be."""
        limit = self.config.keep_alive_timeout
        left = limit
        if self._stream is None:
            left = self._idle_since + limit - self._loop.time()
        if left > 0:
            self._idle_timer = self._loop.call_later(left, self._check_idle)
        else:
            self.close()

    # ── from bytes to requests ───────────────────────────────────────────────────

    def _advance(self) -> None:
        """Make of the bytes that have come what can be made of them now."""
        stream = self._stream
        try:
            if stream is None:
                self._begin_request()
            elif not stream.body_complete:
                stream.add(self._reader.next_body(), complete=self._reader.complete)
        except MalformedRequestError as error:
            self._refuse(error.status)
        self.steer_reading()

    def _begin_request(self) -> None:
        head = self._reader.next_head()
        if head is None:
            self._time_head()
            return
        self._stop_head_timer()
        if head.upgrading and _wants_websocket(head):
            self._refuse(_FORBIDDEN)
            return
        stream = RequestStream(self, head)
        stream.add(self._reader.next_body(), complete=self._reader.complete)
        if not stream.body_complete and _expects_continue(head):
            self.transport.write(_CONTINUE)
        self._stream = stream
        scope = self._scope(head, stream)
        self._context.run(self._task_group.spawn, self._serve, scope, stream)

    def _scope(self, head: RequestHead, stream: RequestStream) -> dict[str, Any]:
        raw_path, _, query_string = head.target.partition(b"?")
        path = raw_path.decode("ascii")
        return {
            "type": "http",
            "http_version": head.http_version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": head.method,
            "scheme": "http",
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query_string,
            "root_path": self.config.root_path,
            "headers": head.headers,
            "client": self._client,
            "server": self._server_address,
            "state": {**self._state, CLIENT_STATE_KEY: stream},
            "extensions": {},
        }

    async def _serve(self, scope: Any, stream: RequestStream) -> None:
        """Run the app for one request, in a task of its own."""
        try:
            await self._app(scope, stream.receive, stream.send, _no_threads, _no_threads)
        except Exception:  # noqa: BLE001 - the border: a broken app must not end the server
            await self.config.log.exception("Error in ASGI Framework")
        finally:
            if stream is self._stream:
                self._refuse(_INTERNAL_ERROR)

    def _refuse(self, status: int) -> None:
        """Answer by ourselves if that is still possible, and close in any case."""
        stream, self._stream = self._stream, None
        if stream is None or not stream.answer.begun:
            self.transport.write(whole_answer(status, own_fields=self.config.own_fields()))
        self.close()
        if stream is not None:
            stream.leave()

    # ── the time for a head ──────────────────────────────────────────────────────

    def _time_head(self) -> None:
        """Start the timer with the first byte of a head."""
        if self._head_timer is None and self._reader.pending:
            self._head_timer = self._loop.call_later(self.config.head_seconds, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._stream is None:
            self._refuse(_REQUEST_TIMEOUT)


class _NoTask:
    """In the place of the task that Hypercorn starts and cancels to time idle connections."""

    async def restart(self, task_group: TaskGroup, action: Any) -> None:
        """Do nothing: the connection has a timer."""

    async def stop(self) -> None:
        """Do nothing."""


def _expects_continue(head: RequestHead) -> bool:
    """Whether the client waits for a sign before it sends the body (RFC 9110, 10.1.1)."""
    return head.http_version == "1.1" and any(
        name == b"expect" and value.lower() == b"100-continue" for name, value in head.headers
    )


def _wants_websocket(head: RequestHead) -> bool:
    """Whether this is a websocket's handshake (RFC 6455, 4.1); no route of ours speaks it."""
    return head.method == "GET" and any(
        name == b"upgrade" and value.lower() == b"websocket" for name, value in head.headers
    )


def _no_threads(*_: Any) -> Any:
    """Stand in for what Hypercorn offers to WSGI apps only."""
    raise NotImplementedError


def _protocol_for(  # noqa: PLR0917 - Hypercorn's signature
    app: AppWrapper,
    config: Config,
    context: WorkerContext,
    task_group: TaskGroup,
    connection_state: ConnectionState,
    ssl: bool,
    client: tuple[str, int] | None,
    server: tuple[str, int] | None,
    send: Any,
) -> Http1Protocol | H11Protocol:
    """Make the protocol of a connection: ours for our server, Hypercorn's for any other."""
    if not isinstance(config, Http1Config):
        return H11Protocol(
            app, config, context, task_group, connection_state, ssl, client, server, send
        )
    config.follow(context)
    return Http1Protocol(
        app,
        config,
        task_group,
        connection_state,
        addresses=(client, server),
        server=send.__self__,
    )


def use_http1_only() -> None:
    """Make Hypercorn, in this process, build `Http1Protocol` for connections of our server.

    Hypercorn offers no way to pass a protocol in; the name that its connection wrapper looks up is
    the narrowest place to change. Doing it twice is harmless, and other servers of this process
    keep what they have.
    """
    setattr(hypercorn.protocol, "H11Protocol", _protocol_for)  # noqa: B010 - not an exported name
