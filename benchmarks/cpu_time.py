"""Processor time of another process, as Linux tells it."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """User and system time that a process with all its threads has used so far, seconds.

    Exact to one clock tick, a hundredth of a second on usual kernels.

    Raises:
        OSError: If there is no such process, or the system has no `/proc`.
    """
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    # The second field is the program's name in brackets, which may hold blanks and brackets.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Memory that a process has in RAM, MiB.

    Raises:
        OSError: If there is no such process, or the system has no `/proc`.
    """
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
