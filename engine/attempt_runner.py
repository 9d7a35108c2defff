"""`AttemptRunner`: makes the calls of one provider, each under its limits and a span."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from engine.chunk_assembly import Assembler
from engine.envelope import Envelope
from engine.errors import (
    AdapterError,
    BrokenError,
    ConnectError,
    DeadlineExceededError,
    GatewayError,
    OverloadedError,
    ProviderError,
    Replay,
    SilentError,
)
from engine.operations import Chunk, Response
from engine.resilience.adaptive_concurrency import AdaptiveConcurrency
from engine.resilience.health import ProviderHealth
from engine.resilience.limits import RateLimits
from engine.resilience.retry import may_repeat_here, repeating
from engine.streaming import ResponseStream

if TYPE_CHECKING:
    from engine.provider import BaseProvider, ChunkSource
    from engine.resilience.deadline import DeadlineWheel
    from engine.telemetry import Telemetry

HELD_CHUNKS = 64
HELD_BYTES = 65_536
"""What may be held back of a stream before its first useful event; more than this and
the stream is committed as it is, for nothing may grow without bound."""

PATIENCE_UNKNOWN = 5.0
PATIENCE_LEAST = 1.0
"""Seconds of silence until the request's deadline that count against a provider's health:
three times what 95 % of its answers take, not less than a second, and 5 s while that is
not known."""

CLOSE_GRACE = 1.0
"""Seconds that closing an upstream stream may take; it usually takes none."""


class AttemptRunner:
    """Runs attempts at one provider, and their repeats where nobody else can serve.

    Args:
        provider: The adapter.
        health: Told how each attempt went.
        clock: The router's clock.
        rng: Source of the jitter between repeats.
        wheel: Watches the limits.
        telemetry: Makes the spans.
        rates: The provider's rate limits; a repeat counts like any other attempt.
        event: Makes an event of the running event loop.
        permit: Asked before each repeat here, with the envelope and the failure: whether
            the retry budgets allow it.
        adaptive: Told how attempts went, if the limit on concurrency follows them.
        in_flight: Attempts that run now.
    """

    def __init__(
        self,
        provider: BaseProvider,
        health: ProviderHealth,
        *,
        clock: Callable[[], float],
        rng: random.Random,
        wheel: DeadlineWheel,
        telemetry: Telemetry,
        rates: RateLimits,
        event: Callable[[], anyio.Event] = anyio.Event,
        permit: Callable[[Envelope, ProviderError], bool] = lambda _, __: True,
        adaptive: AdaptiveConcurrency | None = None,
        in_flight: Callable[[], int] = lambda: 1,
    ) -> None:
        self._provider = provider
        self._permit = permit
        self._adaptive = adaptive
        self._health = health
        self._clock = clock
        self._rng = rng
        self._wheel = wheel
        self._telemetry = telemetry
        self._rates = rates
        self._event = event
        self._in_flight = in_flight

    async def run(self, envelope: Envelope) -> Response | ResponseStream:
        """Serve an envelope; it is answered as soon as there is an answer.

        Raises:
            GatewayError: The failure of the last attempt.
        """
        if envelope.prior_failure is not None:
            return await self._repeat(envelope, envelope.prior_failure)
        try:
            return await self._attempt(envelope)
        except ProviderError as error:
            if envelope.repeats > 0 and may_repeat_here(
                error, repeat_maybe_accepted=envelope.repeat_maybe_accepted
            ):
                return await self._repeat(envelope, error)
            raise

    async def _repeat(self, envelope: Envelope, failure: GatewayError) -> Response | ResponseStream:
        first: list[GatewayError] = [failure]
        # An envelope that was offered as a repeat was counted for it when it was offered.
        counted = envelope.prior_failure is not None

        async def attempt() -> Response | ResponseStream:
            nonlocal counted
            if first:
                raise first.pop()
            if not counted:
                await self._wait_for_rate(envelope)
            counted = False
            try:
                return await self._attempt(envelope)
            except GatewayError:
                envelope.pause()
                raise

        envelope.pause()
        return await repeating(
            repeats=envelope.repeats,
            deadline=envelope.until,
            repeat_maybe_accepted=envelope.repeat_maybe_accepted,
            clock=self._clock,
            rng=self._rng,
            permit=lambda error: counted or self._permit(envelope, error),
        )(attempt)

    async def _wait_for_rate(self, envelope: Envelope) -> None:
        """Wait until the provider's rate allows a repeat, at most until the deadline."""
        while (wait := self._rates.wait_time()) > 0:  # noqa: ASYNC110 - time is what is awaited
            await anyio.sleep(wait)
        envelope.reserved_tokens += self._rates.take(envelope.request)

    async def _attempt(self, envelope: Envelope) -> Response | ResponseStream:
        """Make one call upstream, under its limits and a span."""
        now = self._clock()
        if now >= envelope.until:
            # The wheel notices it up to a tick later, and nothing may be sent by then.
            raise envelope.expired(now)
        envelope.begin(now)
        self._health.note_start(now)
        span = None
        if envelope.context is not None:
            span, envelope.trace_headers = self._telemetry.start_attempt(
                self._provider.config, envelope, envelope.context
            )
        failure: BaseException | None = None
        try:
            if envelope.streamed:
                if envelope.assembled:
                    response = await self._assemble(envelope)
                else:
                    stream = await self._stream(envelope)
                    failure = stream.failure
                    return stream
            else:
                response = _checked(await self._provider.send(envelope))
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
        except BaseException as error:
            failure = error
            raise
        finally:
            if span is not None:
                self._telemetry.end_attempt(span, failure)
        ended = self._clock()
        self._note_success(envelope, ended)
        envelope.answer(response, ended)
        return response

    def _adapter_failed(self, error: BaseException) -> AdapterError:
        msg = f"the adapter of provider {self._provider.name!r} raised {type(error).__name__}"
        return AdapterError(msg, provider=self._provider.name)

    # ── what the provider's health is told ───────────────────────────────────────

    def _note_success(self, envelope: Envelope, now: float) -> None:
        seconds = now - envelope.started_at
        # A stream showed its first sign of life at its first useful event.
        alive = None if envelope.streamed else seconds
        self._health.note_success(now, alive, probe=envelope.probe)
        envelope.probe = False
        if self._adaptive is not None:
            self._adaptive.note_success(self._in_flight(), seconds)

    def _note_failure(self, envelope: Envelope, error: GatewayError | None) -> None:
        now = self._clock()
        probe, envelope.probe = envelope.probe, False
        if error is None:
            self._health.note_nothing(now, probe=probe)
            return
        envelope.failed(error, now)
        if isinstance(error, DeadlineExceededError):
            # The caller's deadline says nothing of the provider, unless it has been silent
            # for so long that any other caller would have given it up too.
            since = envelope.last_event_at
            if since is not None:
                silent_too_long = now - since >= envelope.timeouts.idle
            else:
                silent_too_long = now - envelope.started_at >= self._patience()
            if not silent_too_long:
                self._health.note_nothing(now, probe=probe)
                return
            error = SilentError(
                "silent until the request's deadline", provider=envelope.config.name
            )
        self._health.note_failure(error, now, probe=probe)
        if self._adaptive is not None and isinstance(
            error, (OverloadedError, ConnectError, SilentError)
        ):
            self._adaptive.note_drop(now)

    def _patience(self) -> float:
        """Seconds without an answer after which silence is the provider's failure."""
        usual = self._health.quantile(0.95)
        return PATIENCE_UNKNOWN if usual is None else max(PATIENCE_LEAST, 3 * usual)

    # ── streams ──────────────────────────────────────────────────────────────────

    async def _stream(self, envelope: Envelope) -> ResponseStream:
        """Open a stream, hand it over at its first useful event, and stay until it ends."""
        source = self._provider.stream(envelope)
        try:
            held, ended = await self._until_commit(source)
            if ended and not held:
                msg = f"the stream from provider {self._provider.name!r} ended without any event"
                raise BrokenError(msg, provider=self._provider.name)
            stream = ResponseStream(
                held,
                ended=ended,
                provider=self._provider.name,
                idle=envelope.timeouts.idle,
                deadline=envelope.deadline,
                wheel=self._wheel,
                clock=self._clock,
                event=self._event,
            )
            now = self._clock()
            self._health.note_alive(now, now - envelope.started_at)
            if not envelope.answer(stream, now):
                stream.release()
            elif not ended:
                await stream.fill(source)
        finally:
            with anyio.CancelScope(shield=True) as closing:
                closing.deadline = anyio.current_time() + CLOSE_GRACE
                await source.aclose()
        if stream.failure is None:
            self._note_success(envelope, self._clock())
        else:
            self._note_cut(envelope, stream.failure)
        return stream

    def _note_cut(self, envelope: Envelope, failure: ProviderError) -> None:
        """Tell of a stream that broke; that its caller's time was over says nothing of it."""
        now = self._clock()
        probe, envelope.probe = envelope.probe, False
        if failure.__cause__ is None and now >= envelope.deadline:
            self._health.note_nothing(now, probe=probe)
        else:
            self._health.note_failure(failure, now, probe=probe)

    async def _assemble(self, envelope: Envelope) -> Response:
        """Read a stream to its end and put it together, for a caller who wants it whole.

        Raises:
            GatewayError: The failure of the stream; once something useful had come it is no
                longer marked as not accepted.
        """
        source = self._provider.stream(envelope)
        assembler = Assembler(envelope.request, provider=self._provider.name)
        first = True
        try:
            async for chunk in source:
                assembler.add(chunk)
                if first and chunk.commits:
                    first = False
                    now = self._clock()
                    self._health.note_alive(now, now - envelope.started_at)
                envelope.event_received(self._clock(), committed=not first)
        except ProviderError as error:
            if not first and error.replay is Replay.NOT_ACCEPTED:
                # Whatever the failure says of itself: there was output, and it may be billed.
                error.replay = Replay.ACCEPTED
            raise
        finally:
            with anyio.CancelScope(shield=True) as closing:
                closing.deadline = anyio.current_time() + CLOSE_GRACE
                await source.aclose()
        return assembler.response()

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


def _checked(response: Response) -> Response:
    """Refuse what is no answer here, where it is still an attempt's failure."""
    if not isinstance(response, Response):
        msg = "send() must return a Response"
        raise TypeError(msg)
    return response
