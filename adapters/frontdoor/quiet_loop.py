"""Keeps dying connections from flooding the log.

A write to a connection that is gone makes asyncio and uvloop log a line for each attempt (100,000
were counted for one stream), and a TLS close that times out or a host that became unreachable ends
as a traceback in the event loop's exception handler. Neither says anything that the request's own
outcome does not say.
"""

# asyncio, because the event loop's exception handler is asyncio's.
import asyncio
import logging
import ssl
from typing import Any

logger = logging.getLogger(__name__)


class QuietLoop:
    """While it is entered, a failing connection costs one line of log and not a traceback."""

    def __init__(self) -> None:
        """Do nothing yet."""
        self._previous: Any = None

    def __enter__(self) -> None:
        """Take over the running loop's exception handler and filter asyncio's logger."""
        loop = asyncio.get_running_loop()
        self._previous = loop.get_exception_handler()
        loop.set_exception_handler(_note_loop_exception)
        logging.getLogger("asyncio").addFilter(_is_worth_logging)

    def __exit__(self, *_exc: object) -> None:
        """Give both back."""
        logging.getLogger("asyncio").removeFilter(_is_worth_logging)
        asyncio.get_running_loop().set_exception_handler(self._previous)


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Drop the line that asyncio and uvloop write for every write to a closed connection."""
    return "socket.send() raised exception" not in record.getMessage()


def _note_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what a dying connection left behind; TLS handshakes and EHOSTUNREACH end up here."""
    error = context.get("exception")
    if isinstance(error, (OSError, ssl.SSLError, TimeoutError)):
        logger.info("a connection ended with %s: %s", type(error).__name__, error)
    else:
        loop.default_exception_handler(context)
