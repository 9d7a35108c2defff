"""Everything that a gateway says while faults are played, and the spellings of a canary."""

from __future__ import annotations

import base64
import io
import json
import logging
import traceback
from typing import Any, Literal
from urllib.parse import quote

import anyio
import httpx
import pytest
from fault_calls import Call, Caller, Entrance
from fault_lab import Case, Fault, Lab
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from adapters.frontdoor.app import GatewayApp, create_app
from adapters.observability.library_logs import LibraryLogHandler
from adapters.observability.logs import RequestLog, RequestRecord
from engine import GatewayConfig, Router
from engine.metrics import observe_router

FORMS: tuple[Literal["pretty", "json"], ...] = ("pretty", "json")


def forms(canary: str) -> dict[str, str]:
    """A canary in the spellings in which it could come back, by name."""
    raw = canary.encode()
    found = {
        "plain": canary,
        "url": quote(canary, safe=""),
        "every byte escaped": "%" + raw.hex("%"),
        "hexadecimal": raw.hex(),
        "backwards": canary[::-1],
        "escaped": "".join(f"\\u{ord(c):04x}" for c in canary),
        "first half": canary[: len(canary) // 2 + 1],
        "second half": canary[len(canary) // 2 :],
    }
    for before in range(3):
        encoded = base64.b64encode(b" " * before + raw).decode()
        found[f"base64 after {before}"] = encoded[2 * before : len(encoded) - 4]
    return found


def assert_clean(where: str, text: str, spellings: dict[str, str]) -> None:
    """Fail if one of the spellings stands in a text."""
    lowered = text.lower()
    for name, spelling in spellings.items():
        place = lowered.find(spelling.lower())
        assert place < 0, f"{where}: {name}: {text[max(0, place - 200) : place + 100]!r}"


class Ears:
    """Hears everything that a gateway says while the faults are played.

    Attributes:
        said: What was heard, by where.
    """

    def __init__(self) -> None:
        self.said: dict[str, list[str]] = {}
        self.streams = {form: io.StringIO() for form in FORMS}
        self.request_logs = [RequestLog(form, stream=self.streams[form]) for form in FORMS]
        self.library_logs = [LibraryLogHandler(form, stream=self.streams[form]) for form in FORMS]
        self.spans = InMemorySpanExporter()
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.metrics = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.metrics])

    def write(self, record: RequestRecord) -> None:
        """Take a record of the request log."""
        self.hear("request record", repr(record))
        for log in self.request_logs:
            log.write(record)

    def hear(self, where: str, text: str) -> None:
        """Note what was said."""
        self.said.setdefault(where, []).append(text)

    def look_at(self, router: Router) -> None:
        """Note what a router tells of itself and of its requests."""
        status = router.status()
        self.hear("status", repr(status) + json.dumps(status.as_dict()))
        for story in router.recent_requests(1_000):
            self.hear("stories", json.dumps(router.explain(story["request_id"])))
        self.hear("reprs", f"{router!r}{router.config!r}{router.config.model_dump()}")
        for provider in router._providers.values():
            self.hear("reprs", f"{provider!r}{getattr(provider, '_reporter', None)!r}")
        metrics = self.metrics.get_metrics_data()
        self.hear("metrics", "" if metrics is None else metrics.to_json())

    def caller(self, caller: Caller) -> None:
        """Note what a caller could read, and what it could log."""
        self.hear("answers", caller.output)
        if caller.error is not None:
            self.hear("exceptions", told_of(caller.error))

    def close(self) -> None:
        """Gather what was written, and end everything."""
        for log in self.request_logs:
            assert log.close(5)
        for handler in self.library_logs:
            assert handler.finish(5)
        for form, stream in self.streams.items():
            self.hear(f"{form} lines", stream.getvalue())
        for span in self.spans.get_finished_spans():
            self.hear("spans", span.to_json())
        self.tracer_provider.shutdown()
        self.meter_provider.shutdown()


class EveryRecord(logging.Handler):
    """Hears each record of `logging`, as the most talkative formatter would write it."""

    def __init__(self, ears: Ears) -> None:
        super().__init__(logging.DEBUG)
        self._ears = ears

    def emit(self, record: logging.LogRecord) -> None:
        """Write down message, arguments and traceback."""
        text = self.format(record)
        self._ears.hear("logging", f"{text}{record.args!r}{record.__dict__!r}")
        if record.exc_info and record.exc_info[1] is not None:
            self._ears.hear("logging", told_of(record.exc_info[1]))


def told_of(error: BaseException) -> str:
    """All that can be read off an exception and what is chained to it, without a debugger."""
    parts = ["".join(traceback.format_exception(error))]
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        parts.append(f"{each!r}{each}{each.args!r}{vars(each)!r}")
        pending += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
    return "\n".join(parts)


class ListeningLab(Lab):
    """A lab that is heard in all it says.

    Args:
        cases: What is played.
        ears: Who listens.
    """

    def __init__(self, cases: list[Case], ears: Ears) -> None:
        super().__init__(cases)
        self.ears = ears

    def make_app(self, config: GatewayConfig) -> GatewayApp:
        """The gateway of the lab."""
        ears = self.ears
        return create_app(
            config,
            request_log=ears,
            tracer_provider=ears.tracer_provider,
            meter_provider=ears.meter_provider,
        )

    def make_router(self, config: GatewayConfig) -> Router:
        """The router of the lab, for calls of the library."""
        router = Router.from_config(config, tracer_provider=self.ears.tracer_provider)
        observe_router(router.status, self.ears.meter_provider)
        return router


async def play(
    faults: list[Fault], entrance: Entrance, ears: Ears, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Play all faults side by side, whole and streamed, with nobody behind them."""
    cases = []
    for number, fault in enumerate(faults):
        for streamed, seen in ((False, fault.whole), (True, fault.streamed)):
            if seen is not None:
                case = Case(fault, streamed=streamed, behind="alone")
                case.name = f"case-{number}-{'streamed' if streamed else 'whole'}"
                cases.append(case)
    lab = ListeningLab(cases, ears)
    monkeypatch.setattr("fault_lab.create_app", lab.make_app)
    monkeypatch.setattr("fault_lab.Router", lab.make_router)
    monkeypatch.setattr("fault_lab.http_call", reading_call)

    async def use(call: Call) -> None:
        at_once = anyio.CapacityLimiter(40)

        async def meet(case: Case) -> None:
            async with at_once:
                ears.caller(await call(case.body))

        async with anyio.create_task_group() as group:
            for case in cases:
                group.start_soon(meet, case)
        await lab.settle()
        assert lab.router is not None
        ears.look_at(lab.router)

    await lab.run(entrance, use)
    ears.close()


def reading_call(url: str) -> Call:
    """Calls over HTTP that take whatever comes."""

    async def call(body: dict[str, Any]) -> Caller:
        async with httpx.AsyncClient(trust_env=False, verify=False, timeout=20) as client:
            answer = await client.post(url, json=body)
        output = f"{answer.headers.raw!r}{answer.text}"
        return Caller(answer.status_code, None, "", 0, output=output)

    return call
