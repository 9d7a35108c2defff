"""Calls through the engine: the actor hop, whole requests, and streams."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
import anyio.lowlevel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.instant import InstantProvider, chat_request, instant_config, instant_registry
from benchmarks.spread import Spread
from engine.actor import ProviderActor
from engine.attempt import Attempt
from engine.envelope import Envelope
from engine.event_loop import native_clock, native_event
from engine.resilience.deadline import DeadlineWheel
from engine.router import Router
from engine.status import ActorState
from engine.telemetry import Telemetry


class DroppingExporter(SpanExporter):
    """Counts spans and forgets them.

    Attributes:
        spans: How many came.
    """

    def __init__(self) -> None:
        self.spans = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Count a batch."""
        self.spans += len(spans)
        return SpanExportResult.SUCCESS


@dataclass(frozen=True, slots=True)
class CallCost:
    """CPU seconds of one call, and the spans that a call gave to the exporter."""

    seconds: Spread
    spans: float


@contextmanager
def tracing(recorded: bool) -> Iterator[tuple[TracerProvider | None, DroppingExporter]]:
    """A real SDK with a batch processor, or nothing at all."""
    exporter = DroppingExporter()
    if not recorded:
        yield None, exporter
        return
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield provider, exporter
    finally:
        provider.shutdown()


async def complete_cost(
    providers: int, *, callers: int, recorded: bool, calls: int, rounds: int
) -> CallCost:
    """`router.complete()` over providers that answer at once."""
    request = chat_request()
    with tracing(recorded) as (tracer_provider, exporter):
        async with _router(providers, tracer_provider) as router:

            async def call() -> object:
                return await router.complete(request)

            seconds, made = await _rounds(call, calls=calls, callers=callers, rounds=rounds)
        if tracer_provider is not None:
            tracer_provider.force_flush()
        return CallCost(seconds, exporter.spans / made)


async def stream_cost(*, callers: int, recorded: bool, calls: int, rounds: int) -> CallCost:
    """`router.stream()` read to its end, over two providers that stream at once."""
    request = chat_request().as_streamed(True)
    with tracing(recorded) as (tracer_provider, exporter):
        async with _router(2, tracer_provider) as router:

            async def call() -> object:
                chunks = 0
                async with router.stream(request) as stream:
                    async for _ in stream:
                        chunks += 1
                return chunks

            seconds, made = await _rounds(call, calls=calls, callers=callers, rounds=rounds)
        if tracer_provider is not None:
            tracer_provider.force_flush()
        return CallCost(seconds, exporter.spans / made)


async def provider_cost(*, calls: int, rounds: int) -> CallCost:
    """The provider asked directly: the part of a call that is not the engine."""
    config = instant_config(1).providers[0]
    provider, request = InstantProvider(config), chat_request()

    async def call() -> object:
        return await provider.send(
            Attempt(request, request.model, "req-1", timeouts=config.timeouts)
        )

    seconds, _ = await _rounds(call, calls=calls, callers=1, rounds=rounds)
    return CallCost(seconds, 0)


async def hop_cost(*, calls: int, rounds: int) -> CallCost:
    """An envelope to an actor and its answer back: no plan, no pick, no ledger."""
    config = instant_config(1).providers[0]
    clock, event = native_clock(), native_event()
    wheel = DeadlineWheel(clock)
    actor = ProviderActor(
        InstantProvider(config),
        clock=clock,
        rng=random.Random(1),
        wheel=wheel,
        telemetry=Telemetry(),
        event=event,
    )
    request = chat_request()

    async def call() -> object:
        now = clock()
        envelope = Envelope(
            request,
            request.model,
            "req-1",
            config=config,
            wheel=wheel,
            deadline=now + 60,
            now=now,
            event=event,
        )
        actor.offer(envelope)
        await envelope.replied.wait()
        return envelope.result

    async with anyio.create_task_group() as group:
        group.start_soon(wheel.run)
        group.start_soon(actor.run)
        while actor.state is not ActorState.SERVING:
            await anyio.lowlevel.checkpoint()
        seconds, _ = await _rounds(call, calls=calls, callers=1, rounds=rounds)
        group.cancel_scope.cancel()
    return CallCost(seconds, 0)


def _router(providers: int, tracer_provider: TracerProvider | None) -> Router:
    config = instant_config(providers)
    return Router(
        config,
        registry=instant_registry(config),
        rng=random.Random(1),
        tracer_provider=tracer_provider,
    )


async def _rounds(
    call: Callable[[], Awaitable[object]], *, calls: int, callers: int, rounds: int
) -> tuple[Spread, int]:
    """CPU seconds of one call, and how many calls were made with those that warm up."""
    each = max(1, calls // callers)
    await _cpu_seconds(call, each=each, callers=callers)
    seconds = [await _cpu_seconds(call, each=each, callers=callers) for _ in range(rounds)]
    return Spread.of(seconds), each * callers * (rounds + 1)


async def _cpu_seconds(call: Callable[[], Awaitable[object]], *, each: int, callers: int) -> float:
    """CPU seconds of one call, the whole process with all its threads counted."""

    async def caller() -> None:
        for _ in range(each):
            await call()

    begin = time.process_time()
    if callers == 1:
        await caller()
    else:
        async with anyio.create_task_group() as group:
            for _ in range(callers):
                group.start_soon(caller)
    return (time.process_time() - begin) / (each * callers)
