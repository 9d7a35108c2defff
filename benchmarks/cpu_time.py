"""What a process takes: processor time, memory, descriptors, as Linux tells it."""

from __future__ import annotations

import ctypes
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


def open_descriptors(pid: int) -> int:
    """Files, sockets and pipes that a process has open.

    Raises:
        OSError: If there is no such process, or the system has no `/proc`.
    """
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


class _HeapInformation(ctypes.Structure):
    """What `mallinfo2` of the GNU C library gives; see its manual page."""

    _fields_ = [  # type: ignore[mutable-override]  # ctypes reads it once, here
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def heap_mib() -> float:
    """Memory of the C library's heap that is in use in this process, MiB; 0 if it cannot tell.

    Free memory that the heap keeps is not counted, and neither are the arenas from which the
    interpreter takes pieces of up to 512 bytes.
    """
    tell = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if tell is None:
        return 0.0
    tell.restype = _HeapInformation
    information = tell()
    return float(information.uordblks + information.hblkhd) / 2**20
