"""The chosen provider fails: does the other one answer, and does the caller notice?"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.caller import Answer, Caller, Ending
from benchmarks.live_gateway import live_gateway
from benchmarks.report import Findings, Goal, Table
from benchmarks.scripted_upstream import (
    Behaviour,
    ScriptedUpstream,
    error_first,
    html,
    reset,
    serving,
    status,
    well,
)
from benchmarks.spread import MILLISECONDS, Spread
from benchmarks.wire import request_body, request_message

REFUSES = "refuses the connection"
FAULTS: Mapping[str, Behaviour] = {
    "resets after the request": reset,
    "500": status("500 Internal Server Error"),
    "503": status("503 Service Unavailable"),
    "429": status("429 Too Many Requests"),
    "200 with HTML": html,
    "200, then an error first": error_first,
}
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Series:
    """The calls of one fault.

    Attributes:
        fault: What the chosen provider does.
        streamed: Whether the answers are streams.
        answered: Calls that the other provider answered, rightly and as the second attempt.
        seconds: How long each took.
        problems: What came in the place of such an answer, the first few.
    """

    fault: str
    streamed: bool
    answered: int
    seconds: list[float]
    problems: list[str]


async def measure(calls: int) -> Findings:
    """Make so many calls for each fault, whole and streamed.

    Raises:
        ChildError: If the gateway does not start.
    """
    other = ScriptedUpstream(well())
    faulty = {fault: ScriptedUpstream(behaviour) for fault, behaviour in FAULTS.items()}
    with _refusing() as port:
        async with serving(other, *faulty.values()):
            urls = {REFUSES: f"http://127.0.0.1:{port}/v1"}
            urls |= {fault: upstream.url for fault, upstream in faulty.items()}
            with live_gateway(_config(urls, other.url, calls)) as gateway:
                series = [
                    await _calls(gateway.port, f"fault{number}", fault, calls, streamed=streamed)
                    for number, fault in enumerate(urls)
                    for streamed in (False, True)
                ]
    return _findings(series, calls)


def _config(urls: Mapping[str, str], other: str, calls: int) -> dict[str, Any]:
    """A provider and a model for each call: no call finds what an earlier one has taught."""
    faulty = [
        {"name": name, "type": "openai_compatible", "base_url": url}
        for number, url in enumerate(urls.values())
        for name in _names(f"fault{number}", 2 * calls)
    ]
    models = [
        {
            "name": provider["name"],
            "targets": [{"provider": provider["name"]}, {"provider": OTHER, "tier": 1}],
            "retries": {"repeat_maybe_accepted": "always"},
        }
        for provider in faulty
    ]
    provider = {"name": OTHER, "type": "openai_compatible", "base_url": other}
    return {
        "providers": [*faulty, provider],
        "models": models,
        "retry_budget": {"capacity": 1_000_000},
    }


def _names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{number}" for number in range(count)]


async def _calls(port: int, prefix: str, fault: str, calls: int, *, streamed: bool) -> Series:
    names = _names(prefix, 2 * calls)[streamed::2]
    series = Series(fault, streamed, 0, [], [])
    answered = 0
    async with Caller(port) as caller:
        for name in names:
            body = request_body(streamed=streamed, model=name)
            begin = time.perf_counter()
            answer = await caller.ask(request_message(port, body))
            series.seconds.append(time.perf_counter() - begin)
            problem = "nobody listens" if answer is None else _problem(answer)
            answered += problem is None
            if problem is not None and len(series.problems) < 3:
                series.problems.append(problem)
    return Series(fault, streamed, answered, series.seconds, series.problems)


def _problem(answer: Answer) -> str | None:
    """What is wrong with an answer; None if the other provider gave it at the second attempt."""
    provider = answer.fields.get("x-gateway-provider", "nobody")
    attempts = answer.fields.get("x-gateway-attempts", "none")
    if (answer.status, answer.ending, provider, attempts) == (200, Ending.RIGHT, OTHER, "2"):
        return None
    return f"{answer.status}, {answer.ending.value}, by {provider}, attempts: {attempts}"


def _findings(series: list[Series], calls: int) -> Findings:
    total = calls * len(series)
    missed = total - sum(each.answered for each in series)
    rows = [
        [
            each.fault,
            "streamed" if each.streamed else "whole",
            f"{each.answered} of {calls}",
            str(Spread.of(each.seconds).scaled(MILLISECONDS)),
            "; ".join(each.problems) or "none",
        ]
        for each in series
    ]
    columns = ("the chosen provider", "answer", "200 by the other one, 2 attempts",
               "the call, ms (least to most)", "else")  # fmt: skip
    return Findings(
        goals=[Goal(f"calls not failed over, of {total:,}", 0, missed, "")],
        tables=[Table("Failover of a call, over loopback", columns, rows)],
        notes=[
            (
                "Failover: every call has a provider and a model of its own, so that none is "
                "spared its first attempt by what an earlier one has taught; the other provider "
                "stands in the next tier. `repeat_maybe_accepted` is `always` here; unless told "
                "so, a streamed call is not repeated after a reset, since it may have been billed."
            )
        ],
    )


@contextmanager
def _refusing() -> Iterator[int]:
    """A port that is taken, so that nobody else gets it, and refuses all connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
