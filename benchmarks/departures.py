"""A caller leaves: how soon does the gateway close its connection to the provider?"""

from __future__ import annotations

import time
from dataclasses import dataclass

import anyio

from benchmarks.caller import Caller
from benchmarks.children import ChildError
from benchmarks.live_gateway import LiveGateway, live_gateway
from benchmarks.report import Findings, Goal, Table
from benchmarks.scripted_upstream import (
    ScriptedUpstream,
    serving,
    silent,
    silent_after_events,
)
from benchmarks.spread import MILLISECONDS, figure, percentile
from benchmarks.wire import request_body, request_message

WITHIN = 0.1
"""Seconds from the caller's FIN to the end of the connection to the provider."""

_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Case:
    """When callers leave.

    Attributes:
        name: For people.
        streamed: Whether they wanted streams.
        begun: Whether they leave after the first events.
    """

    name: str
    streamed: bool
    begun: bool = False


CASES = (
    Case("whole answer, before it", streamed=False),
    Case("stream, before its first event", streamed=True),
    Case("stream, between two events", streamed=True, begun=True),
)


async def measure(departures: int) -> Findings:
    """Let so many callers leave in each case, one after the other.

    Raises:
        ChildError: If the gateway does not start, or does not close a connection at all.
    """
    upstream = ScriptedUpstream(silent)
    provider = {"name": "silent", "type": "openai_compatible"}
    seconds: dict[Case, list[float]] = {}
    async with serving(upstream):
        config = {"providers": [{**provider, "base_url": upstream.url}]}
        with live_gateway(config) as gateway:
            for case in CASES:
                upstream.behaviour = silent_after_events if case.begun else silent
                await _leave_once(gateway, upstream, case)
                seconds[case] = [
                    await _leave_once(gateway, upstream, case) for _ in range(departures)
                ]
            status = await gateway.until(lambda status: not status["ledger"]["in_flight"])
    left = int(status["ledger"]["outcomes"]["cancelled"])
    if left != (departures + 1) * len(CASES):
        raise ChildError(f"the gateway counted {left} callers that left")
    return _findings(seconds, departures)


async def _leave_once(gateway: LiveGateway, upstream: ScriptedUpstream, case: Case) -> float:
    """Ask, leave, and give the seconds until the upstream saw its connection end."""
    asked = upstream.asked
    async with Caller(gateway.port) as caller:
        body = request_body(streamed=case.streamed)
        if not await caller.send(request_message(gateway.port, body)):
            raise ChildError("the gateway takes no connection")
        if case.begun:
            await caller.receive_some(b"data: ")
        await _until(upstream, asked=asked + 1, opened=1)
        begin = time.perf_counter()
        await caller.leave()
        await _until(upstream, asked=asked + 1, opened=0)
    return upstream.closed_at - begin


async def _until(upstream: ScriptedUpstream, *, asked: int, opened: int) -> None:
    """Wait until the upstream has seen so many requests, and has so many connections."""
    with anyio.move_on_after(_PATIENCE):
        while upstream.asked != asked or upstream.open != opened:  # noqa: ASYNC110 - looks on
            await anyio.sleep(0.001)
        return
    raise ChildError(f"the upstream has {upstream.open} connections, not {opened}")


def _findings(seconds: dict[Case, list[float]], departures: int) -> Findings:
    every = sorted(value for values in seconds.values() for value in values)
    rows = []
    for case, values in seconds.items():
        ordered = sorted(values)
        worst = (percentile(ordered, 0.5), percentile(ordered, 0.99), ordered[-1])
        rows.append([case.name, *(figure(value * MILLISECONDS) for value in worst)])
    return Findings(
        goals=[
            Goal(
                f"upstream closed after the caller's FIN, the slowest of {len(every):,}",
                WITHIN * MILLISECONDS,
                every[-1] * MILLISECONDS,
                "ms",
            )
        ],
        tables=[
            Table(
                f"From the caller's FIN to the upstream's end of connection, {departures} callers",
                ("the caller wanted, and left", "median, ms", "p99, ms", "most, ms"),
                rows,
            )
        ],
    )
