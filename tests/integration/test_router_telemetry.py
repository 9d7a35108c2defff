"""Spans and metrics of a router, as an exporter sees them."""

from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from scripted import (
    CHAT,
    Events,
    Hang,
    Ok,
    ScriptedProvider,
    make_router,
    until,
    usage_chunk,
)

from engine import (
    ActorCrashedError,
    ConnectError,
    ModelNotFoundError,
    OverloadedError,
    StreamTruncatedError,
)


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """Finished spans; their names must differ."""
    finished: Sequence[ReadableSpan] = spans.get_finished_spans()
    found = {span.name: span for span in finished}
    assert len(found) == len(finished)
    return found


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """A span's attributes as a dictionary."""
    return dict(span.attributes or {})


async def test_success_records_two_spans(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """A request and its attempt, parent and child, with the names of the conventions."""
    provider = ScriptedProvider("a", Ok(tokens=(3, 5)))
    models = [{"name": "chat", "targets": [{"provider": "a", "model": "real"}]}]
    body = {**CHAT, "model": "chat", "temperature": 0.5, "max_tokens": 9, "seed": "no number"}
    async with make_router(provider, models=models, tracer_provider=tracer_provider) as router:
        await router.complete(body, request_id="my-id")
    found = by_name(spans)
    request, attempt = found["chat chat"], found["attempt a"]
    assert request.kind is SpanKind.CLIENT
    assert request.parent is None
    assert attributes(request) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "chat",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.provider.name": "a",
        "gen_ai.response.id": "answer-1",
        "gen_ai.response.model": "real-model",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "gateway.request.id": "my-id",
        "gateway.outcome": "completed",
    }
    assert request.status.status_code is StatusCode.UNSET
    assert attempt.parent is not None
    assert request.context is not None
    assert attempt.parent.span_id == request.context.span_id
    assert attributes(attempt) == {"gen_ai.request.model": "real"}


async def test_attempt_says_nothing_twice(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """A first attempt that succeeds with the caller's own model name has no attributes."""
    async with make_router(ScriptedProvider("a"), tracer_provider=tracer_provider) as router:
        await router.complete(CHAT)
    assert attributes(by_name(spans)["attempt a"]) == {}


async def test_no_trace_header_goes_upstream_by_default(tracer_provider: TracerProvider) -> None:
    """A provider learns nothing of the caller's trace unless it is configured so."""
    provider = ScriptedProvider()
    async with make_router(provider, tracer_provider=tracer_provider) as router:
        await router.complete(CHAT)
    assert provider.calls[0].trace_headers == {}


async def test_attempt_carries_its_span_upstream(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """With `telemetry.propagate`, `traceparent` names the attempt's span."""
    provider = ScriptedProvider()
    async with make_router(
        provider, tracer_provider=tracer_provider, telemetry={"propagate": True}
    ) as router:
        await router.complete(CHAT)
    context = by_name(spans)["attempt a"].context
    assert context is not None
    assert provider.calls[0].trace_headers == {
        "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-"
        f"{context.trace_flags:02x}"
    }


@pytest.mark.parametrize("given", [True, False], ids=["given", "current"])
async def test_callers_trace_is_the_parent(
    given: bool, spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """The request's span is a child of the caller's, given by hand or current."""
    tracer = tracer_provider.get_tracer("caller")
    provider = ScriptedProvider()
    async with make_router(provider, tracer_provider=tracer_provider) as router:
        span = tracer.start_span("caller")
        context = trace.set_span_in_context(span)
        if given:
            await router.complete(CHAT, context=context)
        else:
            token = otel_context.attach(context)
            await router.complete(CHAT)
            async with router.stream(CHAT) as stream:
                await anext(stream)
            otel_context.detach(token)
        span.end()
    requests = [s for s in spans.get_finished_spans() if s.name == "chat m"]
    assert len(requests) == (1 if given else 2)
    for request in requests:
        assert request.parent is not None
        assert request.parent.span_id == span.get_span_context().span_id


async def test_each_attempt_has_a_span_of_its_own(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """Failed attempts are spans with error type, replay mark and status; all share the parent."""
    busy = OverloadedError("busy: secret text", upstream_status=429)
    bad = ScriptedProvider("bad", then=busy, weight=1e6)
    good = ScriptedProvider("good", weight=1e-3)
    async with make_router(bad, good, tracer_provider=tracer_provider) as router:
        await router.complete(CHAT)
    found = by_name(spans)
    failed, served, request = found["attempt bad"], found["attempt good"], found["chat m"]
    assert attributes(failed)["gateway.provider.name"] == "bad"
    assert attributes(failed)["error.type"] == "overloaded"
    assert attributes(failed)["gateway.replay"] == "not_accepted"
    assert attributes(failed)["http.response.status_code"] == 429
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes(served)["gateway.attempt.number"] == 2
    assert "error.type" not in attributes(served)
    assert attributes(request)["gateway.attempts"] == 2
    assert attributes(request)["gen_ai.provider.name"] == "good"
    assert request.context is not None
    for attempt in (failed, served):
        assert attempt.parent is not None
        assert attempt.parent.span_id == request.context.span_id
    assert all("secret" not in span.to_json() for span in spans.get_finished_spans())


async def test_failure_is_on_the_requests_span(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """A failed request's span has the outcome, the error's class, and status error."""
    provider = ScriptedProvider("a", then=ConnectError, max_retries=0)
    async with make_router(provider, tracer_provider=tracer_provider) as router:
        with pytest.raises(ConnectError):
            await router.complete(CHAT)
    request = by_name(spans)["chat m"]
    assert attributes(request)["gateway.outcome"] == "failed"
    assert attributes(request)["error.type"] == "connect"
    assert request.status.status_code is StatusCode.ERROR
    assert request.status.description is None


async def test_cancelled_request_ends_both_spans_once(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """When the caller leaves, the request and its attempt end, and say that it was cancelled."""
    provider = ScriptedProvider("a", then=Hang())
    async with make_router(provider, tracer_provider=tracer_provider) as router:
        with anyio.move_on_after(0.02):
            await router.complete(CHAT)
        await until(lambda: len(spans.get_finished_spans()) == 2)
    found = by_name(spans)
    assert attributes(found["chat m"])["gateway.outcome"] == "cancelled"
    assert "error.type" in attributes(found["chat m"])
    assert found["attempt a"].status.status_code is not StatusCode.OK


async def test_stream_records_its_whole_length(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """Both spans of a stream end when it ends, with its usage."""
    provider = ScriptedProvider("a", Events("one", "two", usage_chunk(7, 2)))
    async with make_router(provider, tracer_provider=tracer_provider) as router:
        async with router.stream(CHAT) as stream:
            await anext(stream)
            assert "chat m" not in by_name(spans)
            async for _ in stream:
                pass
        await until(lambda: len(spans.get_finished_spans()) == 2)
    request = by_name(spans)["chat m"]
    assert attributes(request)["gen_ai.request.stream"] is True
    assert attributes(request)["gateway.outcome"] == "completed"
    assert attributes(request)["gen_ai.usage.output_tokens"] == 2
    assert attributes(request)["gen_ai.provider.name"] == "a"


@pytest.mark.parametrize(
    ("script", "outcome"),
    [(Events("one", ConnectError("gone")), "truncated"), (Events("one", Hang()), "cancelled")],
    ids=["truncated", "left"],
)
async def test_stream_that_ends_badly_ends_both_spans(
    script: Events, outcome: str, spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """Truncated and abandoned streams end their spans once, with the outcome."""
    provider = ScriptedProvider("a", script)
    async with make_router(provider, tracer_provider=tracer_provider) as router:
        async with router.stream(CHAT) as stream:
            await anext(stream)
            if outcome == "truncated":
                with pytest.raises(StreamTruncatedError):
                    await anext(stream)
        await until(lambda: len(spans.get_finished_spans()) == 2)
    found = by_name(spans)
    assert attributes(found["chat m"])["gateway.outcome"] == outcome
    if outcome == "truncated":
        assert attributes(found["chat m"])["error.type"] == "after_commit"
        assert attributes(found["attempt a"])["error.type"] == "after_commit"


async def test_crash_is_on_the_attempts_span(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """An attempt that took its actor down is no success."""

    class Crash(BaseException):
        pass

    provider = ScriptedProvider("a", Crash)
    async with make_router(provider, tracer_provider=tracer_provider) as router:
        with pytest.raises(ActorCrashedError):
            await router.complete(CHAT)
    found = by_name(spans)
    assert attributes(found["attempt a"])["error.type"] == "Crash"
    assert found["attempt a"].status.status_code is StatusCode.ERROR
    assert attributes(found["chat m"])["error.type"] == "broken"


async def test_queued_request_that_was_never_sent_has_no_attempt(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """A request that leaves the mailbox unserved counts no attempt."""
    provider = ScriptedProvider("a", Hang(), limits={"concurrency": 1})
    async with (
        make_router(provider, tracer_provider=tracer_provider) as router,
        anyio.create_task_group() as group,
    ):
        group.start_soon(router.complete, CHAT)
        await until(lambda: provider.running == 1)
        with anyio.move_on_after(0.02):
            await router.complete(CHAT)
        (request,) = spans.get_finished_spans()
        assert attributes(request)["gateway.attempts"] == 0
        group.cancel_scope.cancel()


async def test_unknown_model_makes_no_span(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """A request that was refused before a plan was found records nothing."""
    models = [{"name": "x", "targets": [{"provider": "a"}]}]
    async with make_router(ScriptedProvider(), models=models, tracer_provider=tracer_provider) as r:
        with pytest.raises(ModelNotFoundError):
            await r.complete(CHAT)
    assert spans.get_finished_spans() == ()


async def test_nothing_is_built_when_nobody_records() -> None:
    """Without an SDK no span is made and no trace header is sent."""
    provider = ScriptedProvider()
    async with make_router(provider) as router:
        await router.complete(CHAT)
    assert provider.calls[0].trace_headers == {}
    assert provider.calls[0].attempt.context is None  # type: ignore[attr-defined]
