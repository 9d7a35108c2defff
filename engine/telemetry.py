"""Spans through the OpenTelemetry API; nothing is built when nobody records.

Names are those of the GenAI semantic conventions v1.41, the last published release.
The request's span stands for the logical operation with all its attempts; each attempt
is a child. No span is ever made current: contexts are passed by hand.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from engine.attempt import NO_HEADERS, Attempt
from engine.config import ProviderConfig
from engine.errors import GatewayError, ProviderError
from engine.operations import Operation, Request, Response, Usage

logger = logging.getLogger("engine.telemetry")

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

_FAILED = Status(StatusCode.ERROR)


class SpanGuard:
    """The border to whoever records spans: what is raised there touches no request.

    Attributes:
        failures: How often something was raised.
    """

    __slots__ = ("failures",)

    def __init__(self) -> None:
        self.failures = 0

    def start(
        self,
        tracer: trace.Tracer,
        name: str,
        context: Context | None,
        kind: SpanKind,
        attributes: Mapping[str, Any] | None = None,
    ) -> Span:
        """Start a span, or get one that records nothing."""
        try:
            return tracer.start_span(name, context, kind, attributes)
        except Exception as error:  # noqa: BLE001 - the border: a processor may raise anything
            self._note(error)
            return trace.INVALID_SPAN

    def end(self, span: Span) -> None:
        """End a span."""
        try:
            span.end()
        except Exception as error:  # noqa: BLE001 - the border: a processor may raise anything
            self._note(error)

    def _note(self, error: Exception) -> None:
        self.failures += 1
        # Each time that they have doubled: it may happen six times for each request.
        if self.failures.bit_count() == 1:
            logger.warning(
                "recording spans has failed %d times: %s", self.failures, type(error).__name__
            )


class Telemetry:
    """Makes the spans of one router.

    What a span says is worked out and handed over once, at its end: in the SDK each
    hand-over has a price, and a span that a sampler leaves out is asked for nothing.
    What would only say again what stands elsewhere in the trace is left out.

    Args:
        tracer_provider: Where spans go; None takes the process's provider, whenever it
            is installed.
        propagate: Whether attempts carry their trace context to the provider.

    Attributes:
        guard: Stands between requests and whoever records spans.
    """

    def __init__(
        self, tracer_provider: trace.TracerProvider | None = None, *, propagate: bool = False
    ) -> None:
        self.guard = SpanGuard()
        self._provider = tracer_provider
        self._propagate = propagate
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

    def start_request(self, request: Request, context: Context | None) -> tuple[Span, Context]:
        """Start the span of a request, `chat gpt-5-mini`; also the context of its attempts.

        Samplers see the name, which holds operation and model, and no attributes.

        Args:
            request: What is asked for.
            context: The caller's trace context; None takes the current one.
        """
        if context is None:
            # Looked up once here, or else several times by the SDK.
            context = get_current()
        name = f"{OPERATION_NAMES[request.operation]} {request.model}"
        span = self.guard.start(self._tracer, name, context, SpanKind.CLIENT)
        return span, trace.set_span_in_context(span, context)

    def end_request(
        self,
        span: Span,
        request: Request,
        request_id: str,
        *,
        outcome: str,
        attempts: int,
        fallbacks: tuple[str, ...] = (),
        provider: str | None,
        error: BaseException | None,
        response: Response | None,
        usage: Usage | None,
    ) -> None:
        """End the span of a request with what was asked and what came of it.

        One attempt, answers of the model that was asked for, and choices that came to their
        natural end (`stop`) are the rule, and only what differs from it is written down.
        """
        if not span.is_recording():
            self.guard.end(span)
            return
        attributes = _question_attributes(request, request_id)
        attributes["gateway.outcome"] = outcome
        if attempts != 1:
            attributes["gateway.attempts"] = attempts
        if fallbacks:
            attributes["gateway.fallbacks"] = fallbacks
        if provider:
            attributes["gen_ai.provider.name"] = provider
        if response is not None:
            _add_answer(attributes, response, request.model)
        if usage is not None:
            attributes["gen_ai.usage.input_tokens"] = usage.input_tokens
            attributes["gen_ai.usage.output_tokens"] = usage.output_tokens
        if error is not None:
            attributes["error.type"] = error_type(error)
            span.set_status(_FAILED)
        span.set_attributes(attributes)
        self.guard.end(span)

    def start_attempt(
        self, config: ProviderConfig, attempt: Attempt, context: Context | None
    ) -> tuple[Span, Mapping[str, str]]:
        """Start the span of one attempt; also the headers that carry it upstream, if any do.

        Its name says the provider. The number of a first attempt and a model that is called
        what the caller calls it say nothing, so the common attempt has no attributes.
        """
        attributes: dict[str, Any] = {}
        if attempt.number > 1:
            attributes["gateway.attempt.number"] = attempt.number
        if attempt.model != attempt.request.model:
            attributes["gen_ai.request.model"] = attempt.model
        name = f"attempt {config.name}"
        span = self.guard.start(self._tracer, name, context, SpanKind.CLIENT, attributes)
        return span, trace_headers(span) if self._propagate else NO_HEADERS

    def end_attempt(self, span: Span, error: BaseException | None) -> None:
        """End the span of one attempt; the attributes of a failed one name its provider too."""
        if error is not None:
            attributes: dict[str, Any] = {"error.type": error_type(error)}
            if isinstance(error, ProviderError):
                if error.provider is not None:
                    attributes["gateway.provider.name"] = error.provider
                attributes["gateway.replay"] = error.replay.value
                if error.upstream_status is not None:
                    attributes["http.response.status_code"] = error.upstream_status
            span.set_attributes(attributes)
            span.set_status(_FAILED)
        self.guard.end(span)


def _question_attributes(request: Request, request_id: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": OPERATION_NAMES[request.operation],
        "gen_ai.request.model": request.model,
        "gateway.request.id": request_id,
    }
    if request.streamed:
        attributes["gen_ai.request.stream"] = True
    body = request.body
    if not _REQUEST_ATTRIBUTES.keys().isdisjoint(body):
        for field, attribute in _REQUEST_ATTRIBUTES.items():
            value = body.get(field)
            if type(value) in (int, float):
                attributes[attribute] = value
    return attributes


def _add_answer(attributes: dict[str, Any], response: Response, asked_model: str) -> None:
    answer_id, model = response.get("id"), response.model
    if isinstance(answer_id, str):
        attributes["gen_ai.response.id"] = answer_id
    if isinstance(model, str) and model != asked_model:
        attributes["gen_ai.response.model"] = model
    choices = response.get("choices")
    if isinstance(choices, list):
        reasons = [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
        if reasons.count("stop") != len(reasons):
            attributes["gen_ai.response.finish_reasons"] = [str(r or "error") for r in reasons]


def error_type(error: BaseException) -> str:
    """A word of low cardinality for an error: its class of failure, code or class name.

    Never the text: an upstream's words may hold what a caller wrote.
    """
    if isinstance(error, ProviderError):
        return error.error_class.value
    if isinstance(error, GatewayError) and error.code:
        return error.code
    return type(error).__name__


def trace_headers(span: Span) -> Mapping[str, str]:
    """The W3C `traceparent` header that makes the far side's spans children of `span`."""
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    flags = int(context.trace_flags)
    return {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"}
