"""The gateway over HTTP: routes, header fields, keys, weights, the log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from adapters.frontdoor.lifespan import StartupError
from engine import BaseProvider, ConfigurationError, ModelEntry, Operation, Router

pytestmark = pytest.mark.anyio

WithGateway = Callable[..., Awaitable[None]]
MOCK = {"name": "mock-a", "type": "mock"}
TWO = {"providers": [{**MOCK, "weight": 3}, {"name": "mock-b", "type": "mock", "weight": 1}]}


async def test_chat_answers_with_the_providers_own_bytes(with_gateway: WithGateway) -> None:
    """A chat completion comes back whole, with the facts about its way in the header."""

    async def scenario(gateway: Any) -> None:
        answer = await gateway.ask(headers={"x-request-id": "my-own-id"})
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["role"] == "assistant"
        head = answer.headers
        assert head["content-type"] == "application/json"
        assert head["x-request-id"] == "my-own-id"
        assert head["x-gateway-provider"] in {"mock-a", "mock-b"}
        assert head["x-gateway-attempts"] == "1"
        assert 0 <= float(head["x-gateway-overhead-ms"]) < 5_000
        assert head["cache-control"] == "no-store"
        assert head["vary"] == "authorization"
        assert "server" not in head
        assert "set-cookie" not in head

    await with_gateway(TWO, scenario)


async def test_request_id_that_cannot_stand_in_a_header_is_replaced(
    with_gateway: WithGateway,
) -> None:
    """A request id that is too long or not printable ASCII never comes back."""

    async def scenario(gateway: Any) -> None:
        for given in ("x" * 129, "caf\u00e9".encode(), b"a\tb"):
            answer = await gateway.ask(headers={"x-request-id": given})
            assert answer.headers["x-request-id"].startswith("req-")
        kept = await gateway.ask(headers={"x-request-id": "y" * 128})
        assert kept.headers["x-request-id"] == "y" * 128

    await with_gateway(TWO, scenario)


async def test_every_request_leaves_one_line_without_its_prompt(with_gateway: WithGateway) -> None:
    """The log has model, provider, outcome and times, and nothing that the caller said."""

    async def scenario(gateway: Any) -> None:
        canary = "canary-7f3a"
        body = {"model": "m1", "messages": [{"role": "user", "content": canary}]}
        await gateway.ask(body, headers={"authorization": f"Bearer {canary}"})
        record = await gateway.log.last()
        assert len(gateway.log.kept) == 1
        assert (record.method, record.route) == ("POST", "/v1/chat/completions")
        assert (record.status, record.outcome, record.model) == (200, "completed", "m1")
        assert record.provider in {"mock-a", "mock-b"}
        assert (record.attempts, record.stream, record.error_code) == (1, False, None)
        assert record.duration_ms >= record.overhead_ms > 0
        assert canary not in repr(gateway.log.kept)

    await with_gateway(TWO, scenario)


async def test_completions_and_embeddings_have_their_routes(with_gateway: WithGateway) -> None:
    """The other two operations answer at their paths."""

    async def scenario(gateway: Any) -> None:
        text = await gateway.http("POST", "/v1/completions", json={"model": "m", "prompt": "Once"})
        assert text.json()["object"] == "text_completion"
        body = {"model": "m", "input": ["one", "two"]}
        vectors = await gateway.http("POST", "/v1/embeddings", json=body)
        assert len(vectors.json()["data"]) == 2

    await with_gateway(TWO, scenario)


async def test_models_are_listed_and_shown_one_by_one(with_gateway: WithGateway) -> None:
    """Configured models are listed, and each is found by its name, slashes included."""
    models = [{"name": name, "targets": [{"provider": "mock-a"}]} for name in ("chat", "org/big")]

    async def scenario(gateway: Any) -> None:
        listed = (await gateway.http("GET", "/v1/models")).json()
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["chat", "org/big"]
        for path in ("/v1/models/org/big", "/v1/models/org%2Fbig"):
            one = await gateway.http("GET", path)
            assert (one.status_code, one.json()["id"]) == (200, "org/big")
        missing = await gateway.http("GET", "/v1/models/nothing")
        assert missing.status_code == 404
        assert missing.json()["error"]["code"] == "model_not_found"

    await with_gateway({"providers": [MOCK], "models": models}, scenario)


async def test_probes_are_answered(with_gateway: WithGateway) -> None:
    """Health says that the process is alive and nothing else; HEAD works on the base URL."""

    async def scenario(gateway: Any) -> None:
        for path in ("/healthz", "/health"):
            answer = await gateway.http("GET", path)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert (await gateway.http("HEAD", "/")).status_code == 200
        assert (await gateway.http("HEAD", "/healthz")).content == b""
        assert "/v1/chat/completions" in (await gateway.http("GET", "/")).json()["endpoints"]
        ready = await gateway.http("GET", "/readyz")
        assert (ready.status_code, ready.json()) == (200, {"status": "ready"})

    await with_gateway(TWO, scenario)


async def test_readiness_turns_red_in_a_drain(with_gateway: WithGateway) -> None:
    """A draining gateway says 503 with Retry-After to whoever asks for readiness."""

    async def scenario(gateway: Any) -> None:
        gateway.app.draining.begin()
        answer = await gateway.http("GET", "/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
        assert answer.headers["retry-after"] == "1"
        assert (await gateway.http("GET", "/healthz")).status_code == 200

    await with_gateway(TWO, scenario)


async def test_status_shows_the_engine_to_this_machine(with_gateway: WithGateway) -> None:
    """From the loopback interface, /status gives what the router says of itself."""

    async def scenario(gateway: Any) -> None:
        await gateway.ask()
        status = (await gateway.http("GET", "/status")).json()
        assert status["ledger"]["outcomes"]["completed"] == 1
        assert [actor["name"] for actor in status["actors"]] == ["mock-a", "mock-b"]
        forwarded = await gateway.http("GET", "/status", headers={"x-forwarded-for": "192.0.2.1"})
        assert forwarded.status_code == 403

    await with_gateway(TWO, scenario)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic a2V5LW9uZQ=="},
        {"authorization": b"Bearer k\xc3\xa9y"},
        {"x-api-key": "key-one,key-two"},
        {"x-api-key": "x" * 5000},
        {"authorization": "Bearer wrong", "x-api-key": "key-one"},
    ],
    ids=str,
)
async def test_a_wrong_key_is_refused(with_gateway: WithGateway, headers: dict[str, Any]) -> None:
    """Whatever is no accepted key gets 401, and no more than that."""

    async def scenario(gateway: Any) -> None:
        answer = await gateway.ask(headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert "key-one" not in answer.text

    config = {**TWO, "server": {"api_keys_env": "KEYS"}}
    await with_gateway(config, scenario, environment={"KEYS": "key-one, key-two"})


async def test_keys_open_what_needs_them(with_gateway: WithGateway) -> None:
    """Any accepted key works in either header; probes need none, everything else does."""

    async def scenario(gateway: Any) -> None:
        for headers in ({"authorization": "bearer key-two"}, {"x-api-key": "key-one"}):
            assert (await gateway.ask(headers=headers)).status_code == 200
        for method, path, status in [
            ("GET", "/healthz", 200),
            ("GET", "/health", 200),
            ("GET", "/readyz", 200),
            ("HEAD", "/", 200),
            ("GET", "/", 401),
            ("GET", "/v1/models", 401),
            ("GET", "/v1/models/m", 401),
            ("POST", "/v1/embeddings", 401),
            ("GET", "/nothing", 404),
        ]:
            assert (await gateway.http(method, path)).status_code == status, (method, path)

    config = {**TWO, "server": {"api_keys_env": "KEYS"}}
    await with_gateway(config, scenario, environment={"KEYS": "key-one, key-two"})


async def test_one_provider_in_four_that_always_fails_is_not_noticed(
    with_gateway: WithGateway,
) -> None:
    """No caller sees an error, and the others are picked by their weights."""
    weights = {"a": 1.0, "b": 2.0, "c": 3.0}
    providers = [{"name": name, "type": "mock", "weight": w} for name, w in weights.items()]
    broken = {"name": "broken", "type": "mock", "weight": 2, "options": {"fault": "http_500"}}
    asked, served = 400, Counter[str]()

    async def scenario(gateway: Any) -> None:
        async def ask() -> None:
            answer = await gateway.ask()
            assert answer.status_code == 200
            served[answer.headers["x-gateway-provider"]] += 1

        for _ in range(asked // 20):
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask)

    config = {"providers": [*providers, broken], "seed": 7}
    await with_gateway(config, scenario)
    assert set(served) == set(weights)
    for name, weight in weights.items():
        share = weight / sum(weights.values())
        # Four standard deviations of a binomial draw.
        bound = 4 * (asked * share * (1 - share)) ** 0.5
        assert abs(served[name] - asked * share) <= bound, served


async def test_timeout_header_ends_a_request(with_gateway: WithGateway) -> None:
    """A caller's own deadline is kept, and the answer says that repeating is of no use."""
    slow = {**MOCK, "options": {"latency": 30}}

    async def scenario(gateway: Any) -> None:
        with anyio.fail_after(10):
            answer = await gateway.ask(headers={"x-request-timeout-ms": "150"})
        assert answer.status_code == 504
        assert answer.headers["x-should-retry"] == "false"

    await with_gateway({"providers": [slow]}, scenario)


@pytest.mark.parametrize("given", ["0", "-5", "soon", "nan", "inf", "1e3", "9" * 20])
async def test_timeout_header_that_is_no_time_is_refused(
    with_gateway: WithGateway, given: str
) -> None:
    """Only a positive number of milliseconds is a deadline."""

    async def scenario(gateway: Any) -> None:
        answer = await gateway.ask(headers={"x-request-timeout-ms": given})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "x-request-timeout-ms"

    await with_gateway(TWO, scenario)


async def test_overload_says_when_to_come_back(with_gateway: WithGateway) -> None:
    """A 503 has Retry-After in whole seconds and in milliseconds."""
    busy = {**MOCK, "max_retries": 0, "options": {"fault": "http_503", "retry_after": 7}}

    async def scenario(gateway: Any) -> None:
        answer = await gateway.ask()
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert int(answer.headers["retry-after-ms"]) >= 1

    await with_gateway({"providers": [busy]}, scenario)


async def test_server_span_joins_the_callers_trace(
    with_gateway: WithGateway, tracer_provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """Server, router and attempt span stand in one trace, below the caller's span."""
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def scenario(gateway: Any) -> None:
        await gateway.ask(headers={"traceparent": caller, "baggage": "user=canary"})
        await gateway.log.last()

    await with_gateway(TWO, scenario, tracer_provider=tracer_provider)
    found = {span.kind if span.kind is SpanKind.SERVER else span.name: span
             for span in spans.get_finished_spans()}  # fmt: skip
    server = found[SpanKind.SERVER]
    assert server.name == "POST /v1/chat/completions"
    assert dict(server.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
    }
    assert server.status.status_code is StatusCode.UNSET
    assert {f"{span.context.trace_id:032x}" for span in spans.get_finished_spans()} == {
        caller[3:35]
    }
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == caller[36:52]
    chat = found["chat any"]
    assert chat.parent is not None
    assert chat.parent.span_id == server.context.span_id
    assert "canary" not in repr([span.attributes for span in spans.get_finished_spans()])


async def test_router_that_cannot_start_fails_the_server(
    with_gateway: WithGateway, provider_type: Callable[[type[BaseProvider]], str]
) -> None:
    """A provider that cannot start ends the server before it has served anything."""

    class NeverStarts(BaseProvider):
        operations = frozenset(Operation)

        async def start(self) -> None:
            raise ConfigurationError("the model file is missing")

        async def send(self, attempt: Any) -> Any:
            raise NotImplementedError

        def stream(self, attempt: Any) -> Any:
            raise NotImplementedError

    async def scenario(gateway: Any) -> None:
        pytest.fail("it started")

    config = {"providers": [{"name": "p", "type": provider_type(NeverStarts)}]}
    with pytest.RaisesGroup(pytest.RaisesExc(StartupError, match="model file is missing")):
        await with_gateway(config, scenario)


async def test_foreign_exception_becomes_an_error_without_details(
    with_gateway: WithGateway, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is answered with an id to ask about, and logged by its type only."""

    class Mistaken(Router):
        async def list_models(self) -> list[ModelEntry]:
            raise ZeroDivisionError("canary-secret")

    async def scenario(gateway: Any) -> None:
        answer = await gateway.http("GET", "/v1/models")
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert error["code"] == "internal_error"
        assert answer.headers["x-request-id"] in error["message"]
        assert "ZeroDivisionError" in caplog.text
        assert "canary-secret" not in answer.text + caplog.text
        assert json.loads((await gateway.http("GET", "/healthz")).content) == {"status": "ok"}

    await with_gateway(TWO, scenario, router=Mistaken.from_config(TWO))
