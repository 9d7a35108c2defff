"""Spans and metrics through the OpenTelemetry API; nothing is built when nobody records.

Names are those of the GenAI semantic conventions v1.41, the last published release.
The request's span stands for the logical operation with all its attempts; each attempt
is a child. No span is ever made current: contexts are passed by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from engine.attempt import Attempt
from engine.config import ProviderConfig
from engine.errors import GatewayError, ProviderError
from engine.operations import Operation, Request, Response, Usage

if TYPE_CHECKING:
    from engine.status import RouterStatus

INSTRUMENTATION = "sre_inference_gateway"

OPERATION_NAMES = {
    Operation.CHAT: "chat",
    Operation.COMPLETIONS: "text_completion",
    Operation.EMBEDDINGS: "embeddings",
}

_REQUEST_ATTRIBUTES = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}


class Telemetry:
    """Makes the spans of one router.

    Args:
        tracer_provider: Where spans go; None takes the process's provider, whenever it
            is installed.
    """

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._provider = tracer_provider
        self._tracer = trace.get_tracer(INSTRUMENTATION, tracer_provider=tracer_provider)
        self._recording = False
        self._look_again_at = float("-inf")

    def recording(self, now: float) -> bool:
        """Whether anybody records spans; an SDK installed later is noticed within a second.

        Args:
            now: The current instant. Asking OpenTelemetry costs 3 µs, so it is not done
                for each request.
        """
        if now >= self._look_again_at:
            provider = self._provider or trace.get_tracer_provider()
            self._recording = not isinstance(
                provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
            )
            self._look_again_at = now + 1.0
        return self._recording

    def start_request(self, request: Request, request_id: str, context: Context | None) -> Span:
        """Start the span of a request: `chat gpt-5-mini`."""
        name = OPERATION_NAMES.get(request.operation, request.operation.value)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": name,
            "gen_ai.request.model": request.model,
            "gateway.request.id": request_id,
        }
        if request.streamed:
            attributes["gen_ai.request.stream"] = True
        body = request.body
        for field, attribute in _REQUEST_ATTRIBUTES.items():
            value = body.get(field)
            if type(value) in (int, float):
                attributes[attribute] = value
        return self._tracer.start_span(
            f"{name} {request.model}", context, SpanKind.CLIENT, attributes=attributes
        )

    @staticmethod
    def end_request(
        span: Span,
        *,
        outcome: str,
        attempts: int,
        provider: str | None,
        error: BaseException | None,
        response: Response | None,
        usage: Usage | None,
    ) -> None:
        """End the span of a request with what came of it."""
        attributes: dict[str, Any] = {"gateway.outcome": outcome, "gateway.attempts": attempts}
        if provider:
            attributes["gen_ai.provider.name"] = provider
        if response is not None:
            attributes.update(_answer_attributes(response))
        if usage is not None:
            attributes["gen_ai.usage.input_tokens"] = usage.input_tokens
            attributes["gen_ai.usage.output_tokens"] = usage.output_tokens
        span.set_attributes(attributes)
        _end(span, error)

    def start_attempt(
        self, config: ProviderConfig, attempt: Attempt, context: Context | None
    ) -> tuple[Span, Mapping[str, str]]:
        """Start the span of one attempt; also the headers that carry it upstream."""
        span = self._tracer.start_span(
            f"attempt {config.name}",
            context,
            SpanKind.CLIENT,
            attributes={
                "gateway.provider.name": config.name,
                "gateway.provider.type": config.type,
                "gen_ai.request.model": attempt.model,
                "gateway.attempt.number": attempt.number,
            },
        )
        return span, trace_headers(span)

    @staticmethod
    def end_attempt(span: Span, error: BaseException | None) -> None:
        """End the span of one attempt."""
        if isinstance(error, ProviderError):
            span.set_attribute("gateway.replay", error.replay.value)
            if error.upstream_status is not None:
                span.set_attribute("http.response.status_code", error.upstream_status)
        _end(span, error)


def _answer_attributes(response: Response) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    answer_id, model = response.get("id"), response.model
    if isinstance(answer_id, str):
        attributes["gen_ai.response.id"] = answer_id
    if isinstance(model, str):
        attributes["gen_ai.response.model"] = model
    choices = response.get("choices")
    if isinstance(choices, list):
        reasons = [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
        attributes["gen_ai.response.finish_reasons"] = [str(r or "error") for r in reasons]
    return attributes


def error_type(error: BaseException) -> str:
    """A word of low cardinality for an error: its class of failure, code or class name."""
    if isinstance(error, ProviderError):
        return error.error_class.value
    if isinstance(error, GatewayError) and error.code:
        return error.code
    return type(error).__name__


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        # The class and never the text: an upstream's words may hold what a caller wrote.
        span.set_attribute("error.type", error_type(error))
        span.set_status(Status(StatusCode.ERROR))
    span.end()


def trace_headers(span: Span) -> Mapping[str, str]:
    """The W3C `traceparent` header that makes the far side's spans children of `span`."""
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    flags = int(context.trace_flags)
    return {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"}


def observe_router(
    status: Callable[[], RouterStatus], meter_provider: metrics.MeterProvider | None = None
) -> None:
    """Export a router's counters as observable instruments, read only when collected.

    `gateway.conservation.error` is 0 unless a request was lost or settled twice.
    """
    meter = metrics.get_meter(INSTRUMENTATION, meter_provider=meter_provider)

    def requests(_: CallbackOptions) -> Iterable[Observation]:
        for outcome, count in status().ledger.outcomes.items():
            yield Observation(count, {"gateway.outcome": outcome.value})

    def in_flight(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(status().ledger.in_flight)

    def conservation(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(status().ledger.conservation_error)

    def depth(_: CallbackOptions) -> Iterable[Observation]:
        for actor in status().actors:
            yield Observation(actor.mailbox.depth, {"gateway.provider.name": actor.name})

    def picks(_: CallbackOptions) -> Iterable[Observation]:
        for actor in status().actors:
            yield Observation(actor.picked, {"gateway.provider.name": actor.name})

    meter.create_observable_counter("gateway.requests", [requests], "{request}")
    meter.create_observable_up_down_counter("gateway.requests.in_flight", [in_flight], "{request}")
    meter.create_observable_gauge("gateway.conservation.error", [conservation], "{request}")
    meter.create_observable_up_down_counter("gateway.mailbox.depth", [depth], "{request}")
    meter.create_observable_counter("gateway.provider.picks", [picks], "{request}")
