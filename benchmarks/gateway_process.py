"""Runs the gateway as users do, but for as long as the benchmark lives.

`python -m benchmarks.gateway_process FILE` is `inference-gateway serve FILE` that also ends when
its standard input is closed: a benchmark that is killed leaves no server behind.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from adapters.cli.main import main


def _end_with_input() -> None:
    # This thread sleeps in the kernel all the time and so costs the gateway nothing.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    main(["serve", sys.argv[1]])
