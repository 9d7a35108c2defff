"""Streams that are slow, full, closed or gone: nobody waits for them and nothing raises."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from adapters.observability.line_writer import LineWriter

PROMPT = 1.0
"""Seconds that are far more than not waiting takes, and far less than being stuck."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe: its reading and its writing end."""
    reader, writer = os.pipe()
    yield reader, writer
    for end in (reader, writer):
        try:
            os.close(end)
        except OSError:
            continue


def filled(descriptor: int) -> int:
    """Fill a pipe to the brim; how many bytes it holds."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    count = 0
    try:
        while True:
            count += os.write(descriptor, b"x" * 4096)
    except BlockingIOError:
        pass
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    return count


def numbered(number: int) -> str:
    return f"line {number}\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_pipe_blocks_nobody(pipe: tuple[int, int], *, blocking: bool) -> None:
    """With nobody reading, lines are queued, then dropped and counted; close gives up in time."""
    reader, writer_end = pipe
    filled(writer_end)
    os.set_blocking(writer_end, blocking)
    begun = time.perf_counter()
    with os.fdopen(writer_end, "w", closefd=False) as stream:
        writer = LineWriter(stream, numbered, capacity=100)
        for number in range(10_000):
            writer.put(number)
        assert not writer.close(timeout=0.2)
    assert time.perf_counter() - begun < PROMPT
    assert writer.dropped >= 10_000 - 100 - 500
    # Let the thread go.
    os.read(reader, 1 << 20)


def test_lines_go_on_when_the_reader_comes_back(pipe: tuple[int, int]) -> None:
    """What waited in the queue is written once there is room."""
    reader, writer_end = pipe
    held = filled(writer_end)
    with os.fdopen(writer_end, "w", closefd=False) as stream:
        writer = LineWriter(stream, numbered)
        for number in range(100):
            writer.put(number)
        while held > 0:
            held -= len(os.read(reader, held))
        assert writer.close(timeout=10)
    expected = "".join(numbered(number) for number in range(100))
    assert os.read(reader, 1 << 16).decode() == expected
    assert writer.dropped == 0


def test_a_reader_that_left_is_no_error(pipe: tuple[int, int]) -> None:
    """A broken pipe drops and counts, and is not tried again."""
    reader, writer_end = pipe
    os.close(reader)
    with os.fdopen(writer_end, "w", closefd=False) as stream:
        writer = LineWriter(stream, numbered)
        for number in range(10):
            writer.put(number)
        writer.close(timeout=10)
    assert writer.dropped == 10


def test_a_stream_that_is_closed_later_does_no_harm(pipe: tuple[int, int]) -> None:
    """The descriptor is our own: its number may be a client's socket by then."""
    reader, writer_end = pipe
    stream = os.fdopen(writer_end, "w", closefd=False)
    writer = LineWriter(stream, numbered)
    os.close(writer_end)
    stolen = os.open(os.devnull, os.O_WRONLY)
    assert stolen == writer_end
    writer.put(1)
    assert writer.close(timeout=10)
    assert os.read(reader, 100) == b"line 1\n"


@pytest.mark.parametrize("closed", [True, False])
def test_no_stream_drops_everything(*, closed: bool) -> None:
    """Python has no stdout when the process was started without one."""
    stream: io.StringIO | io.TextIOWrapper | None = None
    if closed:
        with open(os.devnull, "w", encoding="utf-8") as stream:
            """Closed at once."""
    writer = LineWriter(stream, numbered)
    writer.put(1)
    assert writer.close()
    assert writer.dropped == 1


def test_a_stream_in_memory_that_refuses_is_counted() -> None:
    """Streams without a descriptor may fail as well."""

    class Refusing(io.StringIO):
        def write(self, text: str) -> int:
            raise ValueError(text)

    writer = LineWriter(Refusing(), numbered)
    writer.put(1)
    writer.close(timeout=10)
    assert writer.dropped == 1


def test_text_that_is_no_unicode_is_written_escaped(pipe: tuple[int, int]) -> None:
    """A lone surrogate neither raises nor ends the writing."""
    reader, writer_end = pipe
    with os.fdopen(writer_end, "w", closefd=False) as stream:
        writer = LineWriter(stream, str)
        writer.put("a\ud800\n")
        writer.put("b\n")
        assert writer.close(timeout=10)
    assert os.read(reader, 100) == b"a\\ud800\nb\n"


SCRIPT = """
import os, sys
from adapters.observability import RequestLog, RequestRecord
log = RequestLog("json")
record = RequestRecord(request_id="r", method="GET", route="/", status=200)
for _ in range(20_000):
    log.write(record)
sys.stderr.write(f"done {log.close(0.2)}\\n")
"""


def test_a_process_whose_stdout_nobody_reads_ends(pipe: tuple[int, int]) -> None:
    """The thread that is stuck in a write does not keep, or abort, the process."""
    _, writer_end = pipe
    filled(writer_end)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stdout=writer_end,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"done False\n")


def test_a_process_without_stdout_ends() -> None:
    """Started with a closed stdout, it logs nothing and runs on."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -c '{SCRIPT}' >&-"],
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"done True\n")
