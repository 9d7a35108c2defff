"""Garbage collection in a process that does nothing but serve."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

ALLOCATIONS = 10_000
"""Container objects made, less those freed, before the young ones are looked through. A
request makes some 300 and leaves none behind, since reference counts free them, so the
interpreter's own 700 looks every few requests through what is still in use."""


@contextmanager
def tuned_for_serving() -> Iterator[None]:
    """Take what was loaded at the start out of the collector's sight, and look more rarely.

    Cycles are still collected; only objects that were there before the first request, which
    live as long as the process, are never looked at again. Everything is undone at the end.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
