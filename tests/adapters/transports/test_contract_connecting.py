"""Failures before a connection exists: every transport says that nothing was sent."""

import socket
import traceback
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port whose queue of connections is full, so that further attempts get no reply."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        for _ in range(64):
            attempt = socket.socket()
            attempt.settimeout(0.1)
            waiting.append(attempt)
            try:
                attempt.connect(address)
            except TimeoutError:
                break
        yield int(address[1])
        for attempt in waiting:
            attempt.close()


async def test_refused_is_a_connect_error(transport: Any, build: Any) -> None:
    """A refused connection is ConnectError and says so."""
    with pytest.raises(httpx.ConnectError, match="refused") as caught:
        await transport.handle_async_request(build(f"http://localhost:{unused_port()}/"))
    assert type(caught.value) is httpx.ConnectError


async def test_unknown_name_is_a_connect_error(transport: Any, build: Any) -> None:
    """A name that does not resolve is ConnectError."""
    with pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(build("http://nonexistent.invalid/", connect=10))


async def test_black_hole_is_a_connect_timeout(transport: Any, build: Any, black_hole: int) -> None:
    """A connection attempt that nobody replies to ends in ConnectTimeout at the limit."""
    with anyio.fail_after(5), pytest.raises(httpx.ConnectTimeout):
        await transport.handle_async_request(build(f"http://127.0.0.1:{black_hole}/", connect=0.2))


async def test_tls_handshake_that_hangs_is_a_connect_timeout(
    transport: Any, build: Any, serve: Any
) -> None:
    """The connect limit covers the TLS handshake."""
    upstream = serve(lambda peer: peer.wait_until_closed())
    url = f"https://localhost:{upstream.port}/"
    with anyio.fail_after(5), pytest.raises(httpx.ConnectTimeout):
        await transport.handle_async_request(build(url, connect=0.3))


async def test_tls_with_a_plain_text_server_is_a_connect_error(
    transport: Any, build: Any, serve: Any
) -> None:
    """A server that does not speak TLS is ConnectError, and never sees the request."""

    def plain(peer: Any) -> None:
        peer.requests.append(peer.connection.recv(65_536))
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    upstream = serve(plain)
    with pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(build(f"https://localhost:{upstream.port}/"))
    assert all(b"sk-secret" not in seen for seen in upstream.requests)


async def test_tls_reset_during_the_handshake_is_a_connect_error(
    transport: Any, build: Any, serve: Any
) -> None:
    """A server that resets the handshake is ConnectError."""

    def reset(peer: Any) -> None:
        peer.connection.recv(1)
        peer.reset()

    upstream = serve(reset)
    with pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(build(f"https://localhost:{upstream.port}/"))


async def test_other_schemes_are_unsupported(transport: Any, build: Any) -> None:
    """A URL that is neither http nor https is refused before anything is sent."""
    with pytest.raises(httpx.UnsupportedProtocol):
        await transport.handle_async_request(build("ftp://localhost/"))


@pytest.mark.parametrize(
    "header",
    [
        (b"X-Org", b"a\r\nX-Smuggled: b"),
        (b"X-Org", b"a\x00b"),
        (b"X-Org", b"sk-secret\r\n"),
        (b"X Org", b"a"),
    ],
)
async def test_header_bytes_that_break_http_are_a_local_error(
    transport: Any, build: Any, serve: Any, header: tuple[bytes, bytes]
) -> None:
    """Line breaks and NULs in headers are LocalProtocolError, and no request arrives."""
    upstream = serve(lambda peer: peer.read_request())
    request = build(upstream.url, headers=[(b"Host", b"localhost"), header])
    with pytest.raises(httpx.LocalProtocolError) as caught:
        await transport.handle_async_request(request)
    assert upstream.requests == []
    assert "sk-secret" not in str(caught.value)


async def test_failures_hold_no_secret(transport: Any, build: Any) -> None:
    """Neither the error nor anything it is chained to shows URL or headers."""
    url = f"http://user:pass-secret@localhost:{unused_port()}/?key=url-secret"
    with pytest.raises(httpx.ConnectError) as caught:
        await transport.handle_async_request(build(url))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "sk-secret" not in shown
    assert "url-secret" not in shown.replace('key=url-secret"', "")
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
