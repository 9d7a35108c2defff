"""`Upstream`: what stands behind a provider's address in a simulation.

It has its own chance, so that what happens at one upstream changes nothing at another. It
lives through reloads: several adapters, one after the other, may speak to it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from adapters.simulation import faults
from adapters.simulation.scenario import DEFAULT_BEHAVIOUR, BehaviourConfig, FaultConfig
from adapters.simulation.virtual_loop import VirtualLoop
from engine.attempt import Attempt
from engine.errors import ConnectError, ErrorClass, ProviderError, Replay

if TYPE_CHECKING:
    # The loop's own futures: an upstream wakes its calls without a layer between.
    from asyncio import Future

    from adapters.simulation.requests import Asked


class Call:
    """One call that an upstream has seen.

    Attributes:
        upstream: Where.
        asked: The request that it belongs to.
        begun: When it came.
        serial: Its number over all upstreams.
        holds: Whether it takes one of the upstream's places.
        over: Whether it has ended.
        complete: Whether its answer was given to the end.
        future: What it waits for now, or the last thing that it waited for.
    """

    __slots__ = ("asked", "begun", "complete", "future", "holds", "over", "serial", "upstream")

    def __init__(self, upstream: Upstream, asked: Asked | None, begun: float, serial: int) -> None:
        self.upstream = upstream
        self.asked = asked
        self.begun = begun
        self.serial = serial
        self.holds = False
        self.over = False
        self.complete = False
        self.future: Future[None] | None = None


class Watcher(Protocol):
    """Told of all calls, and knows whose they are."""

    def call_begins(self, upstream: Upstream, attempt: Attempt) -> Call:
        """Note a call."""
        ...

    def call_ends(self, call: Call) -> None:
        """Note the end of a call."""
        ...


class Upstream:
    """One simulated upstream.

    Args:
        name: Name of the provider that it serves.
        loop: Where time comes from.
        watcher: Told of all calls.
        behaviour: How it behaves while nothing is wrong.
        plagues: What goes wrong with it, instants counted from `origin`.
        seed: Seed of its chance.
        origin: Instant at which the scenario begins.

    Attributes:
        running: Calls that are open, waiting ones included.
        started: Calls so far.
        calls: The open calls in the order in which they came.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: VirtualLoop,
        watcher: Watcher,
        behaviour: BehaviourConfig = DEFAULT_BEHAVIOUR,
        plagues: tuple[FaultConfig, ...] = (),
        seed: int = 0,
        origin: float = 0.0,
    ) -> None:
        self.name = name
        self.loop = loop
        self.watcher = watcher
        self.calls: dict[Call, None] = {}
        self.started = 0
        self._rng = random.Random(f"upstream {name} {seed}")
        self._chance = self._rng.random
        self._plagues = plagues
        self._active: tuple[FaultConfig, ...] = ()
        self._origin = origin
        self._waiting: deque[tuple[Call, Future[None]]] = deque()
        self._busy = 0
        self.behave(behaviour)
        self._watch_faults()

    # ── how it behaves ───────────────────────────────────────────────────────────

    def behave(self, behaviour: BehaviourConfig) -> None:
        """Behave like this from now on."""
        self.behaviour = behaviour
        self.events = behaviour.events
        self._latency = behaviour.latency.sampler(self._rng)
        self._error_latency = behaviour.error_latency.sampler(self._rng)
        self._per_token = 1 / behaviour.tokens_per_second if behaviour.tokens_per_second else 0.0
        self._errors: tuple[tuple[float, ErrorClass], ...] = _bounds(behaviour.errors)
        self._places = behaviour.concurrency
        self._simple = self._places is None and not self._errors
        while self._waiting and self._has_place():
            self._let_in()

    def _watch_faults(self) -> None:
        """Note which faults are there, now and whenever one begins or ends."""
        # In instants of the clock: the difference of a sum and its part is not exact.
        now = self.loop.time()
        begun = tuple(
            plague
            for plague in self._plagues
            if self._instant(plague.at) <= now < self._instant(plague.until)
        )
        for plague in begun:
            if plague.drops_running and plague not in self._active:
                self._drop_running()
        self._active = begun
        edges = [self._instant(edge) for p in self._plagues for edge in (p.at, p.until)]
        if (later := min((edge for edge in edges if edge > now), default=math.inf)) < math.inf:
            self.loop.call_at(later, self._watch_faults)

    def _instant(self, seconds: float | None) -> float:
        return math.inf if seconds is None else self._origin + seconds

    def _drop_running(self) -> None:
        for call in list(self.calls):
            future = call.future
            if future is not None and not future.done():
                future.set_exception(faults.reset(self.name))

    @property
    def running(self) -> int:
        """Calls that are open, waiting ones included."""
        return len(self.calls)

    # ── a call ───────────────────────────────────────────────────────────────────

    def begin(self, attempt: Attempt) -> Call:
        """A call comes in."""
        self.started += 1
        call = self.watcher.call_begins(self, attempt)
        self.calls[call] = None
        return call

    def end(self, call: Call) -> None:
        """A call is over, however it ended; may be told again."""
        if call.over:
            return
        call.over = True
        del self.calls[call]
        if call.holds:
            self._busy -= 1
            while self._waiting and self._has_place():
                self._let_in()
        self.watcher.call_ends(call)

    @staticmethod
    def failed(call: Call, error: BaseException) -> None:
        """Note whether the upstream may have executed a call that failed.

        Whatever is cancelled or breaks inside the adapter may have been.
        """
        asked = call.asked
        if asked is None:
            return
        if isinstance(error, ConnectError):
            asked.unreachable = True
        if not (isinstance(error, ProviderError) and error.replay is Replay.NOT_ACCEPTED):
            asked.maybe_billed = True

    def fault(self) -> FaultConfig | None:
        """What is wrong with the call that begins now, or None."""
        for plague in self._active:
            rhythm = plague.rhythm
            if rhythm is not None:
                into = (self.loop.time() - self._origin - plague.at) % rhythm[0]
                if into >= rhythm[1]:
                    continue
            if plague.share >= 1 or self._chance() < plague.share:
                return plague
        return None

    async def enter(self, call: Call, attempt: Attempt, *, streamed: bool) -> float:
        """Come as far as the first token.

        Returns:
            Seconds that the rest of the answer takes.

        Raises:
            ProviderError: What an adapter would make of what went wrong.
        """
        if self._simple and not self._active and call.asked is not None:
            # Nothing can go wrong and nobody waits: most calls of most scenarios.
            seconds = call.asked.seconds
            latency = self._latency() if seconds is None else seconds
            rest = 0.0 if seconds is not None else call.asked.output_tokens * self._per_token
            future = call.future = self.loop.create_future()
            self.loop.wake_in(latency if streamed else latency + rest, future)
            await future
            return rest if streamed else 0.0
        slower = 1.0
        if self._active and (fault := self.fault()) is not None:
            if fault.kind != "slow":
                await self._suffer(call, fault, attempt, streamed=streamed)
            else:
                slower = fault.factor
        if self._places is not None:
            await self._find_place(call)
        if self._errors and (error := self._error()) is not None:
            await self.pause(call, self._error_latency())
            raise error
        asked = call.asked
        if asked is not None and asked.seconds is not None:
            latency, rest = asked.seconds * slower, 0.0
        else:
            latency = self._latency() * slower
            rest = 0.0 if asked is None else asked.output_tokens * self._per_token * slower
        if streamed:
            await self.pause(call, latency)
            return rest
        await self.pause(call, latency + rest)
        return 0.0

    async def pause(self, call: Call, seconds: float) -> None:
        """Let time pass in a call.

        Raises:
            ProviderError: If the upstream drops its connections meanwhile.
        """
        future = call.future = self.loop.create_future()
        self.loop.wake_in(seconds, future)
        await future

    async def hang(self, call: Call) -> None:
        """Say nothing more; only a limit of the engine ends it, or a caller who leaves.

        Raises:
            ProviderError: If the upstream drops its connections meanwhile.
        """
        call.future = self.loop.create_future()
        await call.future

    def _error(self) -> ProviderError | None:
        roll = self._chance()
        for bound, kind in self._errors:
            if roll < bound:
                return faults.of_class(kind, self.name, retry_after=self.behaviour.retry_after)
        return None

    # ── places ───────────────────────────────────────────────────────────────────

    def _has_place(self) -> bool:
        return self._places is None or self._busy < self._places

    async def _find_place(self, call: Call) -> None:
        if self._has_place() and not self._waiting:
            self._busy += 1
            call.holds = True
            return
        behaviour = self.behaviour
        if behaviour.when_full != "queue" or len(self._waiting) >= behaviour.queue:
            await self.pause(call, self._error_latency())
            status = 429 if behaviour.when_full == "429" else 503
            raise faults.of_status(status, self.name, retry_after=behaviour.retry_after)
        future = call.future = self.loop.create_future()
        entry = (call, future)
        self._waiting.append(entry)
        try:
            await future
        finally:
            if not call.holds and entry in self._waiting:
                self._waiting.remove(entry)

    def _let_in(self) -> None:
        call, future = self._waiting.popleft()
        if not future.done():
            self._busy += 1
            call.holds = True
            future.set_result(None)

    # ── faults ───────────────────────────────────────────────────────────────────

    async def _suffer(
        self, call: Call, fault: FaultConfig, attempt: Attempt, *, streamed: bool
    ) -> None:
        """Raise what the fault brings, or hang; a stream's late faults are not raised here."""
        kind = fault.kind
        if kind in _LATE:
            if streamed:
                return
            await self.pause(call, self._latency())
            if kind == "cut_stream":
                raise faults.cut(self.name)
            kind = "hang_body"
        if kind == "hang_connect":
            await self.pause(call, attempt.timeouts.connect)
            raise faults.refused(self.name)
        if kind == "hang_body":
            attempt.headers_received()
        if kind in ("hang", "hang_body"):
            await self.hang(call)
        await self.pause(call, fault.after)
        raise _failure(fault, self.name)

    def late_fault(self) -> FaultConfig | None:
        """The fault that a stream meets after its first event, or None."""
        if not self._active:
            return None
        fault = self.fault()
        return fault if fault is not None and fault.kind in _LATE else None

    def __repr__(self) -> str:
        return f"Upstream({self.name!r}, running={self.running}, started={self.started})"


_LATE = frozenset({"cut_stream", "stall_stream"})

_FAILURES: dict[str, Callable[[FaultConfig, str], BaseException]] = {
    "refuse": lambda _, name: faults.refused(name),
    "flap": lambda _, name: faults.refused(name),
    "reset": lambda _, name: faults.reset(name),
    "status": lambda fault, name: faults.of_status(
        fault.status, name, retry_after=fault.retry_after
    ),
    "quota": lambda fault, name: faults.quota(name, fault.retry_after),
    "html": lambda _, name: faults.html(name),
    "error_event_first": lambda _, name: faults.error_event(name),
    "misconfigured": lambda _, name: faults.of_status(401, name),
    "bug": lambda _, name: faults.SimulatedBugError(name),
    "crash": lambda _, name: faults.SimulatedCrash(name),
}


def _failure(fault: FaultConfig, name: str) -> BaseException:
    return _FAILURES[fault.kind](fault, name)


def _bounds(shares: Mapping[ErrorClass, float]) -> tuple[tuple[float, ErrorClass], ...]:
    bounds, total = [], 0.0
    for kind, share in shares.items():
        if share > 0:
            total += share
            bounds.append((total, kind))
    return tuple(bounds)
