"""`ProviderActor`: owns one provider, its mailbox and its workers.

Nobody else changes an actor's state. Others offer an envelope, which never waits, and
read a snapshot. Workers are tasks of the actor; each serves one attempt at a time. They
are made when needed, up to the provider's concurrency, and a few stay for the next.
"""

from __future__ import annotations

import contextvars
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from engine.envelope import Envelope
from engine.errors import (
    AdapterError,
    BrokenError,
    ErrorClass,
    GatewayError,
    OverloadedError,
    ProviderError,
    RouterClosedError,
)
from engine.mailbox import Mailbox
from engine.operations import Chunk, Operation, Response
from engine.resilience.limits import RateLimits, Unlimited
from engine.resilience.retry import may_repeat_here, repeating
from engine.status import ActorState, ActorStatus
from engine.streaming import ResponseStream

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from engine.config import ProviderConfig
    from engine.provider import BaseProvider, ChunkSource
    from engine.resilience.deadline import DeadlineWheel
    from engine.telemetry import Telemetry

IDLE_WORKERS = 16
"""Workers that stay without work. A parked task costs about 3 KiB, so a thousand
providers keep at most 48 MiB of them, and only after that much load."""

HELD_CHUNKS = 64
HELD_BYTES = 65_536
"""What may be held back of a stream before its first useful event; more than this and
the stream is committed as it is, for nothing may grow without bound."""

CLOSE_GRACE = 1.0
"""Seconds that closing an upstream stream may take; it usually takes none."""


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


class ProviderActor:
    """Serves the requests of one provider.

    Attributes:
        provider: The adapter.
        config: Its configuration.
        mailbox: Its queue.
        state: What it is doing.
        restarts: How often the supervisor restarted it.
    """

    def __init__(
        self,
        provider: BaseProvider,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        wheel: DeadlineWheel,
        telemetry: Telemetry,
        rate_limits: RateLimits | None = None,
    ) -> None:
        self.provider = provider
        self.config: ProviderConfig = provider.config
        self.mailbox: Mailbox[Envelope] = Mailbox(provider.name, provider.config.limits.queue)
        self.state = ActorState.STARTING
        self.restarts = 0
        self._clock = clock
        self._rng = rng
        self._wheel = wheel
        self._telemetry = telemetry
        self._rates = rate_limits or Unlimited()
        self._concurrency = provider.config.limits.concurrency
        self._group: TaskGroup | None = None
        self._context = contextvars.Context()
        self._idle: list[Worker] = []
        self._workers = 0
        self._serving: set[Envelope] = set()
        self._streams: set[ResponseStream] = set()
        self._closed_until = 0.0
        self._picked = 0
        self._completed = 0
        self._failed: dict[ErrorClass, int] = {}

    @property
    def name(self) -> str:
        """The provider's name."""
        return self.config.name

    @property
    def in_flight(self) -> int:
        """Attempts that run, streams included."""
        return len(self._serving)

    # ── what others may ask ──────────────────────────────────────────────────────

    def unavailable(self, operation: Operation) -> str | None:
        """Why this actor cannot take a request of that kind now, or None if it can."""
        if self.state is not ActorState.SERVING:
            return self.state.value
        if operation not in self.provider.operations:
            return "unsupported_operation"
        if self._closed_until and self._closed_until > self._clock():
            return "overloaded"
        if not self._idle and self._workers >= self._concurrency and not self.mailbox.has_room:
            return "mailbox_full"
        if self._rates.wait_time() > 0:
            return "rate_limited"
        return None

    def available_in(self) -> float:
        """Seconds until it makes sense to ask again; a guess where nothing is known."""
        if self._closed_until > (now := self._clock()):
            return self._closed_until - now
        return self._rates.wait_time() or 1.0

    def offer(self, envelope: Envelope) -> None:
        """Give the actor a request; never waits.

        Raises:
            MailboxFullError: If there is no room.
            RouterClosedError: If the actor is not serving.
        """
        if self._group is None:
            msg = f"the actor of provider {self.name!r} is {self.state.value}"
            raise RouterClosedError(msg)
        if self._idle:
            worker = self._idle.pop()
            worker.envelope = envelope
            envelope.handler = worker
            if worker.wakeup is not None:
                worker.wakeup.set()
        elif self._workers < self._concurrency:
            self._hire(envelope)
        else:
            self.mailbox.offer(envelope)
            envelope.handler = self
        self._wheel.add(envelope, envelope.deadline)
        envelope.reserved_tokens = self._rates.take(envelope.request)
        self._picked += 1

    def interrupt(self, envelope: Envelope) -> None:
        """Take an envelope that waits out of the mailbox."""
        self.mailbox.withdraw(envelope)

    def status(self, now: float, all_picks: int) -> ActorStatus:
        """A snapshot."""
        left = self._closed_until - now
        reason = None if self.state is ActorState.SERVING else self.state.value
        return ActorStatus(
            name=self.name,
            type=self.config.type,
            state=self.state,
            mailbox=self.mailbox.status(now),
            in_flight=len(self._serving),
            workers=self._workers,
            ejected_until=left if left > 0 else None,
            reason="overloaded" if left > 0 else reason,
            weight=self.config.weight,
            share=self._picked / all_picks if all_picks else 0.0,
            picked=self._picked,
            completed=self._completed,
            failed={error_class.value: count for error_class, count in self._failed.items()},
            restarts=self.restarts,
        )

    @property
    def picked(self) -> int:
        """How often the dispatcher chose this actor."""
        return self._picked

    # ── life ─────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Serve until cancelled. Starts from nothing each time it is called.

        Raises:
            BaseException: Whatever escaped a worker; a bug, not a provider's failure.
        """
        # Workers start in this context: an empty one, or they would all inherit the
        # trace context and the variables of whoever happened to make the router.
        self._context = contextvars.Context()
        self._idle.clear()
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                self.state = ActorState.SERVING
                await anyio.sleep_forever()
        finally:
            self._group = None

    def stop(self, state: ActorState) -> None:
        """Say why the actor no longer serves, then answer all who wait in the mailbox.

        In this order: a request must be either refused or answered.
        """
        self.state = state
        self._group = None
        for envelope in self.mailbox.clear():
            envelope.fail(self._gone(envelope))

    def _gone(self, envelope: Envelope) -> GatewayError:
        if self.state is ActorState.STOPPED:
            return RouterClosedError("the router was closed while the request was under way")
        return envelope.crashed()

    # ── workers ──────────────────────────────────────────────────────────────────

    def _hire(self, envelope: Envelope) -> None:
        worker = Worker(envelope)
        envelope.handler = worker
        self._workers += 1
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
        finally:
            self._workers -= 1
            if worker.envelope is not None:
                worker.envelope.fail(self._gone(worker.envelope))

    async def _serve_all(self, worker: Worker) -> None:
        while True:
            envelope = worker.envelope or self.mailbox.take()
            if envelope is None:
                if len(self._idle) >= IDLE_WORKERS:
                    return
                await self._park(worker)
                continue
            worker.envelope = envelope
            envelope.handler = worker
            if envelope.open:
                self._serving.add(envelope)
                try:
                    await self._serve(envelope)
                finally:
                    self._serving.discard(envelope)
            worker.envelope = None
            if worker.scope.cancel_called:
                # The limit came in the same turn as the answer: take a fresh scope.
                await anyio.lowlevel.checkpoint()

    async def _park(self, worker: Worker) -> None:
        worker.wakeup = anyio.Event()
        self._idle.append(worker)
        try:
            await worker.wakeup.wait()
        finally:
            worker.wakeup = None
            if worker in self._idle:
                self._idle.remove(worker)

    # ── one envelope ─────────────────────────────────────────────────────────────

    async def _serve(self, envelope: Envelope) -> None:
        usage = None
        try:
            if envelope.prior_failure is not None:
                response = await self._repeat(envelope, envelope.prior_failure)
            else:
                try:
                    response = await self._attempt(envelope)
                except ProviderError as error:
                    if not self._may_repeat(envelope, error):
                        raise
                    response = await self._repeat(envelope, error)
            usage = response.usage if self._rates.__class__ is not Unlimited else None
        except GatewayError as error:
            envelope.fail(error)
        except anyio.get_cancelled_exc_class():
            # The limit that passed, the caller who left, or the actor that stops.
            envelope.fail(envelope.expiry or self._gone(envelope))
            raise
        except BaseException:
            envelope.fail(envelope.crashed())
            raise
        finally:
            self._rates.settle(envelope.reserved_tokens, usage)

    def _may_repeat(self, envelope: Envelope, error: ProviderError) -> bool:
        return envelope.repeats > 0 and may_repeat_here(
            error, repeat_maybe_accepted=envelope.repeat_maybe_accepted
        )

    async def _repeat(self, envelope: Envelope, failure: GatewayError) -> Response | ResponseStream:
        first: list[GatewayError] = [failure]

        async def attempt() -> Response | ResponseStream:
            if first:
                raise first.pop()
            envelope.number += 1
            return await self._attempt(envelope)

        envelope.pause()
        return await repeating(
            repeats=envelope.repeats,
            deadline=envelope.deadline,
            repeat_maybe_accepted=envelope.repeat_maybe_accepted,
            clock=self._clock,
            rng=self._rng,
        )(attempt)

    async def _attempt(self, envelope: Envelope) -> Response | ResponseStream:
        """Make one call upstream, under its limits and a span."""
        envelope.begin(self._clock())
        span = None
        if envelope.context is not None:
            span, envelope.trace_headers = self._telemetry.start_attempt(
                self.config, envelope, envelope.context
            )
        failure: BaseException | None = None
        try:
            if envelope.streamed:
                stream = await self._stream(envelope)
                failure = stream.failure
                return stream
            response = await self.provider.send(envelope)
        except GatewayError as error:
            failure = error
            self._note_failure(envelope, error)
            raise
        except anyio.get_cancelled_exc_class():
            failure = envelope.expiry
            self._note_failure(envelope, envelope.expiry)
            raise
        except (Exception, SystemExit) as error:
            # The one border at which whatever an adapter raises becomes an outcome.
            failure = self._adapter_failed(error)
            self._note_failure(envelope, failure)
            raise failure from error
        finally:
            if span is not None:
                self._telemetry.end_attempt(span, failure)
        self._completed += 1
        envelope.answer(response, self._clock())
        return response

    def _adapter_failed(self, error: BaseException) -> AdapterError:
        msg = f"the adapter of provider {self.name!r} raised {type(error).__name__}"
        return AdapterError(msg, provider=self.name)

    def _note_failure(self, envelope: Envelope, error: GatewayError | None) -> None:
        now = self._clock()
        if error is not None:
            envelope.failed(error, now)
        if isinstance(error, ProviderError):
            self._failed[error.error_class] = self._failed.get(error.error_class, 0) + 1
        if isinstance(error, OverloadedError) and error.retry_after:
            self._closed_until = max(self._closed_until, now + error.retry_after)

    # ── streams ──────────────────────────────────────────────────────────────────

    async def _stream(self, envelope: Envelope) -> ResponseStream:
        """Open a stream, hand it over at its first useful event, and stay until it ends."""
        source = self.provider.stream(envelope)
        try:
            held, ended = await self._until_commit(source)
            if ended and not held:
                msg = f"the stream from provider {self.name!r} ended without any event"
                raise BrokenError(msg, provider=self.name)
            now = self._clock()
            stream = ResponseStream(
                source,
                held,
                ended=ended,
                provider=self.name,
                idle=envelope.timeouts.idle,
                deadline=envelope.deadline,
                wheel=self._wheel,
                clock=self._clock,
            )
            if not envelope.answer(stream, now):
                stream.release()
            self._streams.add(stream)
            try:
                await self._until_released(stream)
            finally:
                self._streams.discard(stream)
        finally:
            with anyio.CancelScope(shield=True) as closing:
                closing.deadline = anyio.current_time() + CLOSE_GRACE
                await source.aclose()
        if stream.failure is None:
            self._completed += 1
        else:
            after = ErrorClass.AFTER_COMMIT
            self._failed[after] = self._failed.get(after, 0) + 1
        return stream

    async def _until_commit(self, source: ChunkSource) -> tuple[list[Chunk], bool]:
        """Read up to the first chunk that commits; True if the stream ended before it."""
        held: list[Chunk] = []
        size = 0
        while True:
            try:
                chunk = await source.__anext__()
            except StopAsyncIteration:
                return held, True
            held.append(chunk)
            size += len(chunk.data)
            if chunk.commits or len(held) >= HELD_CHUNKS or size >= HELD_BYTES:
                return held, False

    async def _until_released(self, stream: ResponseStream) -> None:
        try:
            await stream.released.wait()
        except anyio.get_cancelled_exc_class():
            # The actor stops under the caller: let the caller's read end first, because
            # a source must not be closed while it is read.
            stream.cut("the gateway is closing")
            with anyio.move_on_after(CLOSE_GRACE, shield=True):
                await stream.released.wait()
            raise
