"""Failures between the connection and the headers: the upstream may have the request."""

from typing import Any

import anyio
import httpx
import pytest

LARGE = b"x" * (16 << 20)
MAYBE_ACCEPTED = (
    httpx.ReadError,
    httpx.ReadTimeout,
    httpx.WriteError,
    httpx.WriteTimeout,
    httpx.RemoteProtocolError,
)


async def refused_answer(
    transport: Any, build: Any, serve: Any, answer: bytes
) -> httpx.TransportError:
    """Return the error for an answer that is no HTTP."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(answer)
        peer.wait_until_closed()

    upstream = serve(script)
    with anyio.fail_after(10), pytest.raises(httpx.TransportError) as caught:
        await transport.handle_async_request(build(upstream.url, read=5))
    return caught.value


async def test_close_before_reading_is_maybe_accepted(
    transport: Any, build: Any, serve: Any
) -> None:
    """A server that closes at once may have got the request, unless the close was seen first."""
    upstream = serve(lambda peer: peer.connection.close())
    with pytest.raises((*MAYBE_ACCEPTED, httpx.ConnectError)) as caught:
        await transport.handle_async_request(build(upstream.url))
    if isinstance(caught.value, httpx.ConnectError):
        assert "before its first use" in str(caught.value)


async def test_reset_before_reading_is_maybe_accepted(
    transport: Any, build: Any, serve: Any
) -> None:
    """A server that resets before it reads may still have got the request."""

    def script(peer: Any) -> None:
        peer.connection.recv(1)
        peer.reset()

    upstream = serve(script)
    with pytest.raises(MAYBE_ACCEPTED):
        await transport.handle_async_request(build(upstream.url))


async def test_close_after_the_request_is_a_protocol_error(
    transport: Any, build: Any, serve: Any
) -> None:
    """A server that reads all and closes without an answer is RemoteProtocolError."""
    upstream = serve(lambda peer: peer.read_request())
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        await transport.handle_async_request(build(upstream.url))
    assert len(upstream.requests) == 1
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_reset_after_the_request_is_a_read_error(
    transport: Any, build: Any, serve: Any
) -> None:
    """A server that reads all and resets is ReadError, never a connect error."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.reset()

    upstream = serve(script)
    with pytest.raises(httpx.ReadError):
        await transport.handle_async_request(build(upstream.url))
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_loss_while_sending_a_large_body_is_maybe_accepted(
    transport: Any, build: Any, serve: Any, how: str
) -> None:
    """A connection lost in the middle of the upload is never a connect error."""

    def script(peer: Any) -> None:
        peer.read_head()
        peer.connection.recv(1 << 16)
        if how == "reset":
            peer.reset()

    upstream = serve(script)
    with anyio.fail_after(10), pytest.raises(MAYBE_ACCEPTED):
        await transport.handle_async_request(build(upstream.url, content=LARGE))


async def test_upload_that_nobody_takes_is_a_write_timeout(
    transport: Any, build: Any, serve: Any
) -> None:
    """A server that stops reading the body ends the call at the write limit."""

    def script(peer: Any) -> None:
        peer.read_head()
        peer.hold()

    upstream = serve(script)
    with anyio.fail_after(10), pytest.raises(httpx.WriteTimeout):
        await transport.handle_async_request(build(upstream.url, content=LARGE, write=0.3))


async def test_large_body_arrives_whole(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """A body of many slices arrives byte for byte."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.answer(b"done")

    upstream = serve(script)
    content = bytes(range(256)) * (20 << 10)
    response = await transport.handle_async_request(build(upstream.url, content=content))
    assert await read_all(response) == b"done"
    assert upstream.requests[0].endswith(b"\r\n\r\n" + content)


async def test_early_refusal_is_seen_while_sending(
    transport: Any, shipped: tuple[str, str], build: Any, serve: Any
) -> None:
    """A 413 in the middle of the upload is the answer; the connection is not reused."""

    def script(peer: Any) -> None:
        if peer.number == 0:
            peer.read_head()
            peer.answer(b"too large", head=b"HTTP/1.1 413 Content Too Large")
            peer.hold()
        else:
            peer.read_request()
            peer.answer()

    upstream = serve(script)
    with anyio.fail_after(10):
        request = build(upstream.url, content=LARGE, write=0.5)
        try:
            response = await transport.handle_async_request(request)
        except httpx.WriteTimeout:
            # httpcore does not listen while it writes: a limit known and written down.
            assert "trio" in shipped or "httpx_pool" in shipped
        else:
            assert response.status_code == 413
            assert await response.aread() == b"too large"
        response = await transport.handle_async_request(build(upstream.url))
        assert response.status_code == 200
        await response.aread()
    assert len(upstream.peers) == 2


async def test_early_refusal_with_a_close_is_never_not_sent(
    transport: Any, build: Any, serve: Any
) -> None:
    """A 413 with a close in the middle of the upload is the answer or a loss, as it happens."""

    def script(peer: Any) -> None:
        peer.read_head()
        peer.answer(b"too large", head=b"HTTP/1.1 413 Content Too Large\r\nConnection: close")

    upstream = serve(script)
    with anyio.fail_after(10):
        try:
            response = await transport.handle_async_request(build(upstream.url, content=LARGE))
            assert response.status_code == 413
            await response.aread()
        except MAYBE_ACCEPTED:
            pass


async def test_garbage_is_a_protocol_error(transport: Any, build: Any, serve: Any) -> None:
    """Bytes of another protocol are RemoteProtocolError."""
    error = await refused_answer(transport, build, serve, b"220 smtp.example ESMTP\r\n\r\n")
    assert isinstance(error, httpx.RemoteProtocolError)


async def test_http_0_9_is_a_protocol_error(transport: Any, build: Any, serve: Any) -> None:
    """A body without a status line is RemoteProtocolError."""
    error = await refused_answer(transport, build, serve, b"<html>hello</html>\r\n\r\n")
    assert isinstance(error, httpx.RemoteProtocolError)


async def test_huge_header_is_a_protocol_error(transport: Any, build: Any, serve: Any) -> None:
    """A header line of a mebibyte is refused."""
    answer = b"HTTP/1.1 200 OK\r\nX-Huge: " + b"a" * (1 << 20) + b"\r\n\r\n"
    error = await refused_answer(transport, build, serve, answer)
    assert isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError))


async def test_twenty_thousand_headers_are_a_protocol_error(
    transport: Any, build: Any, serve: Any
) -> None:
    """An answer with 20,000 headers is refused."""
    lines = b"".join(b"X-%d: some value or other\r\n" % number for number in range(20_000))
    answer = b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n"
    error = await refused_answer(transport, build, serve, answer)
    assert isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError))


async def test_endless_header_line_does_not_fill_memory(
    transport: Any, build: Any, serve: Any
) -> None:
    """A header line without end is cut off at a fixed limit, long before it is all taken."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nX-Huge: ")
        for _ in range(1_024):
            peer.send(b"a" * (1 << 16))

    upstream = serve(script)
    with anyio.fail_after(10), pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await transport.handle_async_request(build(upstream.url))
    # What the two kernels hold comes on top of our limit.
    assert upstream.peers[0].sent < 16 << 20


async def test_silence_before_the_headers_is_a_read_timeout(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """An upstream that never answers ends in ReadTimeout at the limit, closed."""
    upstream = serve(lambda peer: (peer.read_request(), peer.wait_until_closed()))
    with anyio.fail_after(5), pytest.raises(httpx.ReadTimeout):
        await transport.handle_async_request(build(upstream.url, read=0.2))
    await until(upstream.peers[0].closed.is_set)


async def test_informational_answers_are_skipped(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """1xx answers before the real one are ignored."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
        peer.answer(b"real")

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    assert (response.status_code, await read_all(response)) == (200, b"real")


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_nothing_is_repeated_when_a_kept_connection_dies(
    transport: Any, build: Any, serve: Any, read_all: Any, method: str
) -> None:
    """A connection closed just as it is reused fails the call: nobody below us retries."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.answer()
        peer.read_request()  # and close without an answer

    upstream = serve(script)
    content = b"{}" if method == "POST" else b""
    request = build(upstream.url, method=method, content=content)
    await read_all(await transport.handle_async_request(request))
    with pytest.raises(MAYBE_ACCEPTED):
        await transport.handle_async_request(build(upstream.url, method=method, content=content))
    assert len(upstream.requests) == 2
    assert len(upstream.peers) == 1
