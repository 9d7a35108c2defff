"""Writes the answer to one request as HTTP/1.1, and tells whether the connection lives on."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_BODILESS: Final = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_FIRST_FINAL: Final = 200


class AnswerError(Exception):
    """The app's answer cannot be written as HTTP/1.1."""


class AnswerWriter:
    """One answer, from its start to its last byte.

    The head is given out together with the first part of the body, so that a short answer is one
    write to the socket. That is also what ASGI asks for.

    Attributes:
        begun: True once bytes have been given out.
        complete: True once all bytes have been given out.
        keep_alive: whether the connection can serve another request after this answer.
    """

    __slots__ = ("_chunked", "_head", "_is_head", "_left", "_takes_chunks", "begun", "complete",
                 "keep_alive")  # fmt: skip

    def __init__(self, *, method: str, http_version: str, keep_alive: bool) -> None:
        """Say what is answered.

        Args:
            method: the request's method; a HEAD gets no body.
            http_version: the request's; before 1.1 there are no chunks.
            keep_alive: whether the request leaves the connection usable.
        """
        self.begun = False
        self.complete = False
        self.keep_alive = keep_alive
        self._is_head = method == "HEAD"
        self._takes_chunks = http_version == "1.1"
        self._head: bytes | None = None
        self._chunked = False
        # Bytes of the body that are still to come; None where only its end tells, -1 for no body.
        self._left: int | None = None

    @property
    def started(self) -> bool:
        """True once the status is known."""
        return self._head is not None or self.begun

    def start(
        self, status: int, headers: Iterable[tuple[bytes, bytes]], *, own_fields: bytes
    ) -> None:
        """Take status and header fields.

        Transfer-Encoding is the writer's own affair and is left out where the app gives it.

        Args:
            status: HTTP status, 200 or above.
            headers: the app's fields.
            own_fields: the server's fields, as lines.

        Raises:
            AnswerError: a field would split the head, the length is no number, or it is not the
                time for a start.
        """
        if self.started or status < _FIRST_FINAL:
            message = f"an answer cannot start here with {status}"
            raise AnswerError(message)
        lines: list[bytes] = []
        length: int | None = None
        for name, value in headers:
            lowered = name.lower()
            if lowered == b"content-length":
                if not value.isdigit():
                    message = "content-length is not a number"
                    raise AnswerError(message)
                length = int(value)
            elif lowered == b"transfer-encoding":
                continue
            elif lowered == b"connection":
                if b"close" in value.lower():
                    self.keep_alive = False
                continue
            lines.append(b"%b: %b\r\n" % (lowered, value))
        fields = b"".join(lines)
        count = len(lines)
        if fields.count(b"\r") != count or fields.count(b"\n") != count or b"\0" in fields:
            message = "a header field contains a line break or a NUL character"
            raise AnswerError(message)
        ending = self._frame(status, length)
        line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        self._head = b"%b%b%b%b" % (line, fields, own_fields, ending)

    def part(self, data: bytes, *, more: bool) -> bytes:
        """Take a part of the body, and give the bytes to send.

        Args:
            data: the part.
            more: whether it is not the last one.

        Raises:
            AnswerError: the body is longer or shorter than its Content-Length, or it is not the
                time for a body.
        """
        if self.complete or not self.started:
            message = "a part of the body is out of place"
            raise AnswerError(message)
        if self._chunked:
            if data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if not more:
                data += b"0\r\n\r\n"
        elif self._left is not None:
            data = self._count(data, more=more)
        if self._head is not None:
            data = self._head + data
            self._head = None
            self.begun = True
        self.complete = not more
        return data

    def _frame(self, status: int, length: int | None) -> bytes:
        """Choose how the body's end is told (RFC 9112, section 6.3), and end the head with it."""
        ending = b"\r\n"
        if self._is_head or status in _BODILESS:
            self._left = -1
        elif length is not None:
            self._left = length
        elif self._takes_chunks:
            self._chunked = True
            ending = b"transfer-encoding: chunked\r\n\r\n"
        else:
            self.keep_alive = False
        return ending if self.keep_alive else b"connection: close\r\n" + ending

    def _count(self, data: bytes, *, more: bool) -> bytes:
        """Hold a body against its length; drop it where there can be none."""
        left = self._left
        assert left is not None
        if left < 0:
            return b""
        self._left = left = left - len(data)
        if left < 0 or (left and not more):
            message = "the body has another length than its content-length says"
            raise AnswerError(message)
        return bytes(data)


def whole_answer(status: int, *, own_fields: bytes) -> bytes:
    """Give the bytes of an answer without a body that closes its connection.

    Args:
        status: HTTP status.
        own_fields: the server's fields, as lines.
    """
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"%bcontent-length: 0\r\nconnection: close\r\n%b\r\n" % (line, own_fields)
