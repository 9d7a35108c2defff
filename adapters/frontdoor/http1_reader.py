"""Cuts the bytes of one connection into requests, one at a time.

Two parsers have to agree before a request exists. Ours looks for the end of the head and at the
request line only; httptools, which is Node.js's llhttp in its strict setting, then judges every
header field, the framing of the body, and its chunks. What llhttp would still tolerate, ours does
not: blank lines before a request, more than one space in the request line, and other protocols'
names in it. Neither takes bare LF line ends, obsolete line folding, repeated Content-Length, or
Content-Length beside Transfer-Encoding. Chunk extensions that are well-formed are thrown away.

Nothing is read ahead: bytes behind a request are kept as they are until it has been answered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import httptools

from adapters.frontdoor.body_limits import announces_body

_HEAD_END: Final = b"\r\n\r\n"
_REQUEST_LINE: Final = re.compile(rb"([A-Z]{1,32}) ([!-~]+) HTTP/([0-9]\.[0-9])\r\n")
_BARE_LF: Final = re.compile(rb"(?:^|[^\r])\n")
_BLANKS: Final = b" \t"

_BAD_REQUEST: Final = 400
_TOO_LARGE: Final = 431
_NOT_IMPLEMENTED: Final = 501


class MalformedRequestError(Exception):
    """The bytes are no request; their connection cannot be used any further.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int = _BAD_REQUEST) -> None:
        """Keep the status."""
        super().__init__(f"malformed request: {status}")
        self.status = status


@dataclass(slots=True)
class RequestHead:
    """Request line and header fields.

    Attributes:
        method: in upper case.
        target: as it came, ASCII without blanks and control characters.
        http_version: such as ``1.1``.
        headers: fields with their names in lower case.
        keep_alive: whether the connection can serve another request after this one.
        upgrading: whether the client proposes to speak another protocol from here on.
    """

    method: str
    target: bytes
    http_version: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    upgrading: bool


class RequestReader:
    """The requests of one connection, in the order in which they come.

    Ask for a head, then for its body until it is `complete`, then for the next head. Once
    `MalformedRequestError` was raised, or a head is not to be kept alive, throw it away.

    Attributes:
        complete: True while no body is expected.
        overrun: True once bytes came after the chunked body of a request before it was answered.
            Where they begin is not known, so the connection cannot be used any further.
    """

    __slots__ = ("_alive", "_fields", "_head_limit", "_left", "_parser", "_parts", "_pending",
                 "_quiet", "_searched", "_upgrading", "complete", "overrun")  # fmt: skip

    def __init__(self, *, head_limit: int) -> None:
        """Start before the first request.

        Args:
            head_limit: bytes that a head may have, and that may come without any body byte among
                them once a chunked body has begun (chunk extensions and trailers).
        """
        self._head_limit = head_limit
        self._pending = b""
        self._searched = 0
        self._fields: list[tuple[bytes, bytes]] | None = None
        self._parts: list[bytes] = []
        self._left: int | None = None
        self._quiet = 0
        self._alive = False
        self._upgrading = False
        self._parser = httptools.HttpRequestParser(self)
        self.complete = True
        self.overrun = False

    @property
    def pending(self) -> bool:
        """True while there are bytes that belong to no request yet."""
        return bool(self._pending)

    def take(self, data: bytes) -> None:
        """Add bytes that came from the client."""
        self._pending = self._pending + data if self._pending else data

    def next_head(self) -> RequestHead | None:
        """Give the next request's head, or None while it is not all there.

        Raises:
            MalformedRequestError: these bytes are no request, or their head is too large.
        """
        data = self._pending
        end = data.find(_HEAD_END, self._searched)
        if end < 0:
            self._check_beginning(data)
            self._searched = max(0, len(data) - len(_HEAD_END) + 1)
            return None
        line = _REQUEST_LINE.match(data)
        if line is None:
            raise MalformedRequestError
        end += len(_HEAD_END)
        self._pending, self._searched = data[end:], 0
        method, target, version = line.groups()
        fields: list[tuple[bytes, bytes]] = []
        self._fields = fields
        self.complete = False
        self._parse(data[:end])
        if self._fields is not None or not _fits_version(fields, version):
            # The first: httptools is not where we are, it expects more of the head.
            raise MalformedRequestError
        self._left = _declared_length(fields)
        upgrading = self._upgrading
        if upgrading and announces_body(fields):
            # httptools takes such a body for the other protocol, other parsers do not.
            raise MalformedRequestError
        # What follows a request to upgrade may be another protocol already.
        alive = version == b"1.1" and not upgrading and self._alive
        return RequestHead(
            method.decode(), target, version.decode(), fields, keep_alive=alive, upgrading=upgrading
        )

    def next_body(self) -> bytes:
        """Give what has come of the current request's body; see `complete` for its end.

        Raises:
            MalformedRequestError: the chunks of the body are broken.
        """
        data = self._pending
        if self.complete or not data:
            return b""
        if self._left is None:
            self._pending = b""
            self._quiet += len(data)
        else:
            self._pending = data[self._left :]
            data = data[: self._left]
            self._left -= len(data)
        self._parse(data)
        if self._quiet > self._head_limit and not self.complete:
            raise MalformedRequestError
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_beginning(self, data: bytes) -> None:
        """Refuse at once what cannot become a request, however it goes on."""
        if len(data) > self._head_limit:
            raise MalformedRequestError(_TOO_LARGE)
        if data and (not data[:1].isupper() or _BARE_LF.search(data, self._searched)):
            raise MalformedRequestError

    def _parse(self, data: bytes) -> None:
        """Let httptools read."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The request is complete; whoever serves it reads `RequestHead.upgrading`.
            self.overrun = True
        except httptools.HttpParserError as error:
            if not self.complete:
                raise MalformedRequestError(_status_of(error)) from None
            # Behind the end of the body: not this request's fault.
            self.overrun = True

    # ── what httptools calls ─────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """Note a request that begins behind a chunked body."""
        if self._fields is None and self.complete:
            self.overrun = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head; trailers are thrown away."""
        if self._fields is not None:
            self._fields.append((name.lower(), value.strip(_BLANKS)))

    def on_headers_complete(self) -> None:
        """Close the list of fields, and ask what httptools forgets with the end of the request."""
        self._fields = None
        self._alive = self._parser.should_keep_alive()
        self._upgrading = self._parser.should_upgrade()

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        if not self.complete:
            self._quiet = 0
            self._parts.append(data)

    def on_message_complete(self) -> None:
        """Note the end of the request."""
        self._quiet = 0
        self.complete = True


def _status_of(error: httptools.HttpParserError) -> int:
    """What to answer: 501 for a method or a coding that nobody here knows (RFC 9112, 6.1)."""
    unknown = isinstance(error, httptools.HttpParserInvalidMethodError)
    if unknown or "invalid `transfer-encoding`" in str(error).lower():
        return _NOT_IMPLEMENTED
    return _BAD_REQUEST


def _fits_version(fields: list[tuple[bytes, bytes]], version: bytes) -> bool:
    """Whether there is no transfer coding in a version that has none (RFC 9112, 6.1)."""
    return version == b"1.1" or all(name != b"transfer-encoding" for name, _ in fields)


def _declared_length(fields: list[tuple[bytes, bytes]]) -> int | None:
    """The Content-Length, which httptools has found to be one number; None without one."""
    for name, value in fields:
        if name == b"content-length":
            return int(value)
    return None
