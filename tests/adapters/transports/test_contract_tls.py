"""TLS: whom a transport believes, and that a call over TLS is like any other.

`localhost.pem` holds a certificate for the name `localhost` and its key, good for nothing else.
"""

import pathlib
import ssl
import threading
from typing import Any

import anyio
import httpx
import pytest

from adapters.transports import tls

PEM = str(pathlib.Path(__file__).with_name("localhost.pem"))


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the transports trust the test's certificate, and still no other."""
    context = ssl.create_default_context(cafile=PEM)
    monkeypatch.setattr(tls, "_context", lambda: context)


@pytest.fixture
def serve_tls(serve: Any) -> Any:
    """Start upstreams that speak TLS and note the name that they were called by."""

    def start(script: Any) -> Any:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(PEM)
        names: list[str | None] = []
        context.sni_callback = lambda _socket, name, _context: names.append(name)

        def wrapped(peer: Any) -> None:
            peer.connection = context.wrap_socket(peer.connection, server_side=True)
            script(peer)

        upstream = serve(wrapped)
        upstream.names = names
        return upstream

    return start


def answering(peer: Any) -> None:
    while peer.read_request():
        peer.answer(b"hello")


async def test_calls_over_tls_share_a_connection(
    trusted: None, transport: Any, build: Any, serve_tls: Any, read_all: Any
) -> None:
    """A trusted upstream is called by its name, over one connection."""
    upstream = serve_tls(answering)
    url = f"https://localhost:{upstream.port}/"
    for _ in range(3):
        response = await transport.handle_async_request(build(url))
        assert await read_all(response) == b"hello"
    assert upstream.names == ["localhost"]
    assert len(upstream.requests) == 3
    await transport.aclose()


async def test_untrusted_certificate_is_a_connect_error(
    transport: Any, build: Any, serve_tls: Any
) -> None:
    """A certificate that nobody vouches for is ConnectError; the request stays here."""
    upstream = serve_tls(answering)
    with anyio.fail_after(5), pytest.raises(httpx.ConnectError, match=r"[Cc]ertificate|signed"):
        await transport.handle_async_request(build(f"https://localhost:{upstream.port}/"))
    assert upstream.requests == []


async def test_certificate_of_another_name_is_a_connect_error(
    trusted: None, transport: Any, build: Any, serve_tls: Any
) -> None:
    """A trusted certificate for another name is ConnectError."""
    upstream = serve_tls(answering)
    with anyio.fail_after(5), pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(build(f"https://127.0.0.1:{upstream.port}/"))
    assert upstream.requests == []


async def test_large_bodies_pass_over_tls(
    trusted: None, transport: Any, build: Any, serve_tls: Any, read_all: Any
) -> None:
    """A large upload and a large answer that is read late arrive whole."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.answer(b"y" * (8 << 20))
        peer.wait_until_closed()

    upstream = serve_tls(script)
    content = bytes(range(256)) * (8 << 10)
    url = f"https://localhost:{upstream.port}/"
    with anyio.fail_after(20):
        response = await transport.handle_async_request(build(url, content=content))
        await anyio.sleep(0.2)
        assert await read_all(response) == b"y" * (8 << 20)
    assert upstream.requests[0].endswith(b"\r\n\r\n" + content)
    await transport.aclose()


async def test_cut_body_over_tls_is_an_error(
    trusted: None, transport: Any, build: Any, serve_tls: Any
) -> None:
    """A body cut under TLS is an error after what had come."""
    go_on = threading.Event()

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        go_on.wait(5)

    upstream = serve_tls(script)
    arrived = b""
    response = await transport.handle_async_request(build(f"https://localhost:{upstream.port}/"))
    with (
        anyio.fail_after(5),
        pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)),
    ):
        async for chunk in response.stream:
            arrived += chunk
            go_on.set()
    assert arrived == b"hello"


async def test_cancelled_call_over_tls_closes_the_upstream(
    trusted: None, transport: Any, build: Any, serve_tls: Any, until: Any
) -> None:
    """Cancelling under TLS closes the socket promptly, without a word of farewell to wait for."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.wait_until_closed()

    upstream = serve_tls(script)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(
            transport.handle_async_request, build(f"https://localhost:{upstream.port}/")
        )
        await until(lambda: upstream.requests, seconds=5)
        tasks.cancel_scope.cancel()
    await until(upstream.peers[0].done.is_set)
    assert transport.statistics().in_flight == 0
