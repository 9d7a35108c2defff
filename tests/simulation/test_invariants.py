"""The referee notices each promise that is broken: here everybody breaks them on purpose."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from adapters.simulation.invariants import PROMPT, Referee
from adapters.simulation.requests import Asked, chat_request
from adapters.simulation.scenario import BehaviourConfig
from adapters.simulation.terms import Terms
from adapters.simulation.upstream import Upstream
from adapters.simulation.virtual_loop import VirtualLoop
from engine.attempt import Attempt
from engine.config import GatewayConfig, TimeoutsConfig
from engine.errors import BrokenError, ConnectError
from engine.ledger import LedgerStatus, Outcome
from engine.status import RouterStatus

CONFIG = {
    "providers": [{"name": "a", "type": "mock", "limits": {"concurrency": 2}}],
    "retries": {"max_attempts": 2},
    "retry_budget": {"capacity": 1, "per_second": 0, "per_success": 0},
    "total": 5.0,
}
REQUEST = chat_request("m", input_tokens=1, output_tokens=1, streamed=False)


class Bench:
    """A referee with one upstream, and requests by hand."""

    def __init__(self, **config: Any) -> None:
        self.loop = VirtualLoop.make()
        terms = Terms.of(GatewayConfig.model_validate({**CONFIG, **config}))
        self.referee = Referee(self.loop, terms)
        self.upstream = Upstream(
            "a", loop=self.loop, watcher=self.referee, behaviour=BehaviourConfig()
        )

    def ask(self, request_id: str = "r", **options: Any) -> Asked:
        """A request comes in."""
        asked = Asked(0.0, REQUEST, **options)
        self.referee.taken_in(asked, request_id)
        return asked

    def call(self, request_id: str = "r") -> Any:
        """A call for it arrives upstream."""
        attempt = Attempt(REQUEST, "m", request_id, timeouts=TimeoutsConfig())
        return self.upstream.begin(attempt)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.loop.run(self.loop.pause(seconds))

    def status(self, **counts: int) -> RouterStatus:
        """What a router might say."""
        outcomes = dict.fromkeys(Outcome, 0) | {Outcome(key): n for key, n in counts.items()}
        open_now = len(self.referee.open)
        ledger = LedgerStatus(self.referee.accepted, open_now, outcomes)
        return RouterStatus(ready=True, ledger=ledger, actors=(), seed=0)

    @property
    def broken(self) -> list[str]:
        """Numbers of the broken promises."""
        return [broken.invariant for broken in self.referee.broken]


Run = Callable[[Coroutine[Any, Any, Any]], Any]


def test_a_request_that_goes_well_breaks_nothing() -> None:
    """One call, one ending, in time."""
    bench = Bench()
    asked = bench.ask()
    call = bench.call()
    bench.wait(1)
    bench.upstream.end(call)
    bench.referee.ended(asked, "r", Outcome.COMPLETED)
    bench.referee.inspect_rest(bench.status(completed=1), [bench.upstream])
    assert bench.broken == []
    assert bench.referee.checks > 0


def test_a_lost_request_is_noticed() -> None:
    """I1: the ledger's counts do not add up."""
    bench = Bench()
    bench.ask()
    status = bench.status(completed=1)
    bench.referee.inspect(status, [])
    assert bench.broken == ["I1"]


def test_a_request_that_was_not_counted_is_noticed() -> None:
    """I1: more were asked than the router knows of."""
    bench = Bench()
    status = bench.status()
    bench.ask()
    bench.referee.inspect(status, [])
    assert bench.broken == ["I1"]


def test_a_call_after_the_ending_is_noticed() -> None:
    """I2: something is sent for a request whose caller has an answer."""
    bench = Bench()
    asked = bench.ask()
    bench.referee.ended(asked, "r", Outcome.COMPLETED)
    bench.call()
    assert bench.broken == ["I2"]


def test_an_ending_that_nobody_heard_is_noticed() -> None:
    """I2: the ledger's outcomes are not those of the callers."""
    bench = Bench()
    asked = bench.ask()
    bench.referee.ended(asked, "r", Outcome.FAILED)
    bench.referee.inspect_rest(bench.status(completed=1), [])
    assert bench.broken == ["I2"]


def test_a_wrong_count_of_attempts_is_noticed() -> None:
    """I2: an answer tells of more attempts than were made."""
    bench = Bench()
    asked = bench.ask()
    bench.call()
    bench.referee.told_attempts(asked, "r", 2)
    assert bench.broken == ["I2"]


@pytest.mark.parametrize("timeout", [None, 2.0])
def test_a_call_after_the_deadline_is_noticed(timeout: float | None) -> None:
    """I3: something is sent although the time is over."""
    bench = Bench()
    asked = bench.ask(timeout=timeout)
    bench.wait(asked.deadline - bench.loop.time())
    bench.call()
    assert bench.broken == ["I3"]


def test_a_call_that_outlives_the_deadline_is_noticed() -> None:
    """I3: a call runs on more than 100 ms after the deadline, told when it is looked at."""
    bench = Bench()
    asked = bench.ask()
    bench.call()
    bench.referee.ended(asked, "r", Outcome.FAILED)
    asked.ended = None
    bench.wait(5 + PROMPT + 0.01)
    bench.referee.inspect(bench.status(failed=1), [bench.upstream])
    assert bench.broken == ["I3"]


def test_a_caller_who_hears_late_is_noticed() -> None:
    """I3: the ending comes more than 100 ms after the deadline; just within is well."""
    bench = Bench()
    on_time, late = bench.ask("on time"), bench.ask("late")
    bench.wait(5.05)
    bench.referee.ended(on_time, "on time", Outcome.FAILED)
    assert bench.broken == []
    bench.wait(0.1)
    bench.referee.ended(late, "late", Outcome.FAILED)
    assert bench.broken == ["I3"]


def test_a_call_that_is_not_closed_is_noticed() -> None:
    """I4: a call runs on although its caller has left a second ago."""
    bench = Bench()
    asked = bench.ask()
    call = bench.call()
    bench.referee.ended(asked, "r", Outcome.CANCELLED)
    bench.wait(1.5)
    bench.upstream.end(call)
    assert bench.broken == ["I4"]


def test_what_is_left_open_is_noticed() -> None:
    """I4: at rest, an upstream still holds a call."""
    bench = Bench()
    asked = bench.ask()
    bench.call()
    bench.referee.ended(asked, "r", Outcome.COMPLETED)
    bench.referee.inspect_rest(bench.status(completed=1), [bench.upstream])
    assert bench.broken == ["I4"]


def test_a_repeat_that_may_be_billed_twice_is_noticed() -> None:
    """I14: sent again although it may have been executed, and nobody allowed it."""
    bench = Bench(retries={"repeat_maybe_accepted": "never"})
    asked = bench.ask()
    first = bench.call()
    bench.upstream.failed(first, ConnectError("not sent"))
    bench.upstream.end(first)
    assert not asked.maybe_billed
    second = bench.call()
    bench.upstream.failed(second, BrokenError("sent"))
    bench.upstream.end(second)
    assert bench.broken == []
    bench.call()
    assert bench.broken == ["I14"]


def test_a_repeat_after_a_part_of_an_answer_is_noticed() -> None:
    """I2: sent again although the caller has seen the beginning of an answer."""
    bench = Bench()
    asked = bench.ask()
    bench.upstream.end(bench.call())
    asked.committed = True
    bench.call()
    assert bench.broken == ["I2"]


def test_one_attempt_too_many_is_noticed() -> None:
    """I6: a request takes more attempts than it may."""
    bench = Bench()
    bench.ask()
    for _ in range(3):
        bench.upstream.end(bench.call())
    assert bench.broken == ["I6"]


def test_more_repeats_than_the_budget_are_noticed() -> None:
    """I6: all requests together take more attempts than the budget allows."""
    bench = Bench()
    for number in range(3):
        bench.ask(str(number))
        for _ in range(2):
            bench.upstream.end(bench.call(str(number)))
    bench.referee.inspect(bench.status(), [])
    assert bench.broken == ["I6"]


def test_one_call_too_many_at_a_time_is_noticed() -> None:
    """I7: more calls are open than the provider's concurrency."""
    bench = Bench()
    for number in range(3):
        bench.ask(str(number))
        bench.call(str(number))
    assert bench.broken == ["I7"]


def test_more_calls_than_the_rate_are_noticed() -> None:
    """I7: more calls begin within a minute than 1.1 times the rate."""
    provider = {"name": "a", "type": "mock", "limits": {"requests_per_minute": 10}}
    bench = Bench(providers=[provider])
    for number in range(13):
        asked = bench.ask(str(number))
        bench.upstream.end(bench.call(str(number)))
        bench.referee.ended(asked, str(number), Outcome.COMPLETED)
    assert bench.broken == ["I7"]


def test_after_a_reload_two_actors_may_be_busy() -> None:
    """The calls of the former actor do not count against the limit of its successor."""
    bench = Bench()
    other = {**CONFIG, "providers": [{**CONFIG["providers"][0], "timeout": 3}]}  # type: ignore[index]
    for number in range(2):
        bench.ask(str(number))
        bench.call(str(number))
    bench.referee.reload_begins(Terms.of(GatewayConfig.model_validate(other)))
    bench.referee.reload_ends(applied=True)
    for number in range(2, 4):
        bench.ask(str(number))
        bench.call(str(number))
    assert bench.broken == []
    bench.ask("5")
    bench.call("5")
    assert bench.broken == ["I7"]


def test_many_broken_promises_are_counted_but_not_all_kept() -> None:
    """A run in which everything is wrong does not fill the memory."""
    bench = Bench()
    for _ in range(1_000):
        bench.referee.report("I1", "on purpose")
    assert bench.referee.broken_count == 1_000
    assert len(bench.referee.broken) == 50
