"""Rules S35, S38, S41 to S44: what configuration, logs, metrics, probes and the process tell."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import traceback
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError
from security_lab import HELLO, KEY, Bench, fields_of, on_bench

from adapters.configuration import ConfigurationFileError, load_config
from adapters.observability.logs import json_line, pretty_line
from adapters.providers.llamacpp_server import _child_environment
from adapters.providers.openai import OpenAIAdapter
from engine import ConfigurationError, GatewayConfig, ProviderConfig
from engine.factory import ProviderFactory

CANARY = "sk-canary-0123456789abcdef"

# ── S35: the configuration ───────────────────────────────────────────────────────

WRONG: list[dict[str, Any]] = [
    {"weight": CANARY},
    {"timeout": CANARY},
    {"enabled": CANARY},
    {"limits": {"concurrency": CANARY}},
    {"timeouts": CANARY},
    {"api_key": CANARY},
    {"options": CANARY},
    {"api_key_env": CANARY + "\n"},
    {CANARY: 1},
]


@pytest.mark.parametrize("mistake", WRONG, ids=lambda mistake: next(iter(mistake))[:12])
def test_s35_a_type_error_does_not_show_the_value(mistake: dict[str, Any]) -> None:
    """Not in the text, not in the repr, not in the chain of the exception."""
    with pytest.raises(ValidationError) as caught:
        GatewayConfig.model_validate({"providers": [{"name": "a", "type": "mock", **mistake}]})
    shown = f"{caught.value}{caught.value!r}{''.join(traceback.format_exception(caught.value))}"
    if CANARY not in mistake:
        assert CANARY not in shown


@pytest.mark.parametrize("mistake", WRONG, ids=lambda mistake: next(iter(mistake))[:12])
def test_s35_a_wrong_file_does_not_show_the_value(
    mistake: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    """The same in a file, where it is an operator's log that would keep it; keys included."""
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({"providers": [{"name": "a", "type": "mock", **mistake}]}))
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    shown = f"{caught.value}{caught.value!r}{''.join(traceback.format_exception(caught.value))}"
    assert CANARY not in shown


def test_s35_a_key_appears_in_nothing_that_is_made_of_it(provider_key: str) -> None:
    """Neither configuration nor adapter nor what the adapter prepares shows the key."""
    config = ProviderConfig(name="a", type="openai", api_key_env="LAB_KEY")
    adapter = ProviderFactory.create_provider(config)
    assert isinstance(adapter, OpenAIAdapter)
    adapter._prepare("/chat/completions", "application/json")
    held = [config, config.model_dump(), config.model_dump_json(), adapter, vars(adapter)]
    assert provider_key not in "".join(f"{each!r}{each}" for each in held)


def test_s35_a_key_that_cannot_be_sent_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable."""
    monkeypatch.setenv("LAB_KEY", f"{CANARY} and a blank")
    with pytest.raises(ConfigurationError, match="LAB_KEY") as caught:
        ProviderFactory.create_provider(
            ProviderConfig(name="a", type="openai", api_key_env="LAB_KEY")
        )
    assert CANARY not in f"{caught.value}{caught.value!r}"


# ── S38: the request log ─────────────────────────────────────────────────────────


async def test_s38_the_request_log_has_no_query_and_no_credentials() -> None:
    """The route's pattern stands for the path, whatever the caller wrote."""

    async def use(bench: Bench) -> None:
        headers = {"authorization": f"Bearer {CANARY}", "x-api-key": CANARY, "cookie": CANARY}
        for path in (
            "/v1/chat/completions",
            f"/v1/models/{CANARY}",
            f"/{CANARY}",
            f"/v1/{CANARY}/x",
        ):
            query = {"key": CANARY, CANARY: "1"}
            for method in ("GET", "POST"):
                await bench.http(method, path, params=query, headers=headers, json=HELLO)
        assert len(bench.records.kept) == 8
        for record in bench.records.kept:
            assert CANARY not in json_line(0, record) + pretty_line(0, record) + repr(record)

    await on_bench(use)


# ── S41: labels ──────────────────────────────────────────────────────────────────


async def test_s41_callers_cannot_make_series_of_metrics() -> None:
    """A hundred models, users, paths and ids later there are as many series as before."""
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader])

    def series() -> set[str]:
        data = reader.get_metrics_data()
        assert data is not None
        found = set()
        for resource in json.loads(data.to_json())["resource_metrics"]:
            for scope in resource["scope_metrics"]:
                for metric in scope["metrics"]:
                    for point in metric["data"]["data_points"]:
                        found.add(f"{metric['name']}{sorted(point['attributes'].items())}")
        return found

    async def use(bench: Bench) -> None:
        async def ask(number: int) -> None:
            word = f"{CANARY}-{number}"
            headers = {"x-request-id": word, "authorization": f"Bearer {word}"}
            await bench.ask({**HELLO, "model": word, "user": word}, headers=headers)
            await bench.http("GET", f"/v1/models/{word}", headers=headers)
            await bench.http("PUT", f"/{word}", headers=headers)

        await ask(0)
        before = series()
        for number in range(1, 100):
            await ask(number)
        after = series()
        assert after == before
        assert CANARY not in str(after)

    await on_bench(use, meter_provider=meters)
    meters.shutdown()


# ── S42: probes ──────────────────────────────────────────────────────────────────


async def test_s42_probes_say_one_word() -> None:
    """Liveness and readiness: no provider, no version, no address, whoever asks."""

    async def use(bench: Bench) -> None:
        for path in ("/healthz", "/health"):
            assert (await bench.http("GET", path)).json() == {"status": "ok"}
        assert (await bench.http("GET", "/readyz")).json() == {"status": "ready"}
        bench.app.draining._begun.set()
        answer = await bench.http("GET", "/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "draining"})

    await on_bench(use)


async def test_s42_details_are_the_operators() -> None:
    """`/status` answers nobody who comes from elsewhere or through a proxy."""

    async def use(bench: Bench) -> None:
        answer = await bench.http("GET", "/status", headers={"x-forwarded-for": "192.0.2.1"})
        assert answer.status_code == 403
        assert "upstream" not in answer.text
        wrong = await bench.http("GET", "/status/")
        assert wrong.status_code == 404

    await on_bench(use)


# ── S43: traces ──────────────────────────────────────────────────────────────────

TRACE = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "tracestate": f"vendor={CANARY}",
    "baggage": f"key={CANARY}",
    "b3": CANARY,
    "uber-trace-id": CANARY,
}


@pytest.mark.parametrize("propagate", [False, True])
async def test_s43_traces_pass_as_ids_and_only_if_asked_for(propagate: bool) -> None:
    """A caller's ids make our spans its children; upstream goes nothing, or ids."""
    spans = InMemorySpanExporter()
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))

    async def use(bench: Bench) -> None:
        assert (await bench.ask(headers=TRACE)).status_code == 200
        (head,) = bench.heads
        sent = fields_of(head)
        assert CANARY not in head
        assert not sent.keys() & (TRACE.keys() - {"traceparent"})
        assert ("traceparent" in sent) is propagate
        if propagate:
            assert re.fullmatch(
                r"00-0af7651916cd43dd8448eb211c80319c-\w{16}-01", sent["traceparent"]
            )

    telemetry = {"telemetry": {"propagate": propagate}}
    await on_bench(use, more=telemetry, tracer_provider=tracers)
    finished = spans.get_finished_spans()
    assert len(finished) >= 3
    assert {f"{span.context.trace_id:032x}" for span in finished} == {
        "0af7651916cd43dd8448eb211c80319c"
    }
    assert CANARY not in "".join(span.to_json() for span in finished)
    tracers.shutdown()


def test_s43_nothing_is_propagated_by_default() -> None:
    """Providers learn nothing of our traces unless the operator says so."""
    config = GatewayConfig.model_validate({"providers": [{"name": "a", "type": "mock"}]})
    assert config.telemetry.propagate is False


# ── S44: the process ─────────────────────────────────────────────────────────────

_LOOK = """
import resource, sys
from adapters.cli.hardening import keep_memory_private
keep_memory_private()
print(resource.getrlimit(resource.RLIMIT_CORE), end=" ")
if sys.platform == "linux":
    import ctypes
    print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))  # PR_GET_DUMPABLE
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such switch")
def test_s44_memory_is_written_to_no_file_and_shown_to_no_process() -> None:
    """No core dump, and not dumpable."""
    ran = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, check=True)
    assert ran.stdout.split("\n")[0] == "(0, 0) 0"


def test_s44_serving_begins_with_it() -> None:
    """`serve` asks for it before it reads any key."""
    source = pathlib.Path(__file__).parents[2].joinpath("adapters/cli/serve.py").read_text()
    body = source[source.index("def command") :]
    assert body.index("keep_memory_private()") < body.index("load_or_fail")


def test_s44_a_child_gets_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a local model's process holds no key; its arguments are fixed."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("LAB_KEY", KEY)
    monkeypatch.setenv("ANYTHING", KEY)
    child = _child_environment()
    assert KEY not in child.values()
    assert len(child) < len(os.environ)
