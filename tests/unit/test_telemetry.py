"""Names and rules of spans; whole traces are in tests/integration."""

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import INVALID_SPAN, NoOpTracerProvider
from scripted import CHAT

from engine import (
    BrokenError,
    ChatRequest,
    CompletionRequest,
    ConnectError,
    DeadlineExceededError,
    EmbeddingRequest,
    GatewayError,
    RouterClosedError,
)
from engine.operations import Request, Response
from engine.telemetry import Telemetry, error_type, trace_headers


def record(
    provider: TracerProvider,
    request: Request,
    *,
    attempts: int = 1,
    response: Response | None = None,
) -> None:
    """Record the span of one request from its start to its end."""
    telemetry = Telemetry(provider)
    span, _ = telemetry.start_request(request, None)
    telemetry.end_request(
        span,
        request,
        "id",
        outcome="completed",
        attempts=attempts,
        provider="p",
        error=None,
        response=response,
        usage=None,
    )


def recorded(spans: InMemorySpanExporter) -> dict[str, Any]:
    """The attributes of the only finished span."""
    (span,) = spans.get_finished_spans()
    return dict(span.attributes or {})


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ConnectError("x"), "connect"),
        (BrokenError("x", code="special"), "broken"),
        (DeadlineExceededError("x"), "deadline_exceeded"),
        (RouterClosedError(), "router_closed"),
        (GatewayError("x"), "GatewayError"),
        (ValueError("secret"), "ValueError"),
    ],
)
def test_error_type_is_a_word_of_low_cardinality(error: BaseException, word: str) -> None:
    """Class of failure, code, or class name; never the text."""
    assert error_type(error) == word


def test_nobody_records_without_an_sdk() -> None:
    """The API alone, and an explicit no-op provider, record nothing."""
    assert not Telemetry().recording(0.0)
    assert not Telemetry(NoOpTracerProvider()).recording(0.0)


def test_sdk_is_noticed_within_a_second(
    tracer_provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An SDK that is installed while the router runs is found, without a look per request."""
    telemetry = Telemetry()
    assert not telemetry.recording(100.0)
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: tracer_provider)
    assert not telemetry.recording(100.5)
    assert telemetry.recording(101.0)


@pytest.mark.parametrize(
    ("request_type", "fields", "name"),
    [
        (ChatRequest, {"messages": []}, "chat m"),
        (CompletionRequest, {"prompt": "x"}, "text_completion m"),
        (EmbeddingRequest, {"input": "x"}, "embeddings m"),
    ],
)
def test_span_is_named_by_operation_and_model(
    request_type: type[Request],
    fields: dict[str, object],
    name: str,
    spans: InMemorySpanExporter,
    tracer_provider: TracerProvider,
) -> None:
    """Span names are those of the GenAI conventions."""
    record(tracer_provider, request_type("m", **fields))
    (span,) = spans.get_finished_spans()
    assert span.name == name
    assert span.attributes is not None
    assert span.attributes["gen_ai.operation.name"] == name.split(maxsplit=1)[0]


def test_odd_parameters_are_left_out(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """Only numbers become attributes; a caller's text never does."""
    body = {**CHAT, "temperature": "hot", "max_tokens": True, "seed": None, "top_p": 1, "user": "u"}
    record(tracer_provider, ChatRequest.from_body(body))
    (span,) = spans.get_finished_spans()
    found = {key for key in span.attributes or {} if key.startswith("gen_ai.request")}
    assert found == {"gen_ai.request.model", "gen_ai.request.top_p"}


def test_what_is_as_expected_is_left_out(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """One attempt, the model that was asked for, and a natural end need no attributes."""
    body = {"model": "m", "choices": [{"finish_reason": "stop"}]}
    record(tracer_provider, ChatRequest("m", []), response=Response(body))
    assert recorded(spans) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.provider.name": "p",
        "gateway.request.id": "id",
        "gateway.outcome": "completed",
    }


def test_what_differs_is_written_down(
    spans: InMemorySpanExporter, tracer_provider: TracerProvider
) -> None:
    """Several attempts, another model and any other end are told, for all choices."""
    choices = [{"finish_reason": "stop"}, {"finish_reason": "length"}, {}]
    response = Response({"id": "x", "model": "m-2026", "choices": choices})
    record(tracer_provider, ChatRequest("m", []), attempts=2, response=response)
    found = recorded(spans)
    assert found["gateway.attempts"] == 2
    assert found["gen_ai.response.id"] == "x"
    assert found["gen_ai.response.model"] == "m-2026"
    assert found["gen_ai.response.finish_reasons"] == ("stop", "length", "error")


def test_span_that_is_sampled_out_is_asked_for_nothing() -> None:
    """Nothing is read from request and answer for a span that nobody keeps."""

    class Unread(Response):
        def get(self, key: str, default: Any = None) -> Any:
            raise AssertionError(key)

    record(TracerProvider(sampler=ALWAYS_OFF), ChatRequest("m", []), response=Unread({}))


def test_invalid_span_sends_no_header() -> None:
    """Without a trace there is nothing to carry upstream."""
    assert trace_headers(INVALID_SPAN) == {}
