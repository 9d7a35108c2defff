"""The OpenTelemetry SDK: providers, batch processors and exporters.

Imported only when something is exported. Traps and rules: an exporter that hangs must not
hold anything up, so spans leave in batches from a thread, collector time-outs are short,
and nothing is stopped by `atexit`, which would wait.
"""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version
from typing import TextIO, cast
from urllib.parse import urlsplit

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

from adapters.observability.line_writer import LineWriter
from adapters.observability.start import Stoppable, Writer
from engine.config import TelemetryConfig
from engine.errors import ConfigurationError

COLLECTOR_TIMEOUT = 2.0
"""Most seconds for one export; `OTEL_EXPORTER_OTLP_TIMEOUT` may make it shorter."""

CAPACITY = 2_000
"""Spans that may wait for the console."""

DISTRIBUTION = "sre-inference-gateway"


def install_exporters(config: TelemetryConfig) -> tuple[list[Stoppable], list[Writer]]:
    """Make the providers and put them behind the OpenTelemetry API for the whole process.

    Returns:
        The providers, to be stopped at the end, and then the writers, to be finished.

    Raises:
        ConfigurationError: If the endpoint is no HTTP URL.
        ValueError: If an `OTEL_*` variable has a value that the SDK refuses.
    """
    console = ConsoleStream() if config.exporter == "console" else None
    tracer_provider, meter_provider = make_providers(config, console=console)
    trace.set_tracer_provider(tracer_provider)
    metrics.set_meter_provider(meter_provider)
    return [tracer_provider, meter_provider], [] if console is None else [console]


class ConsoleStream(io.TextIOBase):
    """A text stream in front of stderr that never blocks: see `LineWriter`.

    Not stdout: that is the request log's.
    """

    def __init__(self) -> None:
        self._writer: LineWriter[str] = LineWriter(sys.stderr, str, capacity=CAPACITY)

    def write(self, text: str) -> int:
        """Queue a text, which is dropped when too many wait."""
        self._writer.put(text)
        return len(text)

    def finish(self, timeout: float) -> bool:
        """Write what waits, at most `timeout` seconds; whether all was written."""
        return self._writer.close(timeout)


def make_providers(
    config: TelemetryConfig, *, console: TextIO | io.TextIOBase | None = None
) -> tuple[TracerProvider, MeterProvider]:
    """Make the providers of spans and metrics without installing them.

    Args:
        config: Where they go.
        console: The stream of the exporter `console`; stderr when not given.

    Raises:
        ConfigurationError: If the endpoint is no HTTP URL.
        ValueError: If an `OTEL_*` variable has a value that the SDK refuses.
    """
    span_exporter, metric_exporter = _exporters(config, console)
    resource = _resource(config)
    # Metrics first: the span processor counts its drops with them.
    meter_provider = MeterProvider(
        [PeriodicExportingMetricReader(metric_exporter)],
        resource=resource,
        shutdown_on_exit=False,
    )
    tracer_provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracer_provider.add_span_processor(BatchSpanProcessor(span_exporter))
    return tracer_provider, meter_provider


def _resource(config: TelemetryConfig) -> Resource:
    own = {"service.version": version(DISTRIBUTION)}
    if not _names_service():
        # `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over the file.
        own["service.name"] = config.service_name
    return Resource.create(own)


def _names_service() -> bool:
    attributes = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    named = any(pair.split("=")[0].strip() == "service.name" for pair in attributes.split(","))
    return bool(os.environ.get("OTEL_SERVICE_NAME")) or named


def _exporters(
    config: TelemetryConfig, console: TextIO | io.TextIOBase | None
) -> tuple[SpanExporter, MetricExporter]:
    if config.exporter == "console":
        out = cast("TextIO", console or sys.stderr)
        return ConsoleSpanExporter(out=out), ConsoleMetricExporter(out=out)
    base = None if config.endpoint is None else _checked(config.endpoint)
    return (
        OTLPSpanExporter(endpoint=_signal(base, "traces"), timeout=_timeout("TRACES")),
        OTLPMetricExporter(endpoint=_signal(base, "metrics"), timeout=_timeout("METRICS")),
    )


def _checked(endpoint: str) -> str:
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        usable = False
    if not usable:
        msg = "telemetry.endpoint must be an HTTP URL, such as http://127.0.0.1:4318"
        raise ConfigurationError(msg)
    return endpoint.rstrip("/")


def _signal(base: str | None, signal: str) -> str | None:
    """The signal's URL: the specification appends `/v1/{signal}` to a base endpoint."""
    return None if base is None else f"{base}/v1/{signal}"


def _timeout(signal: str) -> float:
    text = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_TIMEOUT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_TIMEOUT"
    )
    if not text:
        return COLLECTOR_TIMEOUT
    try:
        asked = float(text)
    except ValueError:
        msg = "OTEL_EXPORTER_OTLP_TIMEOUT must be a number"
        raise ConfigurationError(msg) from None
    return min(asked, COLLECTOR_TIMEOUT) if asked > 0 else COLLECTOR_TIMEOUT
