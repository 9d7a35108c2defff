"""The SERVER span of a request, with the names of the HTTP semantic conventions (stable)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from adapters.frontdoor.failure import Failure
from engine.ledger import Outcome
from engine.telemetry import INSTRUMENTATION, Telemetry

_PROPAGATOR = TraceContextTextMapPropagator()
_SERVER_ERROR = 500


class ServerSpans:
    """Makes the SERVER spans; None instead of a span while nobody records.

    Args:
        tracer_provider: Where spans go; None takes the process's provider.
    """

    __slots__ = ("_telemetry", "_tracer")

    def __init__(self, tracer_provider: trace.TracerProvider | None = None) -> None:
        self._telemetry = Telemetry(tracer_provider)
        self._tracer = trace.get_tracer(INSTRUMENTATION, tracer_provider=tracer_provider)

    def start(
        self,
        scope: Mapping[str, Any],
        headers: Mapping[bytes, bytes],
        *,
        route: str | None,
        now: float,
    ) -> Span | None:
        """Start the span of one request; it is never made current.

        Args:
            scope: The request's ASGI scope.
            headers: Its header fields; `traceparent` makes the span a child of the caller's.
            route: The matched route's pattern, or None if there is none.
            now: The current instant, monotonic seconds.
        """
        if not self._telemetry.recording(now):
            return None
        method: str = scope["method"]
        attributes = {
            "http.request.method": method,
            "url.path": scope["path"],
            "url.scheme": scope["scheme"],
        }
        if route is not None:
            attributes["http.route"] = route
        return self._telemetry.guard.start(
            self._tracer,
            method if route is None else f"{method} {route}",
            _parent(headers),
            SpanKind.SERVER,
            attributes,
        )

    def end(self, span: Span, status: int | None, failure: Failure | None) -> None:
        """End the span of one request.

        Args:
            span: What `start` gave.
            status: HTTP status that was sent; None if the caller left before.
            failure: What went wrong, if anything did.
        """
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        # A 4xx is the caller's mistake and leaves the span's status unset; a stream that
        # broke after its 200 is an error although its status does not say so.
        if failure is not None and (
            failure.status >= _SERVER_ERROR or failure.outcome is Outcome.TRUNCATED
        ):
            span.set_attribute("error.type", failure.kind)
            span.set_status(Status(StatusCode.ERROR))
        self._telemetry.guard.end(span)


def _parent(headers: Mapping[bytes, bytes]) -> Context:
    """The caller's trace: ids only, no baggage and no state of the caller's tools."""
    around = trace.get_current_span()
    if around.get_span_context().is_valid:
        # Mounted in an application that is traced itself: its span comes first.
        return trace.set_span_in_context(around, Context())
    traceparent = headers.get(b"traceparent")
    if traceparent is None:
        return Context()
    carrier = {"traceparent": traceparent.decode("latin-1")}
    return _PROPAGATOR.extract(carrier, Context())
