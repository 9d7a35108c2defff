"""A server with one scripted request, for tests of the exchange."""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.border import ExchangeBorder, exchange_of
from adapters.frontdoor.client_connection import CLIENT_STATE_KEY
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.receiver import Exchange


class FakeClient:
    """The connection object of a server that offers one."""

    def __init__(self) -> None:
        self.on_gone: Callable[[], None] | None = None
        self.gone = False
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class FakeServer:
    """A server with one request: queues body parts, records the answer, lets the client leave."""

    def __init__(self, *parts: bytes, calls_back: bool, length: int | None = None) -> None:
        self.sent: list[Message] = []
        self.received = 0
        self.received_before_end = 0
        self.reads = True
        self.client = FakeClient() if calls_back else None
        self.draining = Draining()
        self.has_sent_some = anyio.Event()
        self._waiting = anyio.Event()
        self._queue: deque[Message] = deque()
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "state": {CLIENT_STATE_KEY: self.client} if calls_back else {},
            "headers": [],
        }
        if length is not None or parts:
            size = sum(map(len, parts)) if length is None else length
            self.scope["headers"].append((b"content-length", str(size).encode()))
        for part in parts:
            self.put({"type": "http.request", "body": part, "more_body": True})
        if length is None:
            self.put({"type": "http.request", "body": b"", "more_body": False})

    def put(self, message: Message) -> None:
        self._queue.append(message)
        self._waiting.set()

    def leave(self) -> None:
        self.put({"type": "http.disconnect"})
        if self.client is not None:
            self.client.gone = True
            if self.client.on_gone is not None:
                self.client.on_gone()

    async def receive(self) -> Message:
        while not self._queue:
            self._waiting = anyio.Event()
            await self._waiting.wait()
        self.received += 1
        return self._queue.popleft()

    async def send(self, message: Message) -> None:
        if not self.reads:
            await anyio.sleep(math.inf)
        self.sent.append(message)
        if len(self.sent) == 4:
            self.has_sent_some.set()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.received_before_end = self.received
            self.put({"type": "http.disconnect"})

    async def run(self, app: ASGIApp, **limits: Any) -> None:
        border = ExchangeBorder(app, limits=ExchangeLimits(**limits), draining=self.draining)
        await border(self.scope, self.receive, self.send)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


def endpoint(handler: Callable[[Exchange], Awaitable[None]]) -> ASGIApp:
    """An app that is one handler."""

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        await handler(exchange_of(scope))

    return app


async def answer(exchange: Exchange, body: bytes = b"done", status: int = 200) -> None:
    """Send a whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await exchange.send({"type": "http.response.start", "status": status, "headers": [length]})
    await exchange.send({"type": "http.response.body", "body": body})
