"""What one request may take, and the errors for one that takes more.

Errors::

    ExchangeError                 has .status, .code and .message
      BodyTooLargeError           413 body_too_large
      BodyTimeoutError            408 body_timeout
      ClientDisconnectedError     499 client_disconnected; nobody hears an answer any more
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import anyio

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeLimits:
    """What one request may take. All finite.

    Attributes:
        body_bytes: the largest body.
        body_seconds: the longest time for a body, from the first wait to its end.
        body_rate: bytes per second that a body must reach on average, once the grace is over.
        body_rate_grace: seconds before the rate is looked at.
        write_seconds: the longest time for one message to get into the socket's buffer; a client
            that takes longer has stopped reading and counts as gone.
        linger_bytes: how much of a body that nobody wants is read and thrown away, so that the
            client gets to read its answer.
        linger_seconds: the longest time for that.
    """

    body_bytes: int = 32 * _MIB
    body_seconds: float = 120.0
    body_rate: float = 500.0
    body_rate_grace: float = 20.0
    write_seconds: float = 30.0
    linger_bytes: int = 16 * _MIB
    linger_seconds: float = 5.0

    def __post_init__(self) -> None:
        """Refuse limits that are no limits.

        Raises:
            ValueError: a limit is zero, negative or infinite.
        """
        for name in self.__slots__:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                message = f"{name} must be above 0 and finite, not {value}"
                raise ValueError(message)


class ExchangeError(Exception):
    """A request that cannot go on, for a reason on the client's side.

    Attributes:
        status: HTTP status of the answer.
        code: machine-readable word for ``error.code``.
        message: one sentence for the person who reads it.
    """

    status: int = 400
    code: str = "bad_request"

    def __init__(self, message: str) -> None:
        """Keep the message where an answer can be made from it."""
        super().__init__(message)
        self.message = message


class BodyTooLargeError(ExchangeError):
    """The body is larger than allowed; known from Content-Length, or found while reading."""

    status = 413
    code = "body_too_large"


class BodyTimeoutError(ExchangeError):
    """The body came too slowly or not at all."""

    status = 408
    code = "body_timeout"


class ClientDisconnectedError(ExchangeError):
    """The client left, or stopped reading. Let it pass: the border ends the request quietly."""

    status = 499
    code = "client_disconnected"

    def __init__(self, message: str = "The client closed the connection.") -> None:
        """Use the usual message."""
        super().__init__(message)


class BodyClock:
    """The instant by which the next part of a body must be there.

    Attributes:
        received: bytes of the body so far; the reader keeps it up to date.
    """

    __slots__ = ("_began", "_limits", "received")

    def __init__(self, limits: ExchangeLimits) -> None:
        """Take the limits; the time starts with the first wait."""
        self._limits = limits
        self._began: float | None = None
        self.received = 0

    def deadline(self) -> float:
        """Give the earlier of the two bounds: total time, and average rate after the grace."""
        if self._began is None:
            self._began = anyio.current_time()
        limits = self._limits
        # With n bytes here, the average falls below the rate at began + n / rate.
        by_rate = max(limits.body_rate_grace, self.received / limits.body_rate)
        return self._began + min(limits.body_seconds, by_rate)


def declared_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Give a request's Content-Length in bytes, or 0 when there is none that can be used."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def announces_body(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Tell whether a request with these headers has a body (RFC 9112, section 6.3)."""
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return True
    return False
