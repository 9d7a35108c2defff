"""`VirtualLoop`: an asyncio event loop whose clock jumps to the next timer.

Nothing is waited for: when no callback is ready, the clock is set to the instant of the
earliest timer. There is no selector, no socket and no thread, so an hour of traffic takes
as long as its callbacks take to compute, and the same callbacks come in the same order
each time.
"""

from __future__ import annotations

# asyncio by nature: the engine runs on anyio, and this is what anyio's asyncio half runs on.
import asyncio
import contextvars
import heapq
import math
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, NoReturn, Self, TypeVar

ResultT = TypeVar("ResultT")

START = 1_000.0
"""Where the clock begins, seconds. Not 0: no real monotonic clock is at 0 while a server
runs, and code that takes 0 for "never" is right to do so."""

PATIENCE = 200
"""Turns at one instant before time goes on although callbacks are ready. On a real loop
time passes while tasks give each other turns; here it would stand still for ever under
anyio, which repeats a cancellation each turn until a task has cleaned up."""

SLIP = 0.001
"""Seconds by which time goes on in such a turn."""

MAX_CALLBACKS = 10_000_000_000
"""A day of 200 requests a second takes a fiftieth of it."""

MAX_CANCELLED = 512
"""Cancelled timers that may lie in the heap before they are swept out."""


class StuckError(Exception):
    """Nothing is left to happen, and what was to be run has not ended."""


class RunawayError(Exception):
    """More callbacks were run than were allowed."""


class Callback:
    """A callback that waits for its turn or its instant; asyncio's handle with fewer words."""

    __slots__ = ("_loop", "_when", "args", "callback", "context")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context | None,
        loop: VirtualLoop | None = None,
        when: float = 0.0,
    ) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._when = when

    def cancel(self) -> None:
        """Never call it."""
        if self.callback is not None:
            self.callback = None
            self.args = ()
            if self._loop is not None:
                self._loop.timer_cancelled()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self.callback is None

    def when(self) -> float:
        """The instant of a timer."""
        return self._when


class VirtualLoop(asyncio.AbstractEventLoop):
    """An event loop in virtual time; only what needs no operating system is there.

    Args:
        max_callbacks: Callbacks after which a run is given up: something goes in circles.
    """

    def __init__(self, *, max_callbacks: int = MAX_CALLBACKS) -> None:
        self._now = START
        self._ready: deque[Callback] = deque()
        self._timers: list[tuple[float, int, Callback | asyncio.Future[None]]] = []
        self._serial = 0
        self._cancelled = 0
        self._left = max_callbacks
        self._running = False
        self._closed = False
        self._main_ended = False
        self.unhandled: list[str] = []

    @classmethod
    def make(cls, *, max_callbacks: int = MAX_CALLBACKS) -> Self:
        """A loop. Type checkers refuse to call the class: it lacks methods on purpose."""
        return cls(max_callbacks=max_callbacks)

    # ── time ─────────────────────────────────────────────────────────────────────

    def time(self) -> float:
        """The virtual instant, seconds."""
        return self._now

    async def pause(self, seconds: float) -> None:
        """Sleep; a third of what `anyio.sleep` costs, for the simulated providers."""
        future: asyncio.Future[None] = asyncio.Future(loop=self)
        self.wake_in(seconds, future)
        await future

    def wake_in(self, seconds: float, future: asyncio.Future[None]) -> None:
        """Give a future its result after some seconds, unless it is done by then."""
        self._serial += 1
        heapq.heappush(self._timers, (self._now + seconds, self._serial, future))

    # ── callbacks ────────────────────────────────────────────────────────────────

    def call_soon(  # type: ignore[override]  # asyncio only ever calls the handle's methods
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Callback:
        """Call it in the next turn."""
        handle = Callback(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Callback:
        """Call it after some seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Callback:
        """Call it at an instant; at no instant if that is infinite, as for a sleep for ever."""
        if when == math.inf:
            return Callback(callback, args, context)
        handle = Callback(callback, args, context, self, when)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, handle))
        return handle

    def timer_cancelled(self) -> None:
        """Note that a timer will not be called; many such are swept out of the heap."""
        self._cancelled += 1
        if self._cancelled > MAX_CANCELLED and self._cancelled * 2 > len(self._timers):
            self._timers = [timer for timer in self._timers if _is_open(timer[2])]
            heapq.heapify(self._timers)
            self._cancelled = 0

    @property
    def timers(self) -> int:
        """Timers that are still to come."""
        return sum(_is_open(timer[2]) for timer in self._timers)

    # ── tasks ────────────────────────────────────────────────────────────────────

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, ResultT] | Coroutine[Any, Any, ResultT],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[ResultT]:
        """A task that starts in the next turn."""
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def get_task_factory(self) -> None:
        """There is none; anyio asks."""

    # ── the run ──────────────────────────────────────────────────────────────────

    def run(self, main: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run a coroutine to its end, and whatever it started with it.

        Raises:
            StuckError: If it waits for something that nothing will ever do.
            RunawayError: If it takes more callbacks than were allowed.
            RuntimeError: If another event loop runs in this thread.
        """
        if asyncio._get_running_loop() is not None:  # noqa: SLF001 - made for event loops
            main.close()
            msg = "a virtual event loop cannot run inside of another event loop"
            raise RuntimeError(msg)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self._finalize)
        asyncio._set_running_loop(self)  # noqa: SLF001 - made for event loops
        self._running = True
        task = self.create_task(main)
        try:
            self._run_until(task)
        except BaseException:
            task.cancel()
            raise
        finally:
            self._running = False
            asyncio._set_running_loop(None)  # noqa: SLF001
            sys.set_asyncgen_hooks(*hooks)
        return task.result()

    def _run_until(self, task: asyncio.Task[Any]) -> None:
        task.add_done_callback(self._note_end)
        self._main_ended = False
        ready = self._ready
        take = ready.popleft
        turns, instant = 0, self._now
        while not self._main_ended:
            if not ready:
                self._jump()
            elif turns > PATIENCE:
                self._slip()
            if self._now != instant:
                turns, instant = 0, self._now
            turns += 1
            count = len(ready)
            self._left -= count
            if self._left < 0:
                msg = "the run took more callbacks than it may: something goes in circles"
                raise RunawayError(msg)
            try:
                for _ in range(count):
                    handle = take()
                    callback = handle.callback
                    if callback is not None:
                        handle.context.run(callback, *handle.args)
            except Exception as error:  # noqa: BLE001 - the border of every event loop
                # What is left of this turn stands first in the next one.
                self.call_exception_handler({"message": repr(callback), "exception": error})

    def _note_end(self, _: object) -> None:
        self._main_ended = True

    def _jump(self) -> None:
        """Set the clock to the next timer, and make ready what is due then."""
        timers, ready = self._timers, self._ready
        instant: float | None = None
        # Also after one that was cancelled: what is due later must wait for the next jump.
        while timers and (instant is None or timers[0][0] <= instant):
            when, _, item = heapq.heappop(timers)
            if isinstance(item, Callback):
                if item.callback is None:
                    self._cancelled -= 1
                    continue
                item._loop = None  # noqa: SLF001 - it is in no heap any more
                ready.append(item)
            elif item.done():
                continue
            else:
                # Its task is woken in the turn that this prepares.
                item.set_result(None)
            instant = self._now = max(self._now, when)
        if not ready:
            msg = "nothing is left to happen: a task waits for something that will never come"
            raise StuckError(msg)

    def _slip(self) -> None:
        """Let a little time pass although callbacks are ready."""
        self._now += SLIP
        if self._timers and self._timers[0][0] <= self._now:
            self._jump()

    # ── what else a loop is asked for ────────────────────────────────────────────

    def get_debug(self) -> bool:
        """Never in debug mode."""
        return False

    def is_running(self) -> bool:
        """Whether `run` is under way."""
        return self._running

    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Forget what was to be called."""
        self._closed = True
        self._ready.clear()
        self._timers.clear()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody handled: a simulation treats it as a broken promise."""
        error = context.get("exception")
        if len(self.unhandled) < PATIENCE:
            self.unhandled.append(f"{context.get('message')}: {error!r}")

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._closed:
            self.create_task(generator.aclose())

    def __repr__(self) -> str:
        return f"VirtualLoop(now={self._now:.3f}, timers={len(self._timers)})"


def _is_open(item: Callback | asyncio.Future[None]) -> bool:
    return not (item.cancelled() if isinstance(item, Callback) else item.done())


def current_loop() -> VirtualLoop:
    """The virtual loop that runs now.

    Raises:
        RuntimeError: If none does.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, VirtualLoop):
        _not_virtual()
    return loop


def _not_virtual() -> NoReturn:
    msg = "this runs on a virtual event loop only"
    raise RuntimeError(msg)
