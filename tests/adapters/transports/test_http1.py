"""What is particular to the HTTP/1.1 transport: framing, bounds, and what is said of a request."""

import threading
from typing import Any

import anyio
import httpx
import pytest

from adapters.transports.http1 import Http1Transport
from adapters.transports.http1_connection import MAX_HEADER_LINE_BYTES, MAX_HEADERS
from adapters.transports.http1_request import head_of, target_of

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@pytest.fixture(params=[("http1", "asyncio"), ("http1", "uvloop")], ids="-".join)
def shipped(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Run on both loops of asyncio."""
    row: tuple[str, str] = request.param
    return row


def sending(*answers: bytes) -> Any:
    """Answer one request after the other on each connection, then wait for the client to leave."""

    def script(peer: Any) -> None:
        for answer in answers:
            if not peer.read_request():
                return
            peer.send(answer)
        peer.wait_until_closed()

    return script


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 099 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX Y: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: 1\r\n\r\n",
        HINTS * 11 + OK,
        b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"a" * MAX_HEADER_LINE_BYTES),
        b"HTTP/1.1 200 OK\r\n%s\r\n" % (b"X: 1\r\n" * (MAX_HEADERS + 1)),
    ],
    ids=[
        "101-upgrade", "101", "099", "2.0", "0.9", "negative-length", "two-lengths",
        "length-and-chunked", "blank-in-name", "no-name", "11-hints", "long-line", "many-headers",
    ],
)  # fmt: skip
async def test_answers_that_cannot_be_trusted_are_protocol_errors(
    transport: Any, build: Any, serve: Any, until: Any, answer: bytes
) -> None:
    """Framing in doubt, other protocols and heads beyond the bounds are refused and cut."""
    upstream = serve(sending(answer))
    with anyio.fail_after(5), pytest.raises(httpx.RemoteProtocolError):
        await transport.handle_async_request(build(upstream.url))
    await until(upstream.peers[0].closed.is_set)
    assert transport.statistics().in_flight == 0


@pytest.mark.parametrize(
    "answer",
    [
        HINTS * 10 + OK,
        b"HTTP/1.1 200 OK\r\nX: %s\r\nContent-Length: 2\r\n\r\n{}"
        % (b"a" * (MAX_HEADER_LINE_BYTES - 1)),
        b"HTTP/1.1 200 OK\r\n%sContent-Length: 2\r\n\r\n{}" % (b"X: 1\r\n" * (MAX_HEADERS - 1)),
        b"HTTP/1.1 200 OK\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\n{}",
        CHUNKED + b"2;a=b\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n",
        CHUNKED + b"2  \r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200\r\nX-Empty:\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}\r\n",
    ],
    ids=[
        "10-hints", "longest-line", "most-headers", "upgrade-offered", "trailer",
        "blanks-after-size", "1.0-kept", "no-reason", "bare-line-feeds", "stray-breaks",
    ],
)  # fmt: skip
async def test_odd_but_clear_answers_are_read_and_the_connection_is_kept(
    transport: Any, build: Any, serve: Any, read_all: Any, answer: bytes
) -> None:
    """What is unusual and still clear is read, and the next call shares its connection."""
    upstream = serve(sending(answer, OK))
    for _ in range(2):
        response = await transport.handle_async_request(build(upstream.url))
        assert (response.status_code, await read_all(response)) == (200, b"{}")
    assert len(upstream.peers) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["1.0", "close"],
)
async def test_connection_that_is_not_kept_is_closed(
    transport: Any, build: Any, serve: Any, until: Any, answer: bytes
) -> None:
    """An answer that announces the end of its connection has it closed at once."""
    upstream = serve(sending(answer))
    response = await transport.handle_async_request(build(upstream.url))
    assert await response.aread() == b"{}"
    await until(upstream.peers[0].closed.is_set)


async def test_caller_can_ask_for_the_close(
    transport: Any, build: Any, serve: Any, read_all: Any, until: Any
) -> None:
    """`Connection: close` in the request ends the connection whatever the answer says."""
    upstream = serve(sending(OK))
    request = build(upstream.url, headers=[(b"connection", b"Close")])
    assert await read_all(await transport.handle_async_request(request)) == b"{}"
    await until(upstream.peers[0].closed.is_set)


async def test_answer_that_comes_byte_by_byte_is_whole(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """Headers, chunk sizes and trailer may be cut anywhere by the network."""

    def script(peer: Any) -> None:
        peer.read_request()
        for byte in (
            b"HTTP/1.1 200 OK\r\nX-Empty:\r\nX-Name: some value\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\nX-Sum: 1\r\n\r\n"
        ):
            peer.send(bytes([byte]))
            peer.stopped.wait(0.0005)
        peer.wait_until_closed()

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    assert response.headers.raw[:2] == [(b"X-Empty", b""), (b"X-Name", b"some value")]
    assert await read_all(response) == b"hello world"


@pytest.mark.parametrize(
    "start",
    [
        CHUNKED + b"5\r\nhello\r\n0\r\nX-Endless: ",
        CHUNKED + b"5\r\nhello\r\n5;x=",
        b"HTTP/1.1 ",
    ],
    ids=["trailer", "chunk-extension", "status-line"],
)
async def test_endless_framing_is_cut(
    transport: Any, build: Any, serve: Any, read_all: Any, start: bytes
) -> None:
    """Framing without an end, and without body bytes in it, is cut at a fixed size."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(start)
        for _ in range(1_024):
            peer.send(b"2" * (1 << 16))

    upstream = serve(script)
    with anyio.fail_after(10), pytest.raises(httpx.RemoteProtocolError):
        await read_all(await transport.handle_async_request(build(upstream.url)))
    assert upstream.peers[0].sent < 16 << 20


async def test_head_has_no_body_whatever_it_says(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """The answer to HEAD ends with its headers, and so does its connection."""

    def script(peer: Any) -> None:
        if peer.read_request().startswith(b"HEAD"):
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        else:
            peer.send(OK)
        peer.wait_until_closed()

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url, method="HEAD", content=b""))
    with anyio.fail_after(5):
        assert await read_all(response) == b""
    assert response.headers["content-length"] == "5000"
    response = await transport.handle_async_request(build(upstream.url))
    assert await read_all(response) == b"{}"


async def test_early_answer_that_is_no_refusal_lets_the_upload_go_on(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """An upstream may stream its answer while it still reads the request."""
    size = 16 << 20

    def script(peer: Any) -> None:
        peer.read_head()
        peer.send(CHUNKED + b"5\r\nearly\r\n")
        taken = len(peer._received)
        while taken < size:
            taken += len(peer.connection.recv(1 << 20))
        peer.send(b"3\r\nall\r\n0\r\n\r\n")
        peer.wait_until_closed()

    upstream = serve(script)
    with anyio.fail_after(20):
        response = await transport.handle_async_request(build(upstream.url, content=b"x" * size))
        assert await read_all(response) == b"earlyall"


async def test_refusal_stops_the_upload(
    transport: Any, build: Any, serve: Any, read_all: Any, until: Any
) -> None:
    """After an early 4xx no more of the body is sent than the socket has taken."""
    size = 64 << 20
    taken = []
    go_on = threading.Event()

    def script(peer: Any) -> None:
        peer.read_head()
        peer.answer(b"too large", head=b"HTTP/1.1 413 Content Too Large")
        go_on.wait(5)
        try:
            while data := peer.connection.recv(1 << 20):
                taken.append(len(data))
        except ConnectionError:
            pass
        peer.closed.set()

    upstream = serve(script)
    with anyio.fail_after(10):
        response = await transport.handle_async_request(build(upstream.url, content=b"x" * size))
        assert (response.status_code, await read_all(response)) == (413, b"too large")
    go_on.set()
    await until(upstream.peers[0].closed.is_set)
    assert sum(taken) < size


async def test_slow_refusal_is_read_whole(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """Once the upstream has refused, it is its answer that is waited for, not the upload."""

    def script(peer: Any) -> None:
        peer.read_head()
        peer.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 10\r\n\r\n")
        for _ in range(10):
            peer.stopped.wait(0.05)
            peer.send(b"x")
        peer.hold()

    upstream = serve(script)
    with anyio.fail_after(10):
        response = await transport.handle_async_request(
            build(upstream.url, content=b"x" * (16 << 20), write=0.2)
        )
        assert (response.status_code, await read_all(response)) == (413, b"x" * 10)


async def test_reader_that_takes_its_time_is_no_silence(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """The read limit does not run while it is we who hold the upstream back."""
    size = 16 << 20

    def script(peer: Any) -> None:
        peer.read_request()
        peer.answer(b"x" * size)
        peer.wait_until_closed()

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url, read=0.3))
    await anyio.sleep(0.7)
    with anyio.fail_after(10):
        assert len(await read_all(response)) == size


async def test_error_of_a_body_stays(transport: Any, build: Any, serve: Any) -> None:
    """Reading on after a cut is the same error again, never a clean end."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    assert await anext(response.stream) == b"hello"
    for _ in range(2):
        with pytest.raises(httpx.RemoteProtocolError):
            await anext(response.stream)


async def test_reading_after_the_close_is_an_error(transport: Any, build: Any, serve: Any) -> None:
    """A body that was closed before its end does not look complete."""
    upstream = serve(sending(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"))
    response = await transport.handle_async_request(build(upstream.url))
    await response.stream.aclose()
    with pytest.raises(httpx.ReadError, match="closed"):
        await anext(response.stream)


async def test_missing_host_and_length_are_added(transport: Any, serve: Any, read_all: Any) -> None:
    """HTTP asks for both; the length of an empty POST is said too."""
    upstream = serve(sending(OK))
    request = httpx.Request("POST", upstream.url, stream=httpx.ByteStream(b""))
    await read_all(await transport.handle_async_request(request))
    assert upstream.requests[0] == (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:%d\r\nContent-Length: 0\r\n\r\n"
        % upstream.port
    )


@pytest.mark.parametrize("method", ["GET / HTTP/1.1\r\nX:", "", "CONNECT", "GÉT"])
def test_methods_that_break_http_are_refused(method: str) -> None:
    """A method that is no token, or that asks for a tunnel, is a local error."""
    target = target_of(b"http", b"localhost", b"/")
    with pytest.raises((httpx.LocalProtocolError, UnicodeError)):
        head_of(httpx.Request(method, "http://localhost/"), target, 0)


@pytest.mark.parametrize(
    ("authority", "path"),
    [
        (b"localhost", b"/a b"),
        (b"localhost", b"/a\r\nX: 1"),
        (b"localhost", b"/\x00"),
        (b"local\rhost", b"/"),
        (b"localhost:70000", b"/"),
    ],
)
def test_targets_that_break_http_are_refused(authority: bytes, path: bytes) -> None:
    """Blanks, breaks and NULs in a target, and ports that do not exist, are local errors."""
    with pytest.raises(httpx.LocalProtocolError):
        target_of(b"http", authority, path)


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [
        (b"localhost", "localhost", 443),
        (b"localhost:8443", "localhost", 8443),
        (b"[::1]", "::1", 443),
        (b"[::1]:8443", "::1", 8443),
    ],
)
def test_authorities_are_taken_apart(authority: bytes, host: str, port: int) -> None:
    """Names, addresses in brackets and ports are told apart."""
    assert target_of(b"https", authority, b"/").origin == (True, host, port)


def test_no_loop_is_a_plain_mistake() -> None:
    """Asking outside of asyncio is a RuntimeError, not an error of the network."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        Http1Transport().statistics()
