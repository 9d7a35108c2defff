"""Mixed faults for a while: does the gateway keep anything that it should have let go?"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio

from benchmarks.caller import Ending
from benchmarks.children import ChildError
from benchmarks.live_gateway import Held, LiveGateway, live_gateway
from benchmarks.report import Findings, Goal, Table
from benchmarks.scripted_upstream import ScriptedUpstream, serving
from benchmarks.soak_load import CALLERS, CUT, FAILING, KEYED, LEAVING, SLOW, Crowd, lively, shaky
from benchmarks.spread import figure
from benchmarks.trend import Trend

WARM_UP = 0.25
"""Part of the soak after which memory is watched."""

SAMPLES = 160
"""Looks at the process, over the whole soak."""

FEWEST_SAMPLES = 5
"""After the warm-up; a machine that is busy takes longer than it should for a short soak."""

DEADLINE = 20.0
RELOAD_EVERY = 60.0
FEWEST_RELOADS = 5
_SETTLED = 5
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the gateway.

    Attributes:
        held: What its process holds.
        workers: Tasks that wait for the next request, or work at one.
    """

    held: Held
    workers: int

    @property
    def tasks(self) -> int:
        """Tasks that are no workers."""
        return self.held.tasks - self.workers


@dataclass(slots=True)
class Record:
    """What was seen during the soak.

    Attributes:
        samples: Seconds since the start, and a look under load.
        rests: Looks while nothing ran: after the warm-up and at the end.
        conservation: The largest error of the ledger that was ever seen.
        reloads: Reloads that were made.
        status: The last status.
    """

    samples: list[tuple[float, Look]] = field(default_factory=list)
    rests: list[Look] = field(default_factory=list)
    conservation: int = 0
    reloads: int = 0
    status: dict[str, Any] = field(default_factory=dict)


async def measure(seconds: float) -> Findings:
    """Soak for so many seconds.

    Raises:
        ChildError: If the gateway fails.
    """
    rng = random.Random(20)
    upstreams = (
        ScriptedUpstream(lively(rng)),
        ScriptedUpstream(lively(rng)),
        ScriptedUpstream(shaky(rng)),
    )
    async with serving(*upstreams):
        with live_gateway(_config(upstreams, 0)) as gateway:
            soak = _Soak(gateway, upstreams, seconds)
            async with anyio.create_task_group() as group:
                group.start_soon(soak.crowd.run)
                await soak.watch()
                group.cancel_scope.cancel()
    return _findings(soak.record, soak.crowd, seconds)


def _config(upstreams: tuple[ScriptedUpstream, ...], number: int) -> dict[str, Any]:
    """One of the configurations; bounds so small that everything is full after the warm-up."""
    names = ("first", "second", "shaky")
    providers: list[dict[str, Any]] = [
        {"name": name, "type": "openai_compatible", "base_url": upstream.url, "timeout": 10}
        for name, upstream in zip(names, upstreams, strict=True)
    ]
    providers[number % 2]["weight"] = 1 + number % 3
    if number % 3 == 2:
        # This one is gone with its state, and a new one comes with the next reload.
        providers.pop(number % 2)
    return {
        "providers": providers,
        # What watches over deadlines keeps the places of requests that have ended until then.
        "total": DEADLINE,
        "history": 200,
        "idempotency": {"ttl": 20, "entries": 100},
        "retry_budget": {"capacity": 1_000},
    }


class _Soak:
    """Looks at the gateway while the crowd asks, and reloads its configuration."""

    def __init__(
        self, gateway: LiveGateway, upstreams: tuple[ScriptedUpstream, ...], seconds: float
    ) -> None:
        self.crowd = Crowd(gateway.port, seed=21)
        self.record = Record()
        self._gateway = gateway
        self._upstreams = upstreams
        self._seconds = seconds

    async def watch(self) -> None:
        """Carry out the soak.

        Raises:
            ChildError: If the gateway fails.
        """
        begin = anyio.current_time()
        every = self._seconds / SAMPLES
        reload_every = min(RELOAD_EVERY, self._seconds / FEWEST_RELOADS)
        passed = 0.0
        while passed < self._seconds or len(self.record.samples) < FEWEST_SAMPLES:
            await anyio.sleep(every)
            passed = anyio.current_time() - begin
            self.record.samples.append((passed, await self._look()))
            if passed >= reload_every * (self.record.reloads + 1):
                await self._reload()
            if passed >= self._seconds * WARM_UP and not self.record.rests:
                self.record.samples.clear()
                await self._rest()
        await self._rest()

    async def _look(self) -> Look:
        # In this order: the connection over which the status comes must not be counted.
        held = await self._gateway.held()
        status = self.record.status = await self._gateway.status()
        self.record.conservation = max(
            self.record.conservation, abs(status["ledger"]["conservation_error"])
        )
        return Look(held, sum(actor["workers"] for actor in status["actors"]))

    async def _reload(self) -> None:
        self.record.reloads += 1
        self._gateway.write(_config(self._upstreams, self.record.reloads))
        self._gateway.send(signal.SIGHUP)
        wanted = self.record.reloads + 1
        await self._gateway.until(lambda status: status["generation"] == wanted)

    async def _rest(self) -> None:
        """Let everything come to its end, close idle connections, and see what is left."""
        self.crowd.pause()
        try:
            with anyio.fail_after(_PATIENCE):
                while not self.crowd.resting:  # noqa: ASYNC110 - looks on
                    await anyio.sleep(0.02)
            await self._gateway.until(lambda status: not status["ledger"]["in_flight"])
            for upstream in self._upstreams:
                await upstream.close_connections()
            self.record.rests.append(await self._settled())
        except TimeoutError:
            raise ChildError("a caller waits for ever") from None
        finally:
            self.crowd.resume()

    async def _settled(self) -> Look:
        """What is held once connections that were closed are forgotten: the least of some looks."""
        looks = []
        for _ in range(_SETTLED):
            await anyio.sleep(0.1)
            looks.append(await self._look())
        return min(looks, key=lambda look: (look.held.descriptors, look.tasks))


_HOLDINGS: tuple[tuple[str, Callable[[Look], float]], ...] = (
    ("resident memory, MiB", lambda look: look.held.resident_mib),
    ("heap of the C library in use, MiB", lambda look: look.held.heap_mib),
    ("small pieces of memory handed out", lambda look: look.held.blocks),
    ("objects of the garbage collector", lambda look: look.held.objects),
    ("tasks that are no workers", lambda look: look.tasks),
    ("workers", lambda look: look.workers),
    ("threads", lambda look: look.held.threads),
    ("descriptors", lambda look: look.held.descriptors),
)


def _findings(record: Record, crowd: Crowd, seconds: float) -> Findings:
    memory = Trend.of([(second, look.held.resident_mib) for second, look in record.samples])
    first, last = record.rests
    descriptors = last.held.descriptors - first.held.descriptors
    unsettled = crowd.tally.of(Ending.LOST) + crowd.tally.of(Ending.WRONG)
    return Findings(
        goals=[
            Goal(f"growth of memory in {seconds:g} s of mixed faults, an hour", 1.0,
                 memory.per_hour, "MiB"),
            Goal("descriptors at rest, more than after the warm-up", 0, descriptors, ""),
            Goal("tasks at rest, more than after the warm-up", 0, last.tasks - first.tasks, ""),
            Goal("largest conservation error of the soak", 0, record.conservation, ""),
            Goal("requests of the soak lost or cut without a word", 0, unsettled, ""),
        ],
        tables=[_requests_table(record, crowd), _held_table(record)],
        notes=_notes(),
    )  # fmt: skip


def _requests_table(record: Record, crowd: Crowd) -> Table:
    tally, ledger = crowd.tally, record.status["ledger"]
    right, streams = tally.of(Ending.RIGHT), tally.streams
    told = f"{tally.answers[Ending.TOLD]:,} answers, {streams[Ending.TOLD]:,} streams"
    outcomes = ", ".join(f"{count:,} {name}" for name, count in ledger["outcomes"].items())
    rows = [
        ["requests sent", f"{tally.total:,}, of which {tally.left:,} by callers that left"],
        ["right answers", f"{right:,}, of which {streams[Ending.RIGHT]:,} streams"],
        ["told of an error", told],
        ["cut, wrong or lost", f"{tally.of(Ending.WRONG) + tally.of(Ending.LOST):,}"],
        ["one key, different answers", f"{crowd.unlike:,}"],
        ["outcomes in the ledger", outcomes],
        ["attempts", f"{ledger['attempts']:,}, {ledger['wasted']:,} of them wasted"],
        ["reloads", f"{record.reloads:,}"],
    ]
    return Table("Soak: requests", ("what", "value"), rows)


def _held_table(record: Record) -> Table:
    first, last = record.rests
    rows = []
    for name, value in _HOLDINGS:
        samples = [(second, value(look)) for second, look in record.samples]
        values = [each for _, each in samples]
        rows.append(
            [
                name,
                figure(value(first)),
                figure(value(last)),
                f"{figure(min(values))} to {figure(max(values))}",
                str(Trend.of(samples)),
            ]
        )
    columns = ("what the gateway holds", "at rest after the warm-up", "at rest at the end",
               "under load", "slope under load, an hour")  # fmt: skip
    return Table(f"Soak: what is held, {len(record.samples)} samples", columns, rows)


def _notes() -> list[str]:
    return [
        (
            f"Soak: {CALLERS} callers, three providers, one of which fails {FAILING:.0%} of its "
            f"calls (500, 503, 429, reset, HTML), is slow in {SLOW:.0%} and cuts {CUT:.0%} in the "
            f"middle; {LEAVING:.0%} of the callers leave early, {KEYED:.0%} ask three times with "
            "one idempotency key; reloads change weights, and take a provider away and bring it "
            "back."
        ),
        (
            f"Memory counts after the first {WARM_UP:.0%}: caches are bounded (200 stories, 100 "
            f"kept answers for 20 s, deadlines of {DEADLINE:g} s) and full by then. The slope is "
            "by least squares with its standard error, samples taken after a full garbage "
            "collection."
        ),
        (
            "Resident memory also moves by whole arenas that the allocator keeps or gives back, "
            "which the extrapolation of a short run to an hour makes large. The heap in use, the "
            "small pieces that the interpreter has handed out, and its objects know no arenas: a "
            "leak shows there first, and without one what is held at rest does not grow."
        ),
        (
            "At rest: no caller is there and the providers have closed their connections, so every "
            "descriptor that is left is one that the gateway keeps for itself. Workers that wait "
            "for the next request are not counted as tasks: they are as many as were ever busy at "
            "the same time, within their bound."
        ),
    ]
