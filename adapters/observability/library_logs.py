"""What libraries say through `logging`, on its way to stderr without blocking anybody.

Without this, Python writes warnings to stderr in the thread that logs them, which is the
event loop's when the span queue of OpenTelemetry is full, and a stderr that nobody reads
would stop the gateway.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

from adapters.observability.line_writer import LineWriter
from adapters.observability.logs import encode_json, instant, visible

OWN = ("adapters.", "engine.")
"""Loggers of this project, which may say what is not wrong but worth to know."""

CAPACITY = 1_000
MAX_MESSAGE = 1_000


class LibraryLogHandler(logging.Handler):
    """Hands log records to a `LineWriter`.

    A record becomes its time, level, logger and message. Of an exception only its class
    and the place that raised it are written: its text and the frames may hold what a
    caller sent.

    Args:
        form: `json` or `pretty`.
        stream: Where to; stderr when not given.
    """

    def __init__(self, form: Literal["pretty", "json"], stream: TextIO | None = None) -> None:
        super().__init__(logging.INFO)
        self._form = form
        self._writer: LineWriter[logging.LogRecord] = LineWriter(
            stream or sys.stderr, self._line, capacity=CAPACITY
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; never blocks. What libraries say below a warning is left out."""
        if record.levelno >= logging.WARNING or record.name.startswith(OWN):
            self._writer.put(record)

    @property
    def dropped(self) -> int:
        """Lines that were not written."""
        return self._writer.dropped

    def finish(self, timeout: float = 1.0) -> bool:
        """Write what waits; at most `timeout` seconds.

        Returns:
            Whether everything was written.
        """
        return self._writer.close(timeout)

    def _line(self, record: logging.LogRecord) -> str:
        when = instant(int(record.created * 1e9))
        message = _message(record)
        if self._form == "json":
            shown = {
                "time": when,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": message,
            }
            return encode_json(shown) + "\n"
        return f"{when[11:23]} {record.levelname.lower()} {record.name}: {visible(message)}\n"


def _message(record: logging.LogRecord) -> str:
    try:
        message = record.getMessage()
    except (TypeError, ValueError, KeyError):
        # Arguments that do not fit their format are the library's mistake.
        message = str(record.msg)
    message = message[:MAX_MESSAGE]
    if record.exc_info and record.exc_info[0] is not None:
        kind, _, traceback = record.exc_info
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        place = ""
        if traceback is not None:
            code = traceback.tb_frame.f_code
            place = f" in {code.co_qualname} line {traceback.tb_lineno}"
        message = f"{message} ({kind.__name__}{place})"
    return message
