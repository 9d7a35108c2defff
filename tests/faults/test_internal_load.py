"""Too much load, deadlines that pass in the queue, and a loop that stands still."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fault_table import Row, shows
from scripted import CHAT, Hang, Ok, ScriptedProvider, assert_settled, make_router, until

from adapters.simulation.scenario import Scenario
from adapters.simulation.simulation import Simulation, simulate
from engine import DeadlineExceededError, GatewayConfig, GatewayError, RejectedError

Virtual = Callable[..., None]

SIGMA = 0.8
MEDIAN = math.exp(-(SIGMA**2) / 2)
"""Of a log-normal service time with a mean of one second."""

PLACES = 100
DEADLINE = 5.0


@shows(Row(
    "N5", "the mailbox is full", "503 `mailbox_full`, `Retry-After: 1`", "elsewhere", "nothing",
    "not at all", "Said at once: nobody ever waits for room in a mailbox.",
))  # fmt: skip
async def test_n5_queue_full() -> None:
    """N5: whoever finds no room is told in the same turn, with a time to come back."""
    provider = ScriptedProvider("a", then=Hang(), limits={"concurrency": 2, "queue": 10})
    refusals: list[RejectedError] = []
    async with make_router(provider) as router, anyio.create_task_group() as group:

        async def ask() -> None:
            try:
                await router.complete(CHAT)
            except RejectedError as error:
                refusals.append(error)

        for _ in range(500):
            group.start_soon(ask)
        await until(lambda: len(refusals) >= 489)
        status = router.status()
        # A tenth of the mailbox is kept for requests that matter more.
        assert (len(refusals), status.actors[0].mailbox.depth, status.ledger.in_flight) == (
            489, 9, 11,
        )  # fmt: skip
        assert {error.reason for error in refusals} == {"mailbox_full"}
        assert {error.status for error in refusals} == {503}
        assert all((error.retry_after or 0) > 0 for error in refusals)
        assert status.ledger.conservation_error == 0
        group.cancel_scope.cancel()
    assert len(provider.calls) == 2


@shows(Row(
    "N6", "the deadline passes in the queue", "504 `deadline_exceeded`", "nothing", "nothing",
    "not at all",
))  # fmt: skip
def test_n6_deadline_passes_in_the_queue(virtual_time: Virtual) -> None:
    """N6: whoever waits too long is answered at its deadline and never sent."""

    async def main() -> None:
        provider = ScriptedProvider(
            "a",
            Ok(after=60),
            timeout=90,
            limits={"concurrency": 1, "queue": 10},
            timeouts={"headers": 90},
        )
        late: list[float] = []

        async def wait(seconds: float) -> None:
            with pytest.raises(DeadlineExceededError) as caught:
                await router.complete(CHAT, timeout=seconds)
            assert caught.value.status == 504
            late.append(anyio.current_time() - begun - seconds)

        async with make_router(provider) as router:
            async with anyio.create_task_group() as group:
                group.start_soon(router.complete, CHAT)
                await until(lambda: provider.running == 1)
                begun = anyio.current_time()
                for seconds in (1, 2, 3, 4, 5):
                    group.start_soon(wait, seconds)
            assert max(late) <= 0.1
            mailbox = router.status().actors[0].mailbox
            assert (mailbox.offered, mailbox.taken, mailbox.withdrawn) == (5, 0, 5)
        assert len(provider.calls) == 1
        assert_settled(router, completed=1, failed=5)

    virtual_time(main)


@shows(Row(
    "N13", "the event loop stands still for two seconds", "504 `deadline_exceeded` where the "
    "deadline has passed, else the answer", "nothing", "maybe, if a call was under way",
    "not at all", "Nothing is sent after its deadline, and what waits goes on.",
))  # fmt: skip
async def test_n13_blocked_loop() -> None:
    """N13: a callback that blocks for two seconds makes requests fail, and none late."""
    provider = ScriptedProvider("a", Ok(after=0.1), limits={"concurrency": 1, "queue": 50})
    heard: dict[str, str] = {}

    async def ask(name: str, timeout: float) -> None:
        try:
            await router.complete(CHAT, timeout=timeout)
            heard[name] = "completed"
        except GatewayError as error:
            heard[name] = error.code or ""

    async with make_router(provider) as router, anyio.create_task_group() as group:
        group.start_soon(ask, "first", 30)
        await until(lambda: provider.running == 1)
        for number in range(10):
            group.start_soon(ask, f"short {number}", 1.5)
            group.start_soon(ask, f"long {number}", 30)
        await until(lambda: router.status().actors[0].mailbox.depth == 20)
        time.sleep(2)  # noqa: ASYNC251 - this is the fault
        blocked_until = anyio.current_time()
        await until(lambda: len(heard) == 21)
    assert heard.pop("first") == "completed"
    for name, ending in heard.items():
        assert ending == ("completed" if name.startswith("long") else "deadline_exceeded"), name
    # The short ones were dropped without a call: eleven were made, none of them too late.
    assert len(provider.calls) == 11
    assert [call.at >= blocked_until for call in provider.calls] == [False] + [True] * 10
    assert_settled(router, completed=11, failed=10)


def overload(factor: int) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Run a provider at some multiple of what it can take, and then at half of it."""
    config = {
        "name": "a",
        "type": "mock",
        "limits": {"concurrency": PLACES, "queue": 128},
    }
    scenario = {
        "duration": 36,
        "seed": 3,
        "phases": [
            {"at": 0, "until": 14, "rate": PLACES * factor, "deadline": DEADLINE},
            {"at": 14, "until": 36, "rate": PLACES / 2, "deadline": DEADLINE},
        ],
        "providers": {
            "*": {
                "latency": {
                    "kind": "lognormal",
                    "median": MEDIAN,
                    "p95": MEDIAN * math.exp(1.6449 * SIGMA),
                }
            }
        },
    }
    result = simulate(
        Simulation(
            GatewayConfig.model_validate({"providers": [config]}), Scenario.model_validate(scenario)
        )
    )
    assert result.ok, result.broken
    assert result.series["step_seconds"] == 1
    return result.summary, result.series


@pytest.mark.parametrize("factor", [2, 10])
@shows(Row(
    "N14", "two and ten times the load that can be served", "the answer, or 503 `mailbox_full` or "
    "`queue_too_long` with `Retry-After`, at once", "elsewhere", "nothing for what is refused",
    "not at all", "What can be served is served, newest first while the queue is long; whatever "
    "was let in ends by its deadline, some of it with 504.",
))  # fmt: skip
def test_n14_overload(factor: int) -> None:
    """N14: the goodput stays at the capacity, and the load's end is the trouble's end."""
    summary, series = overload(factor)
    # Seeded Poisson arrivals, a log-normal service time with a mean of 1 s: in virtual time.
    goodput = sum(series["completed"][3:14]) / 11 / PLACES
    print(f"{factor}x: goodput {goodput:.1%} of capacity, latency {summary['latency']}")
    print(f"shed {summary['shed']}, outcomes {summary['outcomes']}")
    assert goodput >= 0.95
    assert summary["latency"]["max"] <= DEADLINE + 0.1
    # Whoever cannot be served hears so at once, and hardly anybody in the last moment.
    assert sum(series["rejected"]) >= 14 * PLACES * (factor - 1) * 0.6
    assert sum(series["failed"]) <= 0.15 * sum(series["arrivals"])
    # Ten seconds after the load has fallen, all that come are served; some take over 5 s.
    after = {name: sum(series[name][24:36]) for name in ("completed", "rejected", "failed")}
    assert after["rejected"] == 0
    assert after["failed"] <= 0.03 * after["completed"]
    assert after["completed"] >= 0.9 * 12 * PLACES / 2
    assert max(series["p95"][24:35]) < DEADLINE
