"""`WorkerPool`: the tasks of an actor, each of which serves one envelope at a time.

Workers are made when needed and a few stay for the next envelope: handing one to a
worker that waits costs a fraction of starting a task for it.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel

from engine.envelope import Envelope

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

IDLE_WORKERS = 64
"""Workers that stay without work, as many as the default concurrency: hiring one costs
10 µs. A parked task costs about 3 KiB, so an actor keeps at most 192 KiB of them, and
only after that much load."""


def cancelled_from_outside() -> bool:
    """Whether a scope around this task is cancelled; False when an adapter made it up."""
    return anyio.current_effective_deadline() == -math.inf


class Employer(Protocol):
    """Whoever owns the workers: their actor."""

    def next_envelope(self) -> Envelope | None:
        """The next envelope for a worker without one, or None."""
        ...

    def serve(self, envelope: Envelope) -> Awaitable[None]:
        """Serve an envelope to its end, whatever happens to it."""
        ...

    def worker_crashed(self) -> None:
        """A worker is ending with an exception that is nobody's cancellation."""
        ...

    def worker_lost(self, envelope: Envelope) -> None:
        """A worker has ended with this envelope in its hands."""
        ...


class Worker:
    """One task of an actor, and what it has in hand."""

    __slots__ = ("envelope", "scope", "wakeup")

    def __init__(self, envelope: Envelope | None) -> None:
        self.envelope = envelope
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.wakeup: anyio.Event | None = None

    def interrupt(self, envelope: Envelope) -> None:
        """Stop working on the envelope, if that is what the worker has in hand."""
        if self.envelope is envelope and self.wakeup is None:
            self.scope.cancel()


class WorkerPool:
    """Workers of one actor.

    Attributes:
        workers: Tasks that serve, or wait to.
    """

    __slots__ = ("_context", "_employer", "_event", "_group", "_idle", "workers")

    def __init__(self, employer: Employer, *, event: Callable[[], anyio.Event]) -> None:
        self.workers = 0
        self._employer = employer
        self._event = event
        self._idle: list[Worker] = []
        self._group: TaskGroup | None = None
        self._context = contextvars.Context()

    @property
    def busy(self) -> int:
        """Workers that have an envelope in hand."""
        return self.workers - len(self._idle)

    def open(self, group: TaskGroup) -> None:
        """Start from nothing: workers will be tasks of this group."""
        # Workers start in this context: an empty one, or they would all inherit the
        # trace context and the variables of whoever happened to make the router.
        self._context = contextvars.Context()
        self._idle.clear()
        self._group = group

    def close(self) -> None:
        """Hire nobody any more; those at work end with their group."""
        self._group = None

    @property
    def is_open(self) -> bool:
        """Whether an envelope can be handed over."""
        return self._group is not None

    def hand_over(self, envelope: Envelope) -> None:
        """Give an envelope to a worker that waits, or to a new one."""
        if self._idle:
            worker = self._idle.pop()
            worker.envelope = envelope
            envelope.handler = worker
            if worker.wakeup is not None:
                worker.wakeup.set()
            return
        worker = Worker(envelope)
        envelope.handler = worker
        self.workers += 1
        assert self._group is not None
        self._context.run(self._group.start_soon, self._work, worker)

    async def _work(self, worker: Worker) -> None:
        try:
            while True:
                with worker.scope:
                    await self._serve_all(worker)
                    return
                # An attempt was cut off: the scope is spent, the worker is not.
                worker.scope = anyio.CancelScope()
                worker.envelope = None
        except BaseException:
            if not cancelled_from_outside():
                self._employer.worker_crashed()
            raise
        finally:
            self.workers -= 1
            if worker.envelope is not None:
                self._employer.worker_lost(worker.envelope)

    async def _serve_all(self, worker: Worker) -> None:
        while True:
            envelope = worker.envelope or self._employer.next_envelope()
            if envelope is None:
                if len(self._idle) >= IDLE_WORKERS:
                    return
                await self._park(worker)
                continue
            worker.envelope = envelope
            envelope.handler = worker
            await self._employer.serve(envelope)
            worker.envelope = None
            if worker.scope.cancel_called:
                # The limit came in the same turn as the answer: take a fresh scope.
                await anyio.lowlevel.checkpoint()

    async def _park(self, worker: Worker) -> None:
        worker.wakeup = self._event()
        self._idle.append(worker)
        try:
            await worker.wakeup.wait()
        finally:
            worker.wakeup = None
            # Whoever gives it an envelope takes it off the list: no need to look through it.
            if worker.envelope is None:
                self._idle.remove(worker)
