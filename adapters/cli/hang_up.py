"""SIGHUP: "read your configuration again", without ever ending the process by accident.

Until somebody handles it, SIGHUP kills. So it is held back (not ignored) from before the file
is read until the gateway serves, and again from the end of service on: one that comes in
between is delivered as soon as there is somebody to take it.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import anyio

_POSSIBLE = hasattr(signal, "SIGHUP") and hasattr(signal, "pthread_sigmask")


@contextmanager
def hang_ups_held() -> Iterator[None]:
    """Hold SIGHUP back. In the main thread, before any other thread is started."""
    if not _POSSIBLE:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        # Ignoring it drops one that waits, which would otherwise kill on its delivery.
        handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGHUP, handler)


async def on_hang_up(action: Callable[[], Awaitable[None]]) -> None:
    """Run an action for SIGHUP, until cancelled; within `hang_ups_held`.

    Signals that come while the action runs make it run once more, however many they are.

    Args:
        action: What to do; must not raise.
    """
    if not _POSSIBLE:
        return
    wanted = anyio.Event()

    async def act() -> None:
        nonlocal wanted
        while True:
            await wanted.wait()
            wanted = anyio.Event()
            await action()

    async with anyio.create_task_group() as group:
        group.start_soon(act)
        with anyio.open_signal_receiver(signal.SIGHUP) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
            try:
                async for _ in signals:
                    wanted.set()
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
