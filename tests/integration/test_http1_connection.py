"""One connection to the real server: what lies between its bytes and the app."""

import asyncio
import contextvars
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import hypercorn.asyncio
import pytest
from hypercorn.config import Config
from starlette.types import Receive, Scope, Send

from adapters.frontdoor.border import exchange_of
from adapters.frontdoor.http1_protocol import use_http1_only

pytestmark = pytest.mark.anyio

ServeWith = Callable[..., Awaitable[Any]]
GET = b"GET / HTTP/1.1\r\nHost: gateway\r\n\r\n"
seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Hypercorn's asyncio server runs on asyncio and uvloop only."""
    return "asyncio", {"use_uvloop": request.param}


def head(line: bytes, *fields: bytes) -> bytes:
    """A request head with a Host."""
    return b"\r\n".join([line, b"Host: gateway", *fields, b"", b""])


async def respond(send: Send, body: bytes) -> None:
    """Send a whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer with the body."""
    if scope["type"] == "http":
        await respond(send, await exchange_of(scope).body())


async def test_client_that_waits_is_told_to_continue(serve_with: ServeWith) -> None:
    """A client that asks before it sends its body gets 100, and then its answer."""

    async def scenario(server: Any) -> None:
        async with await server.connect() as stream:
            await stream.send(
                head(b"POST / HTTP/1.1", b"Expect: 100-continue", b"Content-Length: 3")
            )
            assert await stream.receive() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send(b"abc")
            assert (await stream.receive()).endswith(b"\r\n\r\nabc")

    await serve_with(echo, scenario)


async def test_large_body_arrives_whole(serve_with: ServeWith) -> None:
    """A body of many reads comes complete, and the connection lives on."""
    body = bytes(range(256)) * 8192

    async def scenario(server: Any) -> None:
        data = head(b"POST / HTTP/1.1", b"Content-Length: %d" % len(body)) + body
        answer, closed = await server.ask(data + GET, quiet=0.5)
        assert body in answer
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert not closed

    await serve_with(echo, scenario)


async def test_chunked_body_arrives_whole(serve_with: ServeWith) -> None:
    """Chunks are joined and the connection lives on."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in range(1, 400))

    async def scenario(server: Any) -> None:
        async with await server.connect() as stream:
            for _ in range(2):
                await stream.send(head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked") + chunks)
                await stream.send(b"0\r\n\r\n")
                answer = b""
                while len(answer.partition(b"\r\n\r\n")[2]) < 399 * 200:
                    answer += await stream.receive()
                assert b"connection: close" not in answer

    await serve_with(echo, scenario)


async def test_nothing_follows_a_request_that_was_read_too_far(serve_with: ServeWith) -> None:
    """What comes behind a chunked body before its answer is not served."""
    request = head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n\r\n"

    async def scenario(server: Any) -> None:
        answer, closed = await server.ask(request + GET)
        assert answer.count(b"HTTP/1.1") == 1
        assert closed

    await serve_with(echo, scenario)


async def test_broken_chunk_ends_the_request(serve_with: ServeWith) -> None:
    """A request whose body turns out to be broken gets 400, and the app the disconnect."""

    async def scenario(server: Any) -> None:
        async with await server.connect() as stream:
            await stream.send(head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked"))
            await stream.send(b"1\r\na\r\n")
            await anyio.sleep(0.05)
            await stream.send(b"zz\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.1 400")
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        assert not server.draining.in_flight

    await serve_with(echo, scenario)


async def test_app_that_answers_nothing_is_an_error(serve_with: ServeWith) -> None:
    """A request that the app forgets gets 500 and the end of the connection."""

    async def forget(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await anyio.lowlevel.checkpoint()

    async def scenario(server: Any) -> None:
        answer, closed = await server.ask(GET)
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert closed

    await serve_with(forget, scenario)


async def test_requests_of_a_connection_share_no_context(serve_with: ServeWith) -> None:
    """What one request sets for itself is not seen by the next, even one that had to wait."""

    async def note(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            before = seen.get()
            seen.set("a request")
            await respond(send, before.encode())

    async def scenario(server: Any) -> None:
        answer, _ = await server.ask(GET * 3, quiet=0.3)
        assert answer.count(b"\r\n\r\nnothing") == 3

    await serve_with(note, scenario)


async def test_other_servers_of_the_process_keep_their_protocol() -> None:
    """A Hypercorn that is not ours works as it always did."""

    async def hello(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await respond(send, b"hello")

    use_http1_only()
    end = asyncio.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    config = Config()
    # Hypercorn makes a socket of its own of the number, and closes it.
    config.bind = [f"fd://{listener.detach()}"]
    async with anyio.create_task_group() as group:
        group.start_soon(
            lambda: hypercorn.asyncio.serve(hello, config, shutdown_trigger=end.wait)  # type: ignore[arg-type]
        )
        async with await anyio.connect_tcp(*address) as stream:
            await stream.send(GET)
            assert b"server: hypercorn-h11" in await stream.receive()
        end.set()
