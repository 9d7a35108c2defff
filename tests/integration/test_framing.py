"""What raw bytes do to the real server: framing tricks, floods, and clients that misbehave."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from starlette.types import Receive, Scope, Send

from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.border import exchange_of
from adapters.frontdoor.server import ServerSettings

pytestmark = pytest.mark.anyio

ServeWith = Callable[..., Awaitable[Any]]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Hypercorn's asyncio server runs on asyncio and uvloop only."""
    return "asyncio", {"use_uvloop": request.param}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer POST with its body and everything else with its path."""
    if scope["type"] != "http":
        return
    exchange = exchange_of(scope)
    body = await exchange.body() if scope["method"] == "POST" else scope["path"].encode()
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


def head(line: bytes, *fields: bytes) -> bytes:
    """A request head with a Host."""
    return b"\r\n".join([line, b"Host: gateway", *fields, b"", b""])


HIDDEN = head(b"GET /hidden HTTP/1.1")
POST = b"POST / HTTP/1.1"
GET = b"GET / HTTP/1.1"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (head(POST, b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (head(POST, b"Transfer-Encoding: chunked", b"Content-Length: 0") + b"0\r\n\r\n", 400),
        (head(POST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 501),
        (head(POST, b"Transfer-Encoding: xchunked") + b"0\r\n\r\n", 501),
        (head(POST, b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n", 501),
        (head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (head(POST, b"Content-Length: 3", b"Content-Length: 4") + b"abc", 400),
        (head(POST, b"Content-Length: 3, 4") + b"abc", 400),
        (head(POST, b"Content-Length: 3, 3") + b"abc", 400),
        (head(POST, b"Content-Length: 3", b"Content-Length: 3") + b"abc", 400),
        (head(POST, b"Content-Length: 3", b"X: a\r\n b") + b"abc", 400),
        (b"GET / HTTP/1.1\nHost: gateway\n\n", 400),
        (head(POST, b"Content-Length: +3") + b"abc", 400),
        (head(POST, b"Content-Length: 0x3") + b"abc", 400),
        (head(POST, b"Content-Length : 3") + b"abc", 400),
        (head(GET, b"Host: other"), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: user@a\r\n\r\n", 400),
        (head(GET, b"Authorization: Bearer a", b"Authorization: Bearer b"), 400),
        (head(GET, b"X-Api-Key: a", b"X-Api-Key: b"), 400),
        (head(POST, b"Content-Encoding: gzip", b"Content-Length: 0"), 415),
        (head(b"TRACE / HTTP/1.1"), 405),
        (head(b"CONNECT gateway:443 HTTP/1.1"), 405),
        (head(b"GET http://other/ HTTP/1.1"), 400),
        (head(b"OPTIONS * HTTP/1.1"), 400),
        (head(b"GET /v1/..%2f..%2fhidden HTTP/1.1"), 404),
        (head(b"GET //hidden HTTP/1.1"), 404),
        (head(b"GET /%00 HTTP/1.1"), 400),
        (head(GET, *[b"X-%d: v" % number for number in range(100)]), 431),
        (head(GET, *[b"X-%d: " % number + b"v" * 6000 for number in range(3)]), 431),
        (head(GET, b"X: " + b"v" * 9000), 431),
        (head(GET, b"X: " + b"v" * 70000), 431),
        (head(GET, b"X: a\0b"), 400),
        (head(b"GET /" + b"a" * 9000 + b" HTTP/1.1"), 414),
    ],
)  # fmt: skip
async def test_bad_framing_gets_one_refusal_and_the_end(
    serve_with: ServeWith, request_bytes: bytes, status: int
) -> None:
    """A request that is not plainly one request is refused, and what follows is never read."""

    async def scenario(server: Any) -> None:
        answer, closed = await server.ask(request_bytes + HIDDEN)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert closed
        assert answer.count(b"HTTP/1.1") == 1
        assert b"/hidden" not in answer
        assert b"server:" not in answer.lower()

    await serve_with(echo, scenario)


@pytest.mark.parametrize(
    ("request_bytes", "body"),
    [
        (head(POST, b"Transfer-Encoding: chunked") + b"3;x=y\r\nabc\r\n0\r\n\r\n", b"abc"),
        (head(POST, b"Expect: 100-continue", b"Content-Length: 3") + b"abc", b"abc"),
    ],
    ids=["chunk-extension", "expect"],
)
async def test_what_the_parser_lets_through_is_known(
    serve_with: ServeWith, request_bytes: bytes, body: bytes
) -> None:
    """These have one meaning only, though a proxy in front may refuse them."""

    async def scenario(server: Any) -> None:
        answer, _ = await server.ask(request_bytes, quiet=0.3)
        assert answer.endswith(b"\r\n\r\n" + body)

    await serve_with(echo, scenario)


@pytest.mark.parametrize(
    "request_bytes",
    [
        head(GET, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
             b"HTTP2-Settings: AAMAAABkAAQAAP__"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        head(b"PRI * HTTP/2.0"),
    ],
    ids=["upgrade", "preface", "preface-with-host"],
)  # fmt: skip
async def test_http2_without_tls_is_refused(serve_with: ServeWith, request_bytes: bytes) -> None:
    """Neither 101 nor a SETTINGS frame answers an attempt to speak HTTP/2."""

    async def scenario(server: Any) -> None:
        answer, closed = await server.ask(request_bytes)
        assert answer.startswith(b"HTTP/1.1 40")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert answer.endswith((b"\r\n\r\n", b"}}"))
        assert closed

    await serve_with(echo, scenario)


async def test_websocket_handshake_is_refused(serve_with: ServeWith) -> None:
    """There is no websocket route, and the handshake does not reach the app."""
    handshake = head(
        b"GET /ws HTTP/1.1",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    )

    async def scenario(server: Any) -> None:
        answer, _ = await server.ask(handshake, quiet=0.5)
        assert answer.startswith(b"HTTP/1.1 403")

    await serve_with(echo, scenario)


async def test_pipelined_requests_are_answered_in_order(serve_with: ServeWith) -> None:
    """Requests sent ahead of their turn wait for it."""

    async def scenario(server: Any) -> None:
        paths = [b"/%d" % number for number in range(5)]
        data = b"".join(head(b"GET " + path + b" HTTP/1.1") for path in paths)
        answer, closed = await server.ask(data, quiet=0.3)
        assert not closed
        assert [part[-2:] for part in answer.split(b"HTTP/1.1 200")[1:]] == paths

    await serve_with(echo, scenario)


async def test_slow_head_is_answered_with_408(serve_with: ServeWith) -> None:
    """A head that trickles in has its own, short time; the first request's and later ones'."""

    async def scenario(server: Any) -> None:
        for before in (b"", head(GET)):
            answer, closed = await server.ask(before + b"GET / HTTP/1.1\r\nHost:")
            assert closed
            assert answer.split(b"HTTP/1.1 ")[-1].startswith(b"408")

    await serve_with(echo, scenario, ServerSettings(head_seconds=0.2))


async def test_idle_connection_is_closed(serve_with: ServeWith) -> None:
    """A kept-alive connection without requests is closed after its time."""

    async def scenario(server: Any) -> None:
        answer, closed = await server.ask(head(GET))
        assert (answer.count(b"HTTP/1.1 200"), closed) == (1, True)

    await serve_with(echo, scenario, ServerSettings(keep_alive_seconds=0.2))


async def test_stalled_body_is_answered_with_408(serve_with: ServeWith) -> None:
    """A body that stops coming ends in an answer and a closed connection."""
    limits = ExchangeLimits(body_seconds=0.2, linger_seconds=0.1)

    async def scenario(server: Any) -> None:
        answer, closed = await server.ask(head(POST, b"Content-Length: 100") + b"abc")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code": "body_timeout"' in answer
        assert closed

    await serve_with(echo, scenario, ServerSettings(limits=limits))


async def test_large_chunked_body_is_refused_at_the_limit(serve_with: ServeWith) -> None:
    """A body without a declared length is refused once it is too large."""
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"

    async def scenario(server: Any) -> None:
        data = head(POST, b"Transfer-Encoding: chunked") + chunk * 100 + b"0\r\n\r\n"
        answer, closed = await server.ask(data)
        assert answer.startswith(b"HTTP/1.1 413")
        assert closed

    await serve_with(echo, scenario, ServerSettings(limits=ExchangeLimits(body_bytes=65536)))


async def test_short_body_of_a_client_that_closes_is_no_request(serve_with: ServeWith) -> None:
    """A body cut by the client is never taken for the whole."""

    async def scenario(server: Any) -> None:
        async with await server.connect() as stream:
            await stream.send(head(POST, b"Content-Length: 100") + b"abc")
            await stream.send_eof()
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()

    await serve_with(echo, scenario)
