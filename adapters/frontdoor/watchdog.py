"""`Watchdog`: ends the process from outside the event loop when it does not end by itself."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final

logger = logging.getLogger(__name__)

EXIT_WATCHDOG: Final = 70
"""The process did not end by itself and was ended (``EX_SOFTWARE``)."""

_LAST_WORDS: Final = 0.2
_COUNTED: Final = 2


class Watchdog:
    """A timer in a thread of its own, set by the signals that end the process.

    An event loop that is stuck in some code never hears of a signal. Python's own handlers run
    between two instructions of that very code, so the watchdog is set by them.
    """

    __slots__ = ("_timer",)

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def set(self, seconds: float) -> None:
        """End the process after some seconds, and not at the instant that was set before."""
        self.cancel()
        self._timer = threading.Timer(seconds, _exit_hard)
        # It must not keep alive what it is there to end.
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Let the process go on."""
        if self._timer is not None:
            self._timer.cancel()

    def follow(self, numbers: Iterable[int], patience: Callable[[int], float]) -> None:
        """Set itself by signals that the event loop is already told of. In the main thread.

        Args:
            numbers: The signals. Their handlers are replaced, which the event loop does not
                need: it is woken by the signal itself.
            patience: From the number of signals that have come, 1 or 2, to the seconds that
                the process then has. Further signals change nothing.
        """
        received = 0

        def note(_number: int, _frame: FrameType | None) -> None:
            nonlocal received
            received += 1
            if received <= _COUNTED:
                # Who keeps sending signals must not put the end off.
                self.set(patience(received))

        for number in numbers:
            signal.signal(number, note)
            # As the event loop had it: system calls go on after the signal.
            signal.siginterrupt(number, False)


def _exit_hard() -> None:
    logger.critical("the server did not end by itself; ending the process")
    # Time for the line to be written by another thread.
    threading.Event().wait(_LAST_WORDS)
    os._exit(EXIT_WATCHDOG)
