"""Keeping the memory of a serving process, which holds keys and prompts, to that process."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def keep_memory_private() -> None:
    """Write no core dump, and let no other process of the same user read the memory.

    The second is Linux only, and does not bind root. Failing to get it is no reason not to
    serve. A debugger or profiler that attaches then needs the rights of root.
    """
    if sys.platform == "win32":
        return
    # No such module on Windows.
    import resource  # noqa: PLC0415

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
