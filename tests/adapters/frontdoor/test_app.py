"""The application without a server: route table, lifespan, mounting, spans."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.routing import Mount

from adapters.frontdoor.app import GatewayApp, create_app
from adapters.frontdoor.routes import GatewayRoute, Handler
from engine import ConfigurationError, GatewayConfig, Router

CONFIG = {"providers": [{"name": "mock", "type": "mock"}]}
HELLO = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}


def make_app(config: dict[str, Any] | None = None, **options: Any) -> GatewayApp:
    return create_app(GatewayConfig.model_validate(config or CONFIG), **options)


def client_of(app: Any, client: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, client=(client, 5000))
    return httpx.AsyncClient(transport=transport, base_url="http://gateway")


async def ask(app: Any, method: str = "POST", path: str = "/v1/chat/completions",
              client: str = "127.0.0.1", **options: Any) -> httpx.Response:  # fmt: skip
    if method == "POST":
        options.setdefault("json", HELLO)
    async with app.router.lifespan_context(app), client_of(app, client) as http:
        return await http.request(method, path, **options)


# ── routes ───────────────────────────────────────────────────────────────────────


def test_every_route_says_who_may_use_it() -> None:
    """The route table is complete, and this list is the review of it."""
    found = {
        (method, route.path): handler.access.value
        for route in make_app().routes
        if isinstance(route, GatewayRoute)
        for method, handler in route.handlers.items()
    }
    assert len({path for _, path in found}) == len(make_app().routes)
    assert found == {
        ("POST", "/v1/chat/completions"): "key",
        ("POST", "/v1/completions"): "key",
        ("POST", "/v1/embeddings"): "key",
        ("GET", "/healthz"): "open",
        ("HEAD", "/healthz"): "open",
        ("GET", "/health"): "open",
        ("HEAD", "/health"): "open",
        ("GET", "/readyz"): "open",
        ("HEAD", "/readyz"): "open",
        ("GET", "/v1/models"): "key",
        ("HEAD", "/v1/models"): "key",
        ("GET", "/v1/models/{id:path}"): "key",
        ("HEAD", "/v1/models/{id:path}"): "key",
        ("GET", "/status"): "operator",
        ("HEAD", "/status"): "operator",
        ("GET", "/"): "key",
        ("HEAD", "/"): "open",
    }


def test_a_handler_without_an_access_requirement_cannot_be_made() -> None:
    """Who adds a route has to say who may use it."""

    async def endpoint(_: Any) -> None: ...

    with pytest.raises(TypeError, match="access"):
        Handler(endpoint=endpoint)  # type: ignore[call-arg]


async def test_chat_works_on_every_event_loop_and_without_our_server() -> None:
    """Under another server the application brings border and gate itself."""
    app = make_app()
    answer = await ask(app)
    assert answer.status_code == 200
    assert answer.headers["x-gateway-provider"] == "mock"
    assert app.draining.in_flight == 0


async def test_stream_works_on_every_event_loop() -> None:
    """A stream ends with its marker under another server as well."""
    answer = await ask(make_app(), json={**HELLO, "stream": True})
    assert answer.text.endswith("data: [DONE]\n\n")


async def test_the_gate_stands_in_front_under_any_server() -> None:
    """A request whose framing is in doubt does not reach a route."""
    headers = [("content-length", "5"), ("transfer-encoding", "chunked")]
    answer = await ask(make_app(), content=b"hello", json=None, headers=headers)
    assert answer.json()["error"]["code"] == "ambiguous_body_length"


async def test_it_can_be_mounted_in_another_application() -> None:
    """Below a mount the paths are the same, and the given router is the mounter's to enter."""
    router = Router.from_config(CONFIG)
    gateway = make_app(router=router)
    outer = Starlette(routes=[Mount("/llm", app=gateway)])
    async with router, client_of(outer) as http:
        answer = await http.post("/llm/v1/chat/completions", json=HELLO)
        assert answer.status_code == 200
        assert (await http.get("/llm/v1/models/mock-model")).status_code == 200
        assert (await http.get("/llm/nothing")).status_code == 404


async def test_added_middleware_sees_every_answer() -> None:
    """Middleware of the application's user wraps the routes."""

    class Mark:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def marked(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"].append((b"x-mark", b"1"))
                await send(message)

            await self.app(scope, receive, marked)

    app = make_app()
    app.add_middleware(Mark)
    assert (await ask(app)).headers["x-mark"] == "1"


async def test_a_router_that_was_not_entered_is_a_503() -> None:
    """A gateway without a running engine says that nobody can serve, and is not ready."""
    app = make_app()
    async with client_of(app) as http:
        answer = await http.post("/v1/chat/completions", json=HELLO)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()) == (503, {"status": "unavailable"})


async def test_a_router_that_cannot_start_fails_the_lifespan() -> None:
    """The lifespan raises what the router raised, and tells the server so."""

    class Broken(Router):
        async def __aenter__(self) -> Any:
            raise ConfigurationError("no model file")

    app = make_app(router=Broken.from_config(CONFIG))
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    with pytest.raises(ConfigurationError):
        await app({"type": "lifespan", "state": {}}, receive, send)
    assert sent == ["lifespan.startup.failed"]


async def test_drained_request_is_logged_as_cancelled() -> None:
    """A request that the end of the drain cut is answered by the border, and logged."""
    records: list[Any] = []

    class Log:
        write = records.append

    slow = {"providers": [{"name": "mock", "type": "mock", "options": {"latency": 60}}]}
    app = make_app(slow, request_log=Log())

    async def cut_when_running() -> None:
        while not app.engine.status().ledger.in_flight:  # noqa: ASYNC110 - looks from outside
            await anyio.sleep(0.01)
        app.draining.cut()

    async with (
        app.router.lifespan_context(app),
        client_of(app) as http,
        anyio.create_task_group() as group,
    ):
        group.start_soon(cut_when_running)
        answer = await http.post("/v1/chat/completions", json=HELLO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_draining")
    assert [(r.status, r.outcome, r.error_code) for r in records] == [
        (503, "cancelled", "server_draining")
    ]


async def test_the_engines_counters_are_exported() -> None:
    """Requests by outcome, and the conservation error, reach the meter provider."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    await ask(make_app(meter_provider=provider))
    data = json.loads(reader.get_metrics_data().to_json())  # type: ignore[union-attr]
    metrics = data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    points = {metric["name"]: metric["data"]["data_points"] for metric in metrics}
    assert [point["value"] for point in points["gateway.conservation.error"]] == [0]
    assert sum(point["value"] for point in points["gateway.requests"]) == 1
    provider.shutdown()


# ── spans ────────────────────────────────────────────────────────────────────────


async def span_of(app: GatewayApp, spans: InMemorySpanExporter, **request: Any) -> Any:
    await ask(app, **request)
    return next(s for s in spans.get_finished_spans() if s.kind is SpanKind.SERVER)


async def test_callers_mistake_leaves_the_span_unset(
    tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """A 4xx is no error of the server."""
    span = await span_of(make_app(tracer_provider=tracer_provider), spans, json={})
    assert span.attributes["http.response.status_code"] == 400
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in span.attributes


async def test_server_error_is_an_error_of_the_span(
    tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """A 5xx has an error type of low cardinality."""
    options = {"fault": "refused"}
    provider = {"name": "mock", "type": "mock", "max_retries": 0, "options": options}
    app = make_app({"providers": [provider]}, tracer_provider=tracer_provider)
    span = await span_of(app, spans)
    assert span.attributes["error.type"] == "connect"
    assert span.status.status_code is StatusCode.ERROR


async def test_unknown_path_has_no_route(
    tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """The span's name is the method alone: strangers must not choose span names."""
    app = make_app(tracer_provider=tracer_provider)
    span = await span_of(app, spans, method="GET", path="/etc/passwd")
    assert span.name == "GET"
    assert "http.route" not in span.attributes


@pytest.mark.parametrize(
    "given", ["", "00-0-0-01", f"00-{'0' * 32}-{'1' * 16}-01", f"ff-{'1' * 32}-{'1' * 16}-01"]
)
async def test_broken_trace_context_starts_a_new_trace(
    tracer_provider: TracerProvider, spans: InMemorySpanExporter, given: str
) -> None:
    """Ids that are none are not believed."""
    app = make_app(tracer_provider=tracer_provider)
    span = await span_of(app, spans, headers={"traceparent": given})
    assert span.parent is None
