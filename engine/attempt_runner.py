"""`AttemptRunner`: makes the calls of one provider, each under its limits and a span."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from engine.envelope import Envelope
from engine.errors import AdapterError, BrokenError, GatewayError, ProviderError
from engine.operations import Chunk, Response
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
    ) -> None:
        self._provider = provider
        self._health = health
        self._clock = clock
        self._rng = rng
        self._wheel = wheel
        self._telemetry = telemetry
        self._rates = rates
        self._event = event

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
            deadline=envelope.deadline,
            repeat_maybe_accepted=envelope.repeat_maybe_accepted,
            clock=self._clock,
            rng=self._rng,
        )(attempt)

    async def _wait_for_rate(self, envelope: Envelope) -> None:
        """Wait until the provider's rate allows a repeat, at most until the deadline."""
        while (wait := self._rates.wait_time()) > 0:  # noqa: ASYNC110 - time is what is awaited
            await anyio.sleep(wait)
        envelope.reserved_tokens += self._rates.take(envelope.request)

    async def _attempt(self, envelope: Envelope) -> Response | ResponseStream:
        """Make one call upstream, under its limits and a span."""
        now = self._clock()
        if now >= envelope.deadline:
            # The wheel notices it up to a tick later, and nothing may be sent by then.
            raise envelope.expired(now)
        envelope.begin(now)
        span = None
        if envelope.context is not None:
            span, envelope.trace_headers = self._telemetry.start_attempt(
                self._provider.config, envelope, envelope.context
            )
        failure: BaseException | None = None
        try:
            if envelope.streamed:
                stream = await self._stream(envelope)
                failure = stream.failure
                return stream
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
        self._health.note_success()
        envelope.answer(response, self._clock())
        return response

    def _adapter_failed(self, error: BaseException) -> AdapterError:
        msg = f"the adapter of provider {self._provider.name!r} raised {type(error).__name__}"
        return AdapterError(msg, provider=self._provider.name)

    def _note_failure(self, envelope: Envelope, error: GatewayError | None) -> None:
        now = self._clock()
        if error is not None:
            envelope.failed(error, now)
            self._health.note_failure(error, now)

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
            if not envelope.answer(stream, self._clock()):
                stream.release()
            elif not ended:
                await stream.fill(source)
        finally:
            with anyio.CancelScope(shield=True) as closing:
                closing.deadline = anyio.current_time() + CLOSE_GRACE
                await source.aclose()
        if stream.failure is None:
            self._health.note_success()
        else:
            self._health.note_failure(stream.failure, self._clock())
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


def _checked(response: Response) -> Response:
    """Refuse what is no answer here, where it is still an attempt's failure."""
    if not isinstance(response, Response):
        msg = "send() must return a Response"
        raise TypeError(msg)
    return response
