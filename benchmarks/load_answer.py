"""Reads and checks the answers that the load generator gets."""

from __future__ import annotations

import re

from benchmarks.wire import ANSWER_BYTES, DONE, EVENTS

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"

LARGEST_ANSWER = 1_048_576
"""Bytes that are kept of one answer; the right ones are much smaller."""


class AnswerError(Exception):
    """An answer is not the one that was asked for."""


def read_answer(received: bytes) -> bytes | None:
    """The body of an answer, or None while it is not complete.

    Args:
        received: All bytes since the request was sent.

    Raises:
        AnswerError: If the status is not 200, the framing is wrong, or it is too long.
    """
    if len(received) > LARGEST_ANSWER:
        raise AnswerError(f"the answer is longer than {LARGEST_ANSWER} bytes")
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    if not received.startswith(b"HTTP/1.1 200 "):
        shown = received[:40].partition(b"\r\n")[0].decode("ascii", "replace")
        raise AnswerError(f"the status was not 200: {shown}")
    head, begin = received[: end + 2], end + 4
    if found := _CONTENT_LENGTH.search(head):
        missing = begin + int(found[1]) - len(received)
        if missing > 0:
            return None
        if missing < 0:
            raise AnswerError("the answer is longer than it said")
        return received[begin:]
    if not _CHUNKED.search(head):
        raise AnswerError("the answer does not say how long it is")
    return _join_chunks(received, begin) if received.endswith(_LAST_CHUNK) else None


def _join_chunks(received: bytes, position: int) -> bytes | None:
    """The body of an answer in chunks; None if the last one has not come yet."""
    pieces = []
    while True:
        end = received.find(b"\r\n", position)
        if end < 0:
            return None
        try:
            size = int(received[position:end], 16)
        except ValueError:
            raise AnswerError("the answer's chunks are garbled") from None
        position = end + 2 + size + 2
        if size == 0:
            break
        if position > len(received):
            return None
        pieces.append(received[end + 2 : position - 2])
    if position != len(received):
        raise AnswerError("the answer goes on after its last chunk")
    return b"".join(pieces)


def check_answer(body: bytes, *, streamed: bool) -> None:
    """Compare a body with what the upstream sent.

    Raises:
        AnswerError: If its length, or the number of its events, is another.
    """
    if not streamed:
        if len(body) != ANSWER_BYTES:
            raise AnswerError(f"the answer has {len(body)} bytes, not {ANSWER_BYTES}")
        return
    events = body.count(b"data: {")
    if events != EVENTS:
        raise AnswerError(f"the stream has {events} events, not {EVENTS}")
    if not body.rstrip().endswith(DONE):
        raise AnswerError("the stream has no end marker")
