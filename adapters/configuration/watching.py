"""`FileWatch`: notices when a configuration file has other contents.

It looks once a second instead of asking the kernel to be told. That works on every file
system, network ones included, through every symbolic link (Kubernetes replaces a folder's
link and touches no file), and cannot miss an event, at the cost of one `stat` a second.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from adapters.configuration.document import MAX_BYTES

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two looks; a change is applied when it looks the same twice."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a file looks like from outside, behind all symbolic links.

    Attributes:
        modified: Time of the last change, nanoseconds.
        size: Bytes.
        inode: Which file of its device it is; another one after a swap of links.
        device: The device.
    """

    modified: int
    size: int
    inode: int
    device: int


class ChangeDetector:
    """Decides from what a file looked like whether it has to be read again. No I/O.

    A change counts once two looks in a row saw the same: an editor or a copy that is still
    writing is left alone. A file that is missing for a while, as in a swap, is no change.

    The first sight counts as a change as well, since nobody knows what was there before.
    """

    def __init__(self) -> None:
        self._applied: Sight | None = None
        self._last: Sight | None = None

    def changed(self, seen: Sight | None) -> bool:
        """Take one look; whether the file has changed and come to rest."""
        at_rest = seen == self._last
        self._last = seen
        if seen is None or seen == self._applied or not at_rest:
            return False
        self._applied = seen
        return True


class FileWatch:
    """Calls back when a file has other contents than before.

    Contents decide, not times: a tool that writes the same file again every half hour
    would otherwise undo, each time, what the operator has set by hand.

    Args:
        path: The file.
        on_change: Called for each change, one at a time; must not raise.
        read: Digest of what was read from it last, from before it was read; None takes what
            is there now.
        interval: Seconds between two looks.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        on_change: Callable[[], Awaitable[None]],
        *,
        read: bytes | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self._path = Path(path)
        self._on_change = on_change
        self._interval = interval
        self._missing = False
        self._detector = ChangeDetector()
        # Now and not when the task starts: what changes from here on is a change.
        self._digest = digest_of(self._path) if read is None else read

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await anyio.sleep(self._interval)
            # In a thread: a file system that hangs must not stop the event loop.
            seen = await anyio.to_thread.run_sync(look_at, self._path, abandon_on_cancel=True)
            self._tell_if_missing(seen is None)
            if not self._detector.changed(seen):
                continue
            digest = await anyio.to_thread.run_sync(digest_of, self._path, abandon_on_cancel=True)
            if digest != self._digest:
                self._digest = digest
                await self._on_change()

    def _tell_if_missing(self, missing: bool) -> None:
        if missing and not self._missing:
            logger.warning("%s cannot be seen any more; what was read from it serves", self._path)
        self._missing = missing


def look_at(path: Path) -> Sight | None:
    """What a file looks like now; None if it cannot be seen."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return Sight(found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev)


def digest_of(path: str | os.PathLike[str]) -> bytes | None:
    """SHA-256 of the part of a file that a configuration may have; None if it is unreadable."""
    try:
        # A pipe has no end to wait for.
        if not Path(path).is_file():
            return None
        with Path(path).open("rb") as file:
            return hashlib.sha256(file.read(MAX_BYTES + 1)).digest()
    except (OSError, ValueError):
        return None
