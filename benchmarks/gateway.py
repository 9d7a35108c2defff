"""The benchmark `gateway`: HTTP through Hypercorn to a loopback upstream."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from adapters.frontdoor.server import ServerSettings
from benchmarks.children import (
    ChildError,
    can_pin,
    gateway_process,
    generate_load,
    hypercorn_process,
    upstream_process,
)
from benchmarks.cpu_time import resident_mib
from benchmarks.load import LoadPlan, LoadResult
from benchmarks.machine import Conditions
from benchmarks.progress import Steps
from benchmarks.report import Goal, Section, Table
from benchmarks.spread import MICROSECONDS, MILLISECONDS, Spread, figure
from benchmarks.wire import ANSWER_BYTES, EVENT_GAP, EVENTS, REQUEST_BYTES

FEWEST_REQUESTS = 4


class UnsupportedSystemError(Exception):
    """This benchmark reads what only Linux tells."""


class Server(StrEnum):
    """Who answers the load generator."""

    GATEWAY = "gateway"
    HYPERCORN = "Hypercorn alone"
    UPSTREAM = "upstream, directly"


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of load.

    Attributes:
        name: What it is, for people.
        connections: How many ask at the same time.
        streamed: Whether answers are streams.
        paced: Whether events come one by one.
        server: Who is asked.
        part: Which part of the requests it makes.
    """

    name: str
    connections: int
    streamed: bool = False
    paced: bool = False
    server: Server = Server.GATEWAY
    part: float = 1.0


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How much is measured.

    Attributes:
        requests: Requests of the main case, over all rounds; the others make fewer.
        rounds: Rounds of each case.
        connections: Connections of the concurrent cases.
    """

    requests: int = 50_000
    rounds: int = 5
    connections: int = 64

    @property
    def cases(self) -> list[Case]:
        """All cases; the first is the main one."""
        many = self.connections
        return [
            Case("answer", many),
            Case("answer", 1, part=0.1),
            Case("stream, all events at once", many, streamed=True, part=0.2),
            Case("stream, all events at once", 1, streamed=True, part=0.04),
            Case("stream, paced", many, streamed=True, paced=True, part=0.1),
            Case("answer", many, server=Server.HYPERCORN, part=0.4),
            Case("answer", many, server=Server.UPSTREAM, part=0.4),
            Case("answer", 1, server=Server.UPSTREAM, part=0.1),
        ]

    @property
    def steps(self) -> int:
        """How many steps are told."""
        return 1 + self.rounds * len(self.cases)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of the gateway, MiB.

    Attributes:
        start: When it began to serve.
        end: When all load was over.
    """

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core does what."""

    gateway: int
    others: int

    @classmethod
    def chosen(cls) -> Cores:
        """The first two that this process may use; one serves for both if it must."""
        cores = sorted(os.sched_getaffinity(0)) if can_pin() else [0]
        return cls(cores[0], cores[1 % len(cores)])


def run(settings: GatewaySettings, steps: Steps) -> Section:
    """Measure, and write the section.

    Raises:
        UnsupportedSystemError: If the system is not Linux.
        ChildError: If a process of the benchmark fails.
    """
    if not sys.platform.startswith("linux"):
        raise UnsupportedSystemError(
            "the benchmark `gateway` needs Linux: it reads processor times from /proc"
        )
    section = Section("gateway", "gateway: HTTP under Hypercorn")
    before = Conditions.now()
    cores = Cores.chosen()
    results, memory = _measure(settings, cores, steps)
    section.conditions = before.until(Conditions.now())
    section.settings = _settings_told(settings, cores)
    main = settings.cases[0]
    section.goals = [
        Goal(
            f"CPU of the gateway a request, {main.connections} connections",
            550,
            _cpu(results[main]).median * MICROSECONDS,
            "µs",
        ),
        Goal(
            f"errors in {sum(result.requests for result in results[main]):,} requests",
            0,
            sum(result.errors for result in results[main]),
            "",
        ),
    ]
    section.tables = [
        _table("Answers of one piece", results, streamed=False),
        _table(f"Streams of {EVENTS} events", results, streamed=True),
        Table(
            "Resident memory of the gateway",
            ("at start, MiB", "at the end, MiB"),
            [[figure(memory.start), figure(memory.end)]],
        ),
    ]
    section.notes = _notes(results)
    return section


def _measure(
    settings: GatewaySettings, cores: Cores, steps: Steps
) -> tuple[dict[Case, list[LoadResult]], Memory]:
    results: dict[Case, list[LoadResult]] = {case: [] for case in settings.cases}
    steps.begin("start the processes")
    with (
        upstream_process(cores.others) as upstream,
        hypercorn_process(cores.gateway) as bare,
        gateway_process(cores.gateway, upstream.port) as gateway,
    ):
        servers = {Server.UPSTREAM: upstream, Server.HYPERCORN: bare, Server.GATEWAY: gateway}
        for streamed in (False, True):
            _try_once(gateway.port, cores, streamed=streamed)
        start = resident_mib(gateway.pid)
        # Round by round over all cases, so that a bad minute of the machine hits them all.
        for number in range(settings.rounds):
            for case in settings.cases:
                steps.begin(
                    f"round {number + 1}, {case.name}, {case.connections} connections, "
                    f"{case.server.value}"
                )
                requests = int(settings.requests * case.part / settings.rounds)
                plan = LoadPlan(
                    port=servers[case.server].port,
                    requests=max(FEWEST_REQUESTS, requests),
                    connections=case.connections,
                    streamed=case.streamed,
                    paced=case.paced,
                    watched={"server": servers[case.server].pid, "upstream": upstream.pid},
                )
                results[case].append(generate_load(plan, cores.others))
        return results, Memory(start, resident_mib(gateway.pid))


def _try_once(port: int, cores: Cores, *, streamed: bool) -> None:
    """Ask the gateway once: figures about errors would be worth nothing."""
    plan = LoadPlan(port=port, requests=1, connections=1, warm_up=0, streamed=streamed)
    result = generate_load(plan, cores.others)
    if result.errors:
        raise ChildError(f"the gateway does not answer: {result.reasons[0]}")


def _cpu(results: Sequence[LoadResult]) -> Spread:
    """CPU seconds of the server for one request."""
    return Spread.of([result.cpu["server"] / max(1, result.requests) for result in results])


def _table(title: str, results: dict[Case, list[LoadResult]], *, streamed: bool) -> Table:
    rows = [_row(case, rounds) for case, rounds in results.items() if case.streamed is streamed]
    what = "streams" if streamed else "requests"
    columns = [
        "case",
        "server",
        "connections",
        f"{what} a second",
        f"server's CPU, µs a {what[:-1]}",
        *(["µs an event"] if streamed else []),
        "p50, ms",
        "p99, ms",
        "errors",
        "other core busy",
    ]
    return Table(title, tuple(columns), rows)


def _row(case: Case, rounds: list[LoadResult]) -> list[str]:
    cpu = _cpu(rounds).scaled(MICROSECONDS)
    busy = Spread.of([(r.own_cpu + r.cpu["upstream"]) / r.seconds for r in rounds])
    return [
        case.name,
        case.server.value,
        str(case.connections),
        str(Spread.of([result.requests / result.seconds for result in rounds])),
        str(cpu),
        *([figure(cpu.median / EVENTS)] if case.streamed else []),
        str(Spread.of([result.p50 for result in rounds]).scaled(MILLISECONDS)),
        str(Spread.of([result.p99 for result in rounds]).scaled(MILLISECONDS)),
        f"{sum(r.errors for r in rounds)} of {sum(r.requests for r in rounds):,}",
        f"{busy.median:.0%}",
    ]


def _settings_told(settings: GatewaySettings, cores: Cores) -> dict[str, str]:
    server = ServerSettings()
    return {
        "settings": f"{settings.rounds} rounds; in all {settings.requests:,} requests of the main "
        "case; one provider of type `openai_compatible`; telemetry off, logs off; garbage "
        "collection on",
        "server": "one Hypercorn in one process on uvloop, HTTP/1.1 only; backlog "
        f"{server.backlog}, keep-alive {server.keep_alive_seconds:g} s, no limit on requests of "
        "a kept-alive connection, no access log",
        "cores": f"gateway on core {cores.gateway}, load generator and upstream on core "
        f"{cores.others}"
        if can_pin()
        else "processes not pinned to cores",
        "messages": f"request of {REQUEST_BYTES} bytes, answer of {ANSWER_BYTES} bytes, stream of "
        f"{EVENTS} events and an end marker; paced: {EVENT_GAP * 1000:g} ms between events",
    }


def _over_hypercorn(results: dict[Case, list[LoadResult]]) -> Spread:
    """How many times the CPU of Hypercorn alone the gateway takes, round by round."""
    cpu = {
        server: [
            max(result.cpu["server"], 0.001) / max(1, result.requests)
            for result in next(
                rounds
                for case, rounds in results.items()
                if case.server is server and not case.streamed and case.connections > 1
            )
        ]
        for server in (Server.GATEWAY, Server.HYPERCORN)
    }
    pairs = zip(cpu[Server.GATEWAY], cpu[Server.HYPERCORN], strict=True)
    return Spread.of([gateway / hypercorn for gateway, hypercorn in pairs])


def _notes(results: dict[Case, list[LoadResult]]) -> list[str]:
    ratio = _over_hypercorn(results)
    reasons = sorted({why for rounds in results.values() for r in rounds for why in r.reasons})
    return [
        (
            "CPU a request is user and system time of the server's process, and the figure that "
            "counts; requests a second are bounded by whichever core is full first. The system "
            "counts it in hundredths of a second, too coarse for a few hundred requests."
        ),
        (
            "Closed loop: each connection asks again as soon as it has its answer, so latencies "
            "with many connections are mostly waiting time."
        ),
        "Every answer is checked: status, length, and for streams the events and the end marker.",
        (
            "The upstream and the load generator are asyncio protocols on uvloop that search in "
            "bytes; asked directly they show the ceiling of this measurement."
        ),
        (
            "`Hypercorn alone` is an app that reads the request and answers the same bytes: the "
            f"gateway costs {ratio.median:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) of it, "
            "a ratio that holds better on a noisy machine than either value."
        ),
        *([f"Errors: {'; '.join(reasons)}."] if reasons else []),
    ]
