"""What is particular to the aiohttp transport: its table of failures and its bounds."""

import errno
import socket
import ssl

import aiohttp
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


def test_no_loop_is_a_plain_mistake() -> None:
    """Asking outside of asyncio is a RuntimeError, not an error of the network."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        AiohttpTransport().statistics()
