"""What is particular to the aiohttp transport: its table of failures and its bounds."""

import errno
import socket
import ssl
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http import HttpProcessingError

from adapters.transports.aiohttp import AiohttpTransport
from adapters.transports.aiohttp_failures import BodyStalledError, maybe_accepted, not_sent
from adapters.transports.system_words import system_words

KEY = ConnectionKey("secret-host", 80, False, True, None, None, None)
REFUSED = OSError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.1', 80)")
UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
UNTRUSTED = ssl.SSLCertVerificationError(1, "certificate verify failed")
UNTRUSTED.verify_message = "Hostname mismatch, certificate is not valid for 'secret-host'."


@pytest.fixture(params=[("aiohttp", "asyncio"), ("aiohttp", "uvloop")], ids="-".join)
def shipped(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Run on both loops of asyncio."""
    row: tuple[str, str] = request.param
    return row


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (aiohttp.ClientConnectorDNSError(KEY, UNKNOWN), httpx.ConnectError, "not known"),
        (aiohttp.ClientConnectorError(KEY, REFUSED), httpx.ConnectError, "Connection refused"),
        (
            aiohttp.ClientConnectorError(KEY, TimeoutError(errno.ETIMEDOUT, "late")),
            httpx.ConnectTimeout,
            "in time",
        ),
        (
            aiohttp.ClientConnectorCertificateError(KEY, UNTRUSTED),
            httpx.ConnectError,
            "Hostname mismatch",
        ),
        (
            aiohttp.ClientConnectorSSLError(KEY, ssl.SSLError(1, "x")),
            httpx.ConnectError,
            "TLS handshake failed",
        ),
        (TimeoutError(), httpx.ConnectTimeout, "in time"),
        (aiohttp.ClientConnectionError("Connector is closed."), httpx.ConnectError, "connect"),
        (aiohttp.InvalidURL("http://secret-host"), httpx.LocalProtocolError, "address"),
    ],
)
def test_failures_while_connecting_are_not_sent(
    error: Exception, expected: type[Exception], text: str
) -> None:
    """Whatever fails before there is a connection says that nothing was sent."""
    failure = not_sent(error)
    assert type(failure) is expected
    assert text in str(failure)
    assert "secret-host" not in str(failure)
    assert "10.0.0.1" not in str(failure)


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BodyStalledError(), httpx.WriteTimeout),
        (aiohttp.SocketTimeoutError("secret"), httpx.ReadTimeout),
        (TimeoutError(), httpx.ReadTimeout),
        (aiohttp.ServerDisconnectedError("secret"), httpx.RemoteProtocolError),
        (aiohttp.ClientPayloadError("secret"), httpx.RemoteProtocolError),
        (aiohttp.ClientResponseError(None, (), message="secret"), httpx.RemoteProtocolError),  # type: ignore[arg-type]
        (HttpProcessingError(message="secret"), httpx.RemoteProtocolError),
        (aiohttp.ClientConnectionResetError("secret"), httpx.WriteError),
        (
            caused_by(
                aiohttp.ClientOSError(None, "Can not write http://secret"),
                aiohttp.ClientConnectionResetError("secret"),
            ),
            httpx.WriteError,
        ),
        (aiohttp.ClientOSError(errno.ECONNRESET, "secret"), httpx.ReadError),
        (aiohttp.ClientConnectionError("secret"), httpx.ReadError),
        (aiohttp.ClientError("secret"), httpx.ReadError),
        (ValueError("secret"), httpx.LocalProtocolError),
    ],
)
def test_failures_on_a_connection_are_maybe_accepted(
    error: Exception, expected: type[Exception]
) -> None:
    """Whatever fails on a connection is told apart by what was going on."""
    failure = maybe_accepted(error)
    assert type(failure) is expected
    assert "secret" not in str(failure)


def test_system_words_are_found_behind_wrappers() -> None:
    """The first error of the system that says something is the reason."""
    inner = OSError(errno.ENETUNREACH, "secret")
    group = ExceptionGroup("several addresses", [inner, OSError(errno.EPERM, "x")])
    assert system_words(caused_by(OSError("secret"), group)) == "Network is unreachable"
    assert system_words(ValueError("secret")) == ""


async def test_answer_dropped_unread_gives_its_slot_back(
    small_transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """An answer that is forgotten, neither read nor closed, keeps no slot."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        peer.wait_until_closed()

    upstream = serve(script)
    response = await small_transport.handle_async_request(build(upstream.url))
    assert small_transport.statistics().in_flight == 1
    del response
    await until(lambda: small_transport.statistics().in_flight == 0)
    await until(upstream.peers[0].closed.is_set)


async def test_call_that_waited_for_a_closed_session_uses_a_new_one(
    small_transport: Any, build: Any, serve: Any, read_all: Any, until: Any
) -> None:
    """Closing the transport while a call waits for a slot moves that call, and fails the rest."""

    def script(peer: Any) -> None:
        if not peer.read_request():
            return
        if peer.number < 20:
            peer.wait_until_closed()
        else:
            peer.answer()

    upstream = serve(script)
    failures: list[type[Exception]] = []

    async def fail() -> None:
        try:
            await small_transport.handle_async_request(build(upstream.url))
        except httpx.TransportError as error:
            failures.append(type(error))

    async def wait() -> None:
        response = await small_transport.handle_async_request(build(upstream.url, pool=10))
        assert await read_all(response) == b"{}"

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(fail)
            await until(lambda: len(upstream.requests) == 20, seconds=5)
            tasks.start_soon(wait)
            await until(lambda: small_transport.statistics().waiting == 1)
            await small_transport.aclose()
    assert len(failures) == 20
    assert set(failures) <= {httpx.RemoteProtocolError, httpx.ReadError}


def test_no_loop_is_a_plain_mistake() -> None:
    """Asking outside of asyncio is a RuntimeError, not an error of the network."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        AiohttpTransport().statistics()
