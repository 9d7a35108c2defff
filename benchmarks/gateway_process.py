"""Serves the gateway, and lives only as long as the benchmark lives.

`python -m benchmarks.gateway_process FILE` is `inference-gateway serve FILE` that also ends when
its standard input is closed: a benchmark that is killed leaves no server behind. SIGUSR1 makes it
write a line of JSON to its standard output: what it holds just then, counted from inside.
"""

from __future__ import annotations

# How many tasks there are, only the event loop knows.
import asyncio
import gc
import json
import os
import signal
import sys
import threading

from adapters.cli.main import main
from benchmarks.cpu_time import heap_mib, open_descriptors, resident_mib


def _end_with_input() -> None:
    # This thread sleeps in the kernel all the time and so costs the gateway nothing.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _tell(*_: object) -> None:
    """Write what is held once all garbage is gone; called between two steps of the event loop."""
    gc.collect()
    own = os.getpid()
    held = {
        "resident_mib": resident_mib(own),
        "heap_mib": heap_mib(),
        "blocks": sys.getallocatedblocks(),
        "objects": len(gc.get_objects()),
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "descriptors": open_descriptors(own),
    }
    os.write(sys.stdout.fileno(), json.dumps(held).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _tell)
    threading.Thread(target=_end_with_input, daemon=True).start()
    main(["serve", sys.argv[1]])
