"""A small app for tests of the whole server, and what they ask and wait for."""

import asyncio
from collections.abc import Callable

import anyio
from starlette.types import Receive, Scope, Send

from adapters.frontdoor.border import exchange_of
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.receiver import Exchange

GET = b"GET /%s HTTP/1.1\r\nHost: gateway\r\n\r\n"


class Routes:
    """A small app; it notes how the work of each path ended."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.working = anyio.Event()
        self.release = anyio.Event()
        self.draining: Draining | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request by the route that its path names."""
        if scope["type"] != "http":
            return
        exchange = exchange_of(scope)
        route = getattr(self, scope["path"].strip("/") or "hello")
        try:
            await route(exchange)
            self.notes.append("completed")
        except BaseException as error:
            self.notes.append(type(error).__name__)
            raise

    async def hello(self, exchange: Exchange) -> None:
        """Answer at once, without reading anything."""
        await start(exchange, 5)
        await exchange.send({"type": "http.response.body", "body": b"hello"})

    async def wait(self, exchange: Exchange) -> None:
        """Work until released, then answer."""
        await exchange.body()
        self.working.set()
        await exchange.run(self.release.wait)
        await self.hello(exchange)

    async def stream(self, exchange: Exchange) -> None:
        """Send small events until the client leaves or the drain ends it."""

        async def send_events() -> None:
            await start(exchange)
            assert self.draining is not None
            with anyio.CancelScope() as scope, self.draining.ends(scope):
                while True:
                    await event(exchange, b"tick\n")
                    self.working.set()
                    await anyio.sleep(0.01)
            await event(exchange, b"server_draining\n")
            await exchange.send({"type": "http.response.body", "body": b""})

        await exchange.run(send_events)

    async def flood(self, exchange: Exchange) -> None:
        """Send large chunks without a pause."""

        async def send_chunks() -> None:
            await start(exchange)
            while True:
                await event(exchange, b"x" * 1_000_000)

        await exchange.run(send_chunks)

    async def crash(self, exchange: Exchange) -> None:
        """Start an answer without reading the body, and break."""
        await start(exchange, 100)
        # Long enough for the server to fill its queue and wait for room in it.
        await anyio.sleep(0.2)
        raise ZeroDivisionError


async def start(exchange: Exchange, length: int | None = None) -> None:
    """Send the head of an answer."""
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})


async def event(exchange: Exchange, data: bytes) -> None:
    """Send a part of a streamed answer."""
    await exchange.send({"type": "http.response.body", "body": data, "more_body": True})


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    """Wait until something has become true."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what is asked is no event
            await anyio.sleep(0.01)


def task_count() -> int:
    """Tasks alive on this loop."""
    return len(asyncio.all_tasks())
