"""One owner of ``receive()`` and ``send()`` for each request: the exchange.

ASGI leaves four things to the app that each app then forgets: how long and how large a body may be,
that the client may leave, that it may stop reading, and what becomes of a body that nobody reads
(Hypercorn 0.18 keeps a task and a connection for ever then). `ExchangeBorder` wraps the whole app,
makes one `Exchange` per request and takes care of all four, so no route can forget them. A route
asks for its exchange and uses three methods::

    async def endpoint(scope, receive, send):
        exchange = exchange_of(scope)
        raw = await exchange.body()                       # BodyTooLargeError, BodyTimeoutError
        answer = await exchange.run(lambda: router.complete(parse(raw)))
        await exchange.send({"type": "http.response.start", ...})

* `Exchange.body` reads the body once, within size, time and rate.
* `Exchange.run` does the work and cancels it the moment the client leaves; then it raises
  `ClientDisconnectedError`. A stream must be sent *inside* ``run``, to its last chunk, because only
  there does a leaving client end it. ``run`` may be used several times, one after the other.
* `Exchange.send` is the ASGI ``send`` with a deadline per message. It is also what the wrapped app
  gets as its ``send``, so Starlette's response objects work unchanged; likewise ``receive``.

How a leaving client is noticed: our own server (`adapters.frontdoor.http1_protocol`) puts a
`ClientConnection` into the scope and calls back, which needs no task; a task per request that
waits for ``http.disconnect`` would cost 60 to 100 microseconds with anyio on asyncio. Under any
other server ``run`` starts such a task.

Two limits of HTTP/1.1 that callers should know. A client that shuts down its sending half counts as
gone. And while a client has sent the next request ahead of its turn (pipelining), its leaving is
noticed only at the next write, because the server does not read on; deadlines bound that.
"""

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.frontdoor.body_limits import (
    BodyClock,
    BodyTimeoutError,
    BodyTooLargeError,
    ClientDisconnectedError,
    ExchangeError,
    ExchangeLimits,
    announces_body,
    declared_length,
)
from adapters.frontdoor.client_connection import CLIENT_STATE_KEY, ClientConnection
from adapters.frontdoor.drain import SERVER_DRAINING, Draining
from adapters.frontdoor.patience import Started
from adapters.frontdoor.refusal import Refusal

T = TypeVar("T")


class Exchange:
    """One request and its answer: the only reader of ``receive``, the only writer of ``send``."""

    __slots__ = (
        "_body_begun",
        "_body_done",
        "_client",
        "_clock",
        "_draining",
        "_finished",
        "_gone",
        "_gone_event",
        "_limits",
        "_outer",
        "_receive",
        "_run_scope",
        "_scope",
        "_send",
        "_started",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        limits: ExchangeLimits,
        draining: Draining,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        self._draining = draining
        self._clock = BodyClock(limits)
        self._outer = anyio.CancelScope()
        self._run_scope: anyio.CancelScope | None = None
        self._gone_event: anyio.Event | None = None
        self._body_begun = False
        self._body_done = False
        self._started = False
        self._finished = False
        client: ClientConnection | None = scope.get("state", {}).get(CLIENT_STATE_KEY)
        self._client = client
        # It may have left between the bytes of its request and this.
        self._gone = client is not None and client.gone
        if client is not None:
            client.on_gone = self._client_left

    @property
    def gone(self) -> bool:
        """True once the client has left or stopped reading before its answer was complete."""
        return self._gone

    @property
    def started(self) -> bool:
        """True once the answer's status has been sent and can no longer be changed."""
        return self._started

    @property
    def finished(self) -> bool:
        """True once the last part of the answer has been handed to the server."""
        return self._finished

    def cancel(self) -> None:
        """Cancel the whole request from outside; used when the time for draining is over."""
        self._outer.cancel()

    async def body(self) -> bytes:
        """Read the whole request body.

        Returns:
            The bytes; empty when the request has no body.

        Raises:
            BodyTooLargeError: the body is, or declares to be, above ``body_bytes``. Nothing has
                been read when Content-Length says so.
            BodyTimeoutError: the body took longer than ``body_seconds``, or came more slowly than
                ``body_rate`` after the grace.
            ClientDisconnectedError: the client left before the body was complete.
            RuntimeError: the body has been read before, or is being thrown away by `run`.
        """
        if self._body_begun:
            mistake = "a request body can be read only once, and before run()"
            raise RuntimeError(mistake)
        self._body_begun = True
        if declared_length(self._scope["headers"]) > self._limits.body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        while not self._body_done:
            part = self._accept_part(await self._next_part())
            if part:
                parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work of the request and cancel it as soon as the client leaves.

        The work runs in the calling task, so context variables and exceptions behave as in a plain
        call. It may send the answer, and must do so when the answer is a stream.

        Args:
            work: called once, without arguments.

        Returns:
            What the work returns, also if the client left at the last moment.

        Raises:
            ClientDisconnectedError: the client left, or stopped reading; the work was cancelled.
            RuntimeError: called while another ``run`` of this exchange is active.
        """
        if self._run_scope is not None:
            message = "run() is already active for this request"
            raise RuntimeError(message)
        if self._gone:
            raise ClientDisconnectedError
        self._body_begun = True
        if self._client is None:
            return await self._run_beside_watcher(work)
        with anyio.CancelScope() as scope:
            self._run_scope = scope
            try:
                return await work()
            finally:
                self._run_scope = None
        raise ClientDisconnectedError

    async def receive(self) -> Message:
        """Stand in for ASGI ``receive`` for code that wants it: limited, and shared with `run`.

        Raises:
            BodyTooLargeError: as in `body`.
            BodyTimeoutError: as in `body`.
        """
        if self._gone_event is not None:
            await self._gone_event.wait()
        if self._gone:
            return {"type": "http.disconnect"}
        if self._body_done:
            # What comes after the body is the disconnect, and waiting for it is not slowness.
            message = await self._receive()
            self._accept_part(message, raise_if_gone=False)
            return message
        self._body_begun = True
        message = await self._next_part()
        self._accept_part(message, raise_if_gone=False)
        return message

    async def send(self, message: Message) -> None:
        """Send one ASGI message within ``write_seconds``.

        The answer gets ``connection: close`` when the request's body has not been read or the
        server is going away. Its last message waits until an unread body has been read and thrown
        away, within the linger limits; without that the client would see a reset in the place of
        its answer.

        Args:
            message: ``http.response.start``, ``http.response.body`` or an extension's message.

        Raises:
            ClientDisconnectedError: the client has left, or has not read for ``write_seconds``
                (outside `run` the border ends the request then).
        """
        if self._gone:
            raise ClientDisconnectedError
        kind = message["type"]
        if kind == "http.response.start":
            self._started = True
            if self._draining.is_set() or self._has_unread_body():
                message = _with_close(message)
        elif kind == "http.response.body" and not message.get("more_body", False):
            if self._gone_event is None and self._has_unread_body():
                await self._send_last_and_linger(message)
                return
            self._finished = True
        await self._send_bounded(message)

    async def serve(self, app: ASGIApp) -> None:
        """Run the app for this exchange; used by `ExchangeBorder`.

        Whatever the app raises is raised again, save errors of this module, which are answered if
        an answer is still possible.
        """
        try:
            await self._serve_until_cut(app)
        finally:
            # The connection may be serving its next request already; leave that one's callback.
            if self._client is not None and self._client.on_gone == self._client_left:
                self._client.on_gone = None

    async def _serve_until_cut(self, app: ASGIApp) -> None:
        with self._outer as outer:
            try:
                await app(self._scope, self.receive, self.send)
            except ClientDisconnectedError:
                if not self._gone:
                    raise
            except ExchangeError as error:
                if self._started:
                    raise
                await Refusal(error.status, error.code, message=error.message).answer(self.send)
        if outer.cancelled_caught and not self._started and not self._gone:
            # Cut by the drain, and nothing sent yet: the client may still be told why.
            with anyio.move_on_after(self._limits.linger_seconds):
                self._outer = anyio.CancelScope()
                with self._outer:
                    await SERVER_DRAINING.answer(self.send)

    def _has_unread_body(self) -> bool:
        """Tell whether bytes of this request may still be on their way."""
        return not self._body_done and announces_body(self._scope["headers"])

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"The request body is larger than the {self._limits.body_bytes} bytes allowed."
        )

    def _accept_part(self, message: Message, *, raise_if_gone: bool = True) -> bytes:
        """Note what a received message says about body and client, and give its bytes."""
        if message["type"] == "http.request":
            self._body_done = not message.get("more_body", False)
            return cast("bytes", message.get("body", b""))
        self._body_done = True
        if not self._finished:
            self._gone = True
        if raise_if_gone:
            raise ClientDisconnectedError
        return b""

    async def _next_part(self) -> Message:
        """Receive one message of the body, within size, time and rate."""
        clock = self._clock
        message = await self._receive_within(clock)
        clock.received += len(message.get("body", b""))
        if clock.received > self._limits.body_bytes:
            raise self._too_large()
        return message

    async def _receive_within(self, clock: BodyClock) -> Message:
        rest: Awaitable[Message] = self._receive()
        if self._client is not None:
            # Safe to start before the scope is open: `ClientConnection` promises it.
            steps = rest.__await__()
            try:
                rest = Started(steps, steps.send(None))
            except StopIteration as stop:
                return cast("Message", stop.value)
        with anyio.CancelScope(deadline=clock.deadline()):
            return await rest
        raise BodyTimeoutError(f"The request body came too slowly: {clock.received} bytes so far.")

    def _client_left(self) -> None:
        """Hear from the server, or from the watcher, that nobody waits for the answer."""
        if self._finished or self._gone:
            return
        self._gone = True
        if self._run_scope is not None:
            self._run_scope.cancel()

    async def _send_bounded(self, message: Message) -> None:
        """Send, and treat a client that does not read in time as gone."""
        steps = self._send(message).__await__()
        try:
            waiting = steps.send(None)
        except StopIteration:
            return
        scope = self._run_scope or self._outer
        limit = anyio.current_time() + self._limits.write_seconds
        scope.deadline = limit
        try:
            await Started(steps, waiting)
        finally:
            scope.deadline = math.inf
            if scope.cancel_called and anyio.current_time() >= limit and not self._gone:
                self._gone = True
                if self._client is not None:
                    self._client.abort()

    async def _send_last_and_linger(self, message: Message) -> None:
        """Send the end of the answer, read what nobody wants, then let the server close."""
        await self._send_bounded({**message, "more_body": True})
        budget = self._limits.linger_bytes
        with anyio.move_on_after(self._limits.linger_seconds):
            while not self._body_done and budget > 0:
                budget -= len(self._accept_part(await self._receive(), raise_if_gone=False))
        last: Message = {"type": "http.response.body", "body": b"", "more_body": False}
        if self._gone:
            return
        self._finished = True
        if self._body_done:
            await self._send_bounded(last)
            return
        # The client still sends. A server that queues body parts may need room in that queue
        # before it can take the end of the answer.
        async with anyio.create_task_group() as group:
            group.start_soon(self._discard_until_gone)
            await self._send_bounded(last)
            group.cancel_scope.cancel()

    async def _discard_until_gone(self) -> None:
        while (await self._receive())["type"] == "http.request":
            pass

    async def _watch(self) -> None:
        """Wait for ``http.disconnect`` in the place of a server that calls back."""
        while not self._gone and not self._finished:
            message = await self._receive()
            if message["type"] == "http.request":
                self._accept_part(message)
            else:
                self._body_done = True
                self._client_left()
        if self._gone_event is not None:
            self._gone_event.set()

    async def _run_beside_watcher(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what `run` promises under a server that offers no `ClientConnection`."""
        outcome: list[T] = []
        failure: Exception | None = None
        self._gone_event = anyio.Event()
        try:
            async with anyio.create_task_group() as group:
                self._run_scope = group.cancel_scope
                group.start_soon(self._watch)
                try:
                    outcome.append(await work())
                except Exception as error:  # noqa: BLE001 - raised below, outside the group,
                    failure = error  # so that callers do not meet an exception group
                group.cancel_scope.cancel()
        finally:
            self._run_scope = None
            self._gone_event = None
        if failure is not None:
            raise failure
        if outcome:
            return outcome[0]
        raise ClientDisconnectedError


def _with_close(message: Message) -> Message:
    """Add ``connection: close`` to an answer, unless it is there."""
    headers = [pair for pair in message.get("headers", ()) if pair[0] != b"connection"]
    return {**message, "headers": [*headers, (b"connection", b"close")]}
