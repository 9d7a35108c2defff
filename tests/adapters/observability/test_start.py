"""Starting and stopping telemetry."""

from __future__ import annotations

import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

from adapters.observability import Observability, start_observability
from adapters.observability.exporters import COLLECTOR_TIMEOUT, make_providers
from engine.config import TelemetryConfig
from engine.errors import ConfigurationError

BOUND = 2.0


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No `OTEL_*` variable of the machine takes part, and nothing is exported on its own."""
    for name in ("ENDPOINT", "TIMEOUT", "HEADERS"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)


@pytest.fixture
def silent_collector() -> Iterator[str]:
    """A collector that accepts connections and never answers; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class Collector(HTTPServer):
    """A collector that keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append((self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector that answers."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


Started = Callable[[TelemetryConfig], tuple[TracerProvider, Observability]]


@pytest.fixture
def start() -> Iterator[Started]:
    """Make providers without putting them behind the process's API; end them afterwards."""
    made: list[Observability] = []

    def make(config: TelemetryConfig) -> tuple[TracerProvider, Observability]:
        providers = make_providers(config)
        made.append(Observability(list(providers), []))
        return providers[0], made[-1]

    yield make
    for handle in made:
        handle.shutdown(0.1)


def record_span(provider: TracerProvider) -> None:
    provider.get_tracer("test").start_span("a span").end()


def test_a_collector_that_never_answers_does_not_delay_the_end(
    silent_collector: str, start: Started
) -> None:
    """The end comes within the bound, whatever the exporter hangs on."""
    provider, handle = start(TelemetryConfig(exporter="otlp", endpoint=silent_collector))
    record_span(provider)
    begun = time.perf_counter()
    assert not handle.shutdown(0.5)
    assert time.perf_counter() - begun < BOUND


def test_spans_reach_a_collector_at_the_end(collector: Collector, start: Started) -> None:
    """What is left in the batch is sent before the end, to the signal's own path."""
    provider, handle = start(TelemetryConfig(exporter="otlp", endpoint=f"{collector.url}/"))
    record_span(provider)
    assert handle.shutdown(5)
    paths = {path for path, _, _ in collector.received}
    assert "/v1/traces" in paths
    body = next(body for path, _, body in collector.received if path == "/v1/traces")
    assert b"inference-gateway" in body
    assert b"a span" in body


def test_the_standard_variables_are_honoured(
    collector: Collector, start: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Endpoint, headers and service name come from the environment when it has them."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=inference")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "named-by-environment")
    provider, handle = start(TelemetryConfig(exporter="otlp", service_name="in-the-file"))
    record_span(provider)
    assert handle.shutdown(5)
    path, headers, body = collector.received[0]
    assert path == "/v1/traces"
    assert headers["x-team"] == "inference"
    assert b"named-by-environment" in body
    assert b"in-the-file" not in body


@pytest.mark.parametrize(("asked", "used"), [("0.5", 0.5), ("30", COLLECTOR_TIMEOUT), ("", 2.0)])
def test_a_collector_is_given_two_seconds_at_most(
    asked: str, used: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable may shorten the time-out of an export and not lengthen it."""
    from adapters.observability import exporters  # noqa: PLC0415 - its private function

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", asked)
    assert exporters._timeout("TRACES") == used


def test_a_time_out_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in a variable is a configuration error."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_TIMEOUT"):
        make_providers(TelemetryConfig(exporter="otlp"))


@pytest.mark.parametrize("endpoint", ["collector:4317", "grpc://h:1", "http://", "http://[", "x"])
def test_an_endpoint_that_is_no_url_is_told(endpoint: str) -> None:
    """The exporter speaks HTTP, and says so before anything is sent."""
    with pytest.raises(ConfigurationError, match=r"telemetry\.endpoint"):
        make_providers(TelemetryConfig(exporter="otlp", endpoint=endpoint))


def test_the_resource_names_service_and_version() -> None:
    """Spans and metrics say who sent them."""
    out = io.StringIO()
    config = TelemetryConfig(exporter="console", service_name="gateway-7")
    tracer_provider, meter_provider = make_providers(config, console=out)
    try:
        attributes = tracer_provider.resource.attributes
        assert attributes["service.name"] == "gateway-7"
        assert attributes["service.version"]
    finally:
        assert Observability([tracer_provider, meter_provider], []).shutdown(5)


def test_the_console_exporter_writes_spans_and_metrics() -> None:
    """Each span is an object with its name."""
    out = io.StringIO()
    tracer_provider, meter_provider = make_providers(
        TelemetryConfig(exporter="console"), console=out
    )
    assert isinstance(meter_provider, MeterProvider)
    record_span(tracer_provider)
    meter_provider.get_meter("test").create_counter("a.counter").add(1)
    assert Observability([tracer_provider, meter_provider], []).shutdown(5)
    assert '"name": "a span"' in out.getvalue()
    assert '"a.counter"' in out.getvalue()


class _Recorder:
    """A provider that counts how often it was stopped."""

    def __init__(self) -> None:
        self.stopped = 0

    def shutdown(self) -> None:
        self.stopped += 1


def test_a_second_shutdown_does_nothing() -> None:
    """Whoever is unsure may call it again."""
    recorder = _Recorder()
    handle = Observability([recorder], [])
    assert handle.shutdown()
    assert handle.shutdown()
    assert recorder.stopped == 1


def test_exporter_none_takes_library_warnings_off_the_loop(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Warnings go through the writer while it runs; afterwards everything is as before."""
    before = list(logging.getLogger().handlers)
    handle = start_observability(TelemetryConfig(logs="json"))
    logging.getLogger("some.library").warning("a warning")
    assert handle.shutdown(5)
    assert logging.getLogger().handlers == before
    assert json.loads(capfd.readouterr().err)["message"] == "a warning"


def in_fresh_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


def test_importing_starts_nothing() -> None:
    """Neither a provider nor the SDK, nor a thread, is there after an import."""
    code = (
        "import sys, threading, adapters.observability\n"
        "assert 'opentelemetry.sdk' not in sys.modules\n"
        "assert threading.active_count() == 1\n"
    )
    assert in_fresh_process(code).returncode == 0


@pytest.mark.parametrize(
    ("exporter", "environment"), [("none", {}), ("console", {"OTEL_SDK_DISABLED": "true"})]
)
def test_nothing_is_installed_when_nothing_is_exported(
    exporter: str, environment: dict[str, str]
) -> None:
    """Without an exporter, or with the SDK switched off, spans cost nothing."""
    code = (
        "from opentelemetry import trace\n"
        "from adapters.observability import start_observability\n"
        "from engine.config import TelemetryConfig\n"
        f"handle = start_observability(TelemetryConfig(exporter={exporter!r}))\n"
        "assert type(trace.get_tracer_provider()).__name__ == 'ProxyTracerProvider'\n"
        "assert handle.shutdown()\n"
    )
    done = in_fresh_process(code, **environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_providers_stand_behind_the_api() -> None:
    """Whoever asks the API for a tracer gets ours, and its spans come out."""
    code = (
        "from opentelemetry import trace\n"
        "from adapters.observability import start_observability\n"
        "from engine.config import TelemetryConfig\n"
        "handle = start_observability(TelemetryConfig(exporter='console'))\n"
        "trace.get_tracer('x').start_span('through the api').end()\n"
        "assert handle.shutdown()\n"
    )
    done = in_fresh_process(code)
    assert done.returncode == 0, done.stderr
    assert '"name": "through the api"' in done.stderr
    assert done.stdout == ""


def test_a_process_with_a_hung_exporter_ends(silent_collector: str) -> None:
    """Nothing at the interpreter's end waits for the collector again."""
    code = (
        "from opentelemetry import trace\n"
        "from adapters.observability import start_observability\n"
        "from engine.config import TelemetryConfig\n"
        f"config = TelemetryConfig(exporter='otlp', endpoint={silent_collector!r})\n"
        "handle = start_observability(config)\n"
        "trace.get_tracer('x').start_span('s').end()\n"
        "print(handle.shutdown(0.3))\n"
    )
    begun = time.perf_counter()
    done = in_fresh_process(code)
    assert (done.returncode, done.stdout) == (0, "False\n")
    assert time.perf_counter() - begun < 20
