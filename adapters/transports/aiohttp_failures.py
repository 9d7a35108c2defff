"""What aiohttp raises, told in httpx's words: the one table of the aiohttp transport.

Whether a request may be repeated is decided from the class alone, so the table is split by the
only fact that matters: was the failure met before a connection existed, or after. The texts are
ours, because aiohttp's carry URLs, bytes of the answer, and (in attributes) our own headers.
"""

import errno
from typing import Final

import aiohttp
import httpx
from aiohttp.http import HttpProcessingError

from adapters.transports.system_words import system_words

FOREIGN: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)
"""Everything that aiohttp lets out, time-outs included (`TimeoutError` is an `OSError`)."""


class BodyStalledError(TimeoutError):
    """The upstream took no part of the body for the whole of the write limit."""


_Row = tuple[type[Exception], type[httpx.TransportError], str]

# The first row that fits decides, so special cases stand above general ones.
_WHILE_CONNECTING: Final[tuple[_Row, ...]] = (
    (aiohttp.ClientConnectorDNSError, httpx.ConnectError, "cannot resolve the host name"),
    (aiohttp.ClientConnectorCertificateError, httpx.ConnectError, "certificate refused"),
    (aiohttp.ClientConnectorSSLError, httpx.ConnectError, "TLS handshake failed"),
    (aiohttp.ClientConnectorError, httpx.ConnectError, "cannot connect"),
    (TimeoutError, httpx.ConnectTimeout, "no connection in time"),
    (ValueError, httpx.LocalProtocolError, "the address cannot be connected to"),
    (Exception, httpx.ConnectError, "cannot connect"),
)
_ONCE_CONNECTED: Final[tuple[_Row, ...]] = (
    (BodyStalledError, httpx.WriteTimeout, "the upstream took no more of the body in time"),
    (TimeoutError, httpx.ReadTimeout, "the upstream sent nothing in time"),
    (aiohttp.ServerDisconnectedError, httpx.RemoteProtocolError, "closed without an answer"),
    (ValueError, httpx.LocalProtocolError, "the request cannot be written as HTTP"),
    (aiohttp.ClientPayloadError, httpx.RemoteProtocolError, "the body was cut or garbled"),
    (aiohttp.ClientResponseError, httpx.RemoteProtocolError, "the answer is malformed HTTP"),
    (HttpProcessingError, httpx.RemoteProtocolError, "the answer is malformed HTTP"),
    (aiohttp.ClientConnectionResetError, httpx.WriteError, "connection lost while writing"),
    (Exception, httpx.ReadError, "connection lost"),
)


def not_sent(error: Exception) -> httpx.TransportError:
    """Translate a failure met while connecting: not a byte of the request has left.

    Returns:
        `ConnectTimeout`, `ConnectError`, or `LocalProtocolError` for an impossible address.
    """
    # The system's own limit on a connect, where that is shorter than ours.
    if getattr(error, "errno", None) == errno.ETIMEDOUT:
        error = TimeoutError()
    return _translate(error, _WHILE_CONNECTING)


def maybe_accepted(error: Exception) -> httpx.TransportError:
    """Translate a failure met on a connection: the upstream may have the request.

    Returns:
        `WriteTimeout`, `ReadTimeout`, `RemoteProtocolError`, `WriteError` or `ReadError`; and
        `LocalProtocolError` where the request could not be put into bytes, so was never begun.
    """
    if isinstance(error.__cause__, aiohttp.ClientConnectionResetError):
        error = error.__cause__
    return _translate(error, _ONCE_CONNECTED)


def _translate(error: Exception, rows: tuple[_Row, ...]) -> httpx.TransportError:
    for foreign, ours, text in rows:
        if isinstance(error, foreign):
            # aiohttp keeps the system's error aside and copies its number, not its meaning.
            reason = system_words(
                getattr(error, "certificate_error", None)
                or getattr(error, "os_error", None)
                or error
            )
            return ours(f"{text}: {reason}" if reason else text)
    message = "the last row fits everything"
    raise AssertionError(message)
