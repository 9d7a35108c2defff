"""Server-sent events, read from bytes as they come off the network.

The format is that of the WHATWG HTML standard, section 9.2.6. JSON never holds a raw line
break, so almost every network read of a model's stream is a row of `data: {…}` lines with
blank lines between; those are taken apart by one `bytes.split`.
"""

from __future__ import annotations

from typing import Final

MAX_EVENT_BYTES: Final = 1_048_576
"""Default for the largest event, bytes."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

Event = tuple[str | None, bytes]
"""An event's name, if it has one, and its data."""


class SSEParser:
    """Takes a stream of server-sent events apart; knows nothing of I/O.

    How the bytes are cut into reads makes no difference to the events.

    Attributes:
        overflowed: Whether an event was larger than allowed. Nothing is parsed after that.
    """

    __slots__ = (
        "_after_cr", "_data", "_data_bytes", "_head", "_limit", "_line", "_name", "overflowed",
    )  # fmt: skip

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        """Start at the beginning of a stream.

        Args:
            max_event_bytes: Bytes that one line, and the data of one event, may have.
        """
        self.overflowed = False
        self._limit = max_event_bytes
        self._head: bytes | None = b""  # None once the place of a byte order mark is passed
        self._after_cr = False
        self._line = bytearray()  # the line that has not ended yet
        self._data: list[bytes] | None = None  # data lines of the event that has not ended yet
        self._data_bytes = 0
        self._name: str | None = None

    @property
    def is_inside_event(self) -> bool:
        """Whether the stream stands in the middle of an event; at its end: that one is lost."""
        return bool(self._line or self._data is not None or self._name is not None or self._head)

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and return the events that they complete.

        After a return with `overflowed` set, the events returned are the last.
        """
        if self._head is not None:
            data = self._skip_mark(data)
        if b"\r" in data or self._after_cr:
            data = self._unify_line_ends(data)
        events: list[Event] = []
        if self.overflowed or not data:
            return events
        at = 0
        # Finish, line by line, what an earlier read began.
        while self._line or self._data is not None or self._name is not None:
            end = data.find(b"\n", at)
            if end < 0:
                self._grow_line(data[at:])
                return events
            self._grow_line(data[at:end])
            self._end_line(events)
            at = end + 1
            if self.overflowed:
                return events
        self._take_blocks(data[at:] if at else data, events)
        return events

    def _skip_mark(self, data: bytes) -> bytes:
        head = (self._head or b"") + data
        if len(head) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(_BYTE_ORDER_MARK)

    def _unify_line_ends(self, data: bytes) -> bytes:
        # A carriage return ends its line at once; a line feed that follows it, maybe in the
        # next read, belongs to it.
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _take_blocks(self, data: bytes, events: list[Event]) -> None:
        """Parse from the beginning of a line between two events."""
        limit = self._limit
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        for block in blocks:
            if block.startswith(b"data: ") and b"\n" not in block and len(block) <= limit:
                events.append((None, block[6:]))
                continue
            # Both line feeds that the split took away belong to the block.
            for line in (*block.split(b"\n"), b""):
                self._grow_line(line)
                self._end_line(events)
                if self.overflowed:
                    return
        lines = rest.split(b"\n")
        last = lines.pop()
        for line in lines:
            self._grow_line(line)
            self._end_line(events)
            if self.overflowed:
                return
        self._grow_line(last)

    def _grow_line(self, piece: bytes) -> None:
        if len(self._line) + len(piece) > self._limit:
            self.overflowed = True
        else:
            self._line += piece

    def _end_line(self, events: list[Event]) -> None:
        if self.overflowed:
            return
        line = bytes(self._line)
        self._line.clear()
        if not line:
            if self._data is not None:
                events.append((self._name, b"\n".join(self._data)))
            self._data, self._data_bytes, self._name = None, 0, None
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._limit + 1:
                self.overflowed = True
            elif self._data is None:
                self._data = [value]
            else:
                self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace") or None
        # Comments (an empty field), `id`, `retry` and unknown fields carry nothing for us.
