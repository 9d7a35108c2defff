"""Lines to a stream that may be slow, full or gone, without anybody waiting for it.

A terminal that is stopped, a pipe that nobody reads, or a closed stdout must neither block
the event loop nor raise in it. So the caller only appends to a bounded queue, and a thread
writes. What does not fit, or cannot be written, is dropped and counted.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TextIO, TypeVar

Item = TypeVar("Item")

CAPACITY = 10_000
"""Lines that may wait: some seconds of a busy server, and a few megabytes."""

GATHER = 0.02
"""Seconds that lines are gathered for one write. Waking the thread for each line would
make it fight with the event loop for the interpreter on every request."""

_BATCH = 500
_POLL = 0.2


class LineWriter(Generic[Item]):
    """Writes lines in a thread of its own.

    Args:
        stream: Where to; its file descriptor is duplicated, so that closing the stream, or
            a socket that gets its number afterwards, does no harm. None drops everything.
        encode: Makes the line of an item, newline included; called in the thread.
        capacity: Lines that may wait; what comes on top is dropped.
    """

    def __init__(
        self,
        stream: TextIO | None,
        encode: Callable[[Item], str],
        *,
        capacity: int = CAPACITY,
    ) -> None:
        self._encode = encode
        self._capacity = capacity
        self._waiting: deque[Item] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._woken = False
        self._overflowed = 0
        self._unwritten = 0
        self._sink = _open_sink(stream)
        self._thread: threading.Thread | None = None
        if self._sink is not None:
            # A daemon: a pipe that nobody reads must not keep the process alive.
            self._thread = threading.Thread(target=self._run, name="line-writer", daemon=True)
            self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were not written: no room, or the stream did not take them."""
        return self._overflowed + self._unwritten

    def put(self, item: Item) -> None:
        """Queue an item; never blocks, never raises, costs about a microsecond."""
        if self._sink is None or self._closing.is_set() or len(self._waiting) >= self._capacity:
            self._overflowed += 1
            return
        self._waiting.append(item)
        if not self._woken:
            self._woken = True
            self._wake.set()

    def close(self, timeout: float = 1.0) -> bool:
        """Write what waits and stop; at most `timeout` seconds. Blocks: not for a loop.

        Returns:
            Whether everything that waited was written.
        """
        lost_before = self._unwritten
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
        return self._unwritten == lost_before

    def _run(self) -> None:
        while True:
            self._wake.wait()
            # Cleared before the queue is read: a line that comes now sets it again.
            self._closing.wait(GATHER)
            self._wake.clear()
            self._woken = False
            self._write_waiting()
            if self._closing.is_set() and not self._waiting:
                break
        if self._sink is not None:
            self._sink.close()

    def _write_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            if self._sink is None or self._sink.broken:
                self._unwritten += len(batch)
                continue
            lines = "".join(self._encode(item) for item in batch)
            if not self._sink.write(lines, self._closing):
                self._unwritten += len(batch)


class _DescriptorSink:
    """A file descriptor of our own, written without Python's buffers and their locks.

    A thread stuck in a buffered write would hold its lock, and the interpreter would
    abort at its end.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.broken = False

    def write(self, text: str, closing: threading.Event) -> bool:
        """Write all of it; False once the other end is gone, or while closing is full."""
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Somebody made the open file non-blocking; a terminal is often shared so.
                if not self._wait_for_room() and closing.is_set():
                    return False
            except OSError:
                self.broken = True
                return False
        return True

    def _wait_for_room(self) -> bool:
        return bool(select.select([], [self._descriptor], [], _POLL)[1])

    def close(self) -> None:
        """Give the descriptor back."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


class _StreamSink:
    """A text stream without a file descriptor, such as one in memory."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.broken = False

    def write(self, text: str, closing: threading.Event) -> bool:  # noqa: ARG002 - same as above
        """Write all of it; False once the stream refuses."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self.broken = True
            return False
        return True

    def close(self) -> None:
        """Nothing of ours is open."""


def _open_sink(stream: TextIO | None) -> _DescriptorSink | _StreamSink | None:
    if stream is None:
        return None
    try:
        return _DescriptorSink(os.dup(stream.fileno()))
    except io.UnsupportedOperation:
        return _StreamSink(stream)
    except (OSError, ValueError):
        # Closed already.
        return None
