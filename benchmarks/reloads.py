"""A gateway under load is given new configurations, and then told to end: what is lost?"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from benchmarks.caller import Caller, Ending, Tally, fetch
from benchmarks.children import ChildError
from benchmarks.live_gateway import LiveGateway, live_gateway
from benchmarks.report import Findings, Goal, Table
from benchmarks.scripted_upstream import ScriptedUpstream, serving, well
from benchmarks.spread import figure
from benchmarks.wire import CHUNKS, request_body, request_message

ASKERS = 6
STREAMERS = 4
GAP = 0.01
"""Seconds between two events: a stream of 23 lasts longer than two reloads are apart."""

DRAIN = 15.0
PRE_STOP = 0.5
STREAM = 1.2
"""Seconds that a stream lasts where the end comes: longer than requests are still taken."""


class Load:
    """Callers that ask without a pause, until nobody listens or they are told to stop.

    Args:
        port: Where they ask.
    """

    def __init__(self, port: int) -> None:
        self.tally = Tally()
        self.stopped = False
        self._port = port

    @asynccontextmanager
    async def running(
        self, *, askers: int = ASKERS, streamers: int = STREAMERS
    ) -> AsyncIterator[None]:
        """Ask while the context lasts; it ends when the last caller has got its answer."""
        async with anyio.create_task_group() as group:
            for number in range(askers + streamers):
                group.start_soon(self._ask_on, number >= askers)
            try:
                yield
            finally:
                self.stopped = True

    async def until_answers(self, count: int) -> None:
        """Wait until so many more answers have come.

        Raises:
            ChildError: If they never do.
        """
        wanted = self.tally.total + count
        with anyio.move_on_after(20):
            while self.tally.total < wanted:  # noqa: ASYNC110 - looks on
                await anyio.sleep(0.005)
            return
        raise ChildError("the gateway does not answer")

    async def _ask_on(self, streamed: bool) -> None:
        message = request_message(self._port, request_body(streamed=streamed))
        async with Caller(self._port) as caller:
            while not self.stopped and (answer := await caller.ask(message)) is not None:
                self.tally.count(answer, streamed=streamed)


def _provider(name: str, upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "openai_compatible", "base_url": upstream.url, **more}


def _configs(upstreams: tuple[ScriptedUpstream, ...]) -> list[dict[str, Any]]:
    """Configurations that differ from each other in all that a reload may change."""
    first, second, third = (
        _provider(name, upstream)
        for name, upstream in zip(("first", "second", "third"), upstreams, strict=True)
    )
    moved = _provider("first", upstreams[1])
    versions: list[list[dict[str, Any]]] = [
        [{**first, "weight": 3}, second],
        [first, second, third],
        [second, {**third, "limits": {"concurrency": 32}}],
        [{**first, "timeout": 20}, {**second, "enabled": False}, third],
        [moved, {**third, "weight": 0}],
    ]
    configs = [{"providers": version, "server": {"drain": DRAIN}} for version in versions]
    return [*configs, {**configs[1], "balancer": "smooth_weighted"}]


async def measure_reloads(count: int) -> Findings:
    """Apply so many configurations under load, by SIGHUP and by the admin route in turn.

    Raises:
        ChildError: If a reload is refused, or the gateway fails otherwise.
    """
    upstreams = tuple(ScriptedUpstream(well(latency=0.005, gap=GAP)) for _ in range(3))
    async with serving(*upstreams):
        configs = _configs(upstreams)
        with live_gateway(configs[0]) as gateway:
            load = Load(gateway.port)
            begin = time.perf_counter()
            async with load.running():
                await load.until_answers(ASKERS)
                for number in range(count):
                    gateway.write(configs[(number + 1) % len(configs)])
                    await _reload(gateway, number + 2, by_signal=number % 2 == 0)
                await load.until_answers(ASKERS + STREAMERS)
            seconds = time.perf_counter() - begin
            status = await gateway.status()
    return _reloads_found(load.tally, status, count, seconds)


async def _reload(gateway: LiveGateway, generation: int, *, by_signal: bool) -> None:
    if by_signal:
        gateway.send(signal.SIGHUP)
    else:
        answer = await fetch(gateway.admin_port, "/admin/reload", method="POST")
        if answer.status != 200:
            raise ChildError(f"a reload was answered with {answer.status}")
    await gateway.until(lambda status: status["generation"] == generation)


def _reloads_found(tally: Tally, status: dict[str, Any], count: int, seconds: float) -> Findings:
    ledger = status["ledger"]
    unaccounted = abs(ledger["accepted"] - tally.total) + abs(ledger["conservation_error"])
    words = f"{figure(seconds)} s in all; unaccounted in the ledger: {unaccounted}"
    failed = tally.total - tally.of(Ending.RIGHT)
    return Findings(
        goals=[Goal(f"requests lost or failed over {count} reloads under load", 0, failed, "")],
        tables=[
            Table(f"{count} reloads under load, over loopback", _COLUMNS, [[*_row(tally), words]])
        ],
    )


_COLUMNS = ("answers right", "streams right", "told of an error", "cut or wrong", "lost", "else")


def _row(tally: Tally) -> list[str]:
    return [
        f"{tally.answers[Ending.RIGHT]:,}",
        f"{tally.streams[Ending.RIGHT]:,}",
        f"{tally.of(Ending.TOLD):,}",
        f"{tally.of(Ending.WRONG):,}",
        f"{tally.of(Ending.LOST):,}",
    ]


async def measure_end(rounds: int) -> Findings:
    """Send SIGTERM under load, so many times to a new gateway each time.

    Raises:
        ChildError: If a gateway does not start or does not answer.
    """
    upstream = ScriptedUpstream(well(latency=0.005, gap=STREAM / len(CHUNKS)))
    tallies, codes, seconds = [], [], []
    async with serving(upstream):
        config = {
            "providers": [_provider("only", upstream)],
            "server": {"drain": DRAIN, "pre_stop": PRE_STOP},
        }
        for number in range(rounds):
            with live_gateway(config) as gateway:
                load = Load(gateway.port)
                async with load.running():
                    await load.until_answers(ASKERS * 5)
                    # The streams are at another point each time, when the end comes.
                    await anyio.sleep(STREAM / rounds * number)
                    begin = time.perf_counter()
                    gateway.send(signal.SIGTERM)
                    # Callers go on: what they get during the drain is what counts.
                    codes.append(await gateway.ends(DRAIN + 10))
                seconds.append(time.perf_counter() - begin)
                tallies.append(load.tally)
    return _end_found(tallies, codes, seconds)


def _end_found(tallies: list[Tally], codes: list[int | None], seconds: list[float]) -> Findings:
    rounds = len(tallies)
    lost = sum(tally.of(Ending.LOST) + tally.answers[Ending.WRONG] for tally in tallies)
    # Within the drain limit every stream that has begun must end as it should.
    cut = sum(tally.streams[Ending.WRONG] for tally in tallies)
    cut += sum(_begun_and_told(tally) for tally in tallies)
    unclean = sum(code != 0 for code in codes)
    rows = [
        [*_row(tally), f"exit code {code}, gone after {figure(gone)} s"]
        for tally, code, gone in zip(tallies, codes, seconds, strict=True)
    ]
    return Findings(
        goals=[
            Goal(f"requests lost over {rounds} SIGTERM under load", 0, lost, ""),
            Goal("streams cut before the drain limit", 0, cut, ""),
            Goal("ends with another exit code than 0", 0, unclean, ""),
        ],
        tables=[Table("SIGTERM under load, over loopback", _COLUMNS, rows)],
        notes=[
            (
                "SIGTERM: a request that comes when no more are taken is told so by 503 with "
                "Retry-After, and its connection is closed after that; it is told, not lost. A "
                "stream that has begun must come to its own end."
            )
        ],
    )


def _begun_and_told(tally: Tally) -> int:
    """Streams that began with 200 and ended with an error event."""
    refused = sum(count for status, count in tally.statuses.items() if status not in (0, 200))
    return max(0, tally.of(Ending.TOLD) - refused)
