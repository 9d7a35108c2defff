"""The real engine on a virtual clock: what becomes of the requests, and that it repeats."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest

from adapters.simulation.result import Result, to_json
from adapters.simulation.scenario import FaultKind
from adapters.simulation.simulation import watched_limits
from adapters.simulation.virtual_loop import VirtualLoop
from engine.router import Router

Run = Callable[..., Result]
FAST = {"*": {"latency": 0.2}}
STREAMS = [{"rate": 10, "streamed": 1.0}]


def outcomes(result: Result) -> dict[str, int]:
    """The outcomes that happened, of a run that kept every promise."""
    assert result.ok, result.broken
    return {word: count for word, count in result.summary["outcomes"].items() if count}


def test_requests_take_the_time_of_their_upstream(run: Run) -> None:
    """Constant latency and no fault: everything is completed in exactly that time."""
    result = run(upstreams={"*": {"latency": 1.0}}, phases=[{"rate": 10, "arrivals": "constant"}])
    assert outcomes(result) == {"completed": 199}
    assert result.summary["latency"]["max"] == pytest.approx(1.0)
    assert result.summary["attempts"]["per_request"] == 1


def test_tokens_take_their_time_too(run: Run) -> None:
    """Half a second to the first token and 100 tokens at 50 a second: 2.5 s, streamed or not."""
    behaviour = {"latency": 0.5, "tokens_per_second": 50, "events": 5}
    for streamed in (0, 1):
        phases = [{"rate": 2, "streamed": streamed, "output_tokens": 100}]
        result = run(upstreams={"*": behaviour}, phases=phases)
        outcomes(result)
        assert result.summary["latency"]["max"] == pytest.approx(2.5)
        if streamed:
            assert result.summary["first_event"]["max"] == pytest.approx(0.5)


def test_shares_follow_the_weights(run: Run) -> None:
    """A provider of weight 3 beside one of weight 1 gets three of four calls."""
    providers = [{"name": "a", "type": "mock", "weight": 3}, {"name": "b", "type": "mock"}]
    result = run(providers=providers, phases=[{"rate": 100}], upstreams=FAST)
    # 2,000 draws: four standard deviations are 4 * sqrt(0.75 * 0.25 / 2000) = 0.039.
    assert result.summary["providers"]["a"]["share"] == pytest.approx(0.75, abs=0.039)


def test_the_same_seed_gives_the_same_bytes(run: Run) -> None:
    """Everything in the result repeats, the curves included; another seed gives another run."""
    scenario: dict[str, Any] = {
        "phases": [{"rate": 20, "streamed": 0.5, "cancelled": 0.2}],
        "faults": [{"kind": "status", "providers": "a", "at": 3, "until": 9, "share": 0.5}],
    }
    first, second = (to_json([run(**scenario)]) for _ in range(2))
    assert first == second
    assert to_json([run(**scenario, seed=4)]) != first


SCRIPT = """
from adapters.simulation.random_scenarios import random_simulation
from adapters.simulation.result import to_json
from adapters.simulation.simulation import simulate
print(*(to_json([simulate(random_simulation(seed))]) for seed in range(40, 50)))
"""


def test_other_processes_come_to_the_same() -> None:
    """Neither the hashes of strings nor the addresses of objects change what happens."""
    seen = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            timeout=100,
            check=True,
        )
        seen.add(hashlib.sha256(done.stdout).hexdigest())
    assert len(seen) == 1


def test_the_limits_that_are_watched_can_be_counted() -> None:
    """The check at the end of a run looks at something that is there."""

    async def main() -> int | None:
        provider = {"name": "a", "type": "mock"}
        async with Router.from_config({"providers": [provider]}) as router:
            return watched_limits(router)

    loop = VirtualLoop.make()
    assert loop.run(main()) == 0
    loop.close()


def test_a_router_that_falls_over_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that takes the router down is a broken promise, and no traceback."""

    async def fall_over(*_: object) -> None:
        raise KeyError("on purpose")

    monkeypatch.setattr(Router, "set_weight", fall_over)
    change = {"at": 5, "set_weight": {"provider": "a", "weight": 0}}
    result = run(upstreams=FAST, changes=[change])
    assert any(broken.invariant == "I10" for broken in result.broken)


# ── faults ───────────────────────────────────────────────────────────────────────

INVISIBLE = ("refuse", "reset", "status", "quota", "html", "error_event_first", "misconfigured")


@pytest.mark.parametrize("kind", INVISIBLE)
def test_a_fault_of_one_provider_is_not_seen(run: Run, kind: str) -> None:
    """With somebody else to ask, callers see nothing of it."""
    result = run(upstreams=FAST, faults=[{"kind": kind, "providers": "a", "at": 5}])
    assert set(outcomes(result)) == {"completed"}
    assert result.summary["attempts"]["per_request"] > 1


@pytest.mark.parametrize("streamed", [0.0, 1.0])
@pytest.mark.parametrize("kind", get_args(FaultKind))
def test_no_fault_breaks_a_promise(run: Run, kind: str, streamed: float) -> None:
    """Each kind of fault, at all providers, for streams and whole answers."""
    limits = {"timeouts": {"connect": 0.5, "headers": 1, "first_event": 1, "idle": 1, "total": 4}}
    result = run(
        config={"defaults": limits},
        upstreams=FAST,
        phases=[{"rate": 10, "streamed": streamed, "cancelled": 0.1}],
        faults=[{"kind": kind, "at": 5, "until": 10, "drops_running": True}],
    )
    outcomes(result)
    assert result.summary["requests"] > 150
    affected = result.summary["attempts"]["total"] != result.summary["outcomes"]["completed"]
    assert affected


def test_a_cut_stream_is_truncated(run: Run) -> None:
    """After the first event nobody else is asked, and nothing looks complete."""
    fault = {"kind": "cut_stream", "at": 5, "until": 10}
    result = run(upstreams=FAST, phases=STREAMS, faults=[fault])
    assert set(outcomes(result)) >= {"completed", "truncated"}


def test_a_stalled_stream_ends_at_the_idle_limit(run: Run) -> None:
    """The longest request is the idle limit longer than the others."""
    fault = {"kind": "stall_stream", "at": 5, "until": 10, "events": 2}
    limits = {"timeouts": {"idle": 2}}
    result = run(config={"defaults": limits}, upstreams=FAST, phases=STREAMS, faults=[fault])
    assert outcomes(result)["truncated"] > 0


def test_a_slow_provider_is_slow_only_while_it_is(run: Run) -> None:
    """The factor stretches the latency, and the curves show when."""
    fault = {"kind": "slow", "factor": 5, "at": 10, "until": 15}
    result = run(upstreams=FAST, faults=[fault])
    assert result.summary["latency"]["max"] == pytest.approx(1.0)
    assert max(result.series["p99"][:9]) == pytest.approx(0.2)
    assert max(result.series["p99"][11:15]) == pytest.approx(1.0)


def test_a_rhythm_comes_and_goes(run: Run) -> None:
    """A fault with a rhythm hits only in its part of each turn."""
    fault = {"kind": "status", "status": 400, "every": 4, "lasting": 2, "after": 0}
    result = run(upstreams=FAST, phases=[{"rate": 50}], faults=[fault])
    failed = result.series["failed"]
    outcomes(result)
    assert all(failed[second] > 0 for second in (0, 1, 4, 5, 8, 9))
    assert not any(failed[second] for second in (3, 7, 11))


def test_running_calls_are_dropped_when_asked_for(run: Run) -> None:
    """An outage that drops connections reaches the calls that had begun before it."""
    faults = [{"kind": "slow", "factor": 1, "at": 10, "until": 11, "drops_running": True}]
    result = run(
        config={"retries": {"max_attempts": 1}}, upstreams={"*": {"latency": 3}}, faults=faults
    )
    assert outcomes(result)["failed"] > 10


# ── upstreams with limits ────────────────────────────────────────────────────────


def test_a_full_upstream_lets_calls_wait(run: Run) -> None:
    """With two places and a second each, the third of three calls takes two seconds."""
    result = run(
        providers=("a",),
        duration=1,
        upstreams={"*": {"latency": 1.0, "concurrency": 2}},
        phases=[{"rate": 3.5, "arrivals": "constant"}],
    )
    assert outcomes(result) == {"completed": 3}
    assert result.summary["latency"]["max"] > 1.4


@pytest.mark.parametrize("status", ["429", "503"])
def test_a_full_upstream_can_refuse(run: Run, status: str) -> None:
    """Instead of waiting, a call is answered that there is no room."""
    result = run(
        providers=("a",),
        config={"retries": {"max_attempts": 1}},
        upstreams={"*": {"latency": 1.0, "concurrency": 1, "when_full": status}},
    )
    assert outcomes(result)["failed"] > 0
    assert set(result.summary["errors"]) == {"overloaded"}


def test_errors_come_in_their_shares(run: Run) -> None:
    """A tenth of the calls of all providers fails; nearly all requests are completed."""
    result = run(
        providers=("a", "b", "c"),
        upstreams={"*": {"latency": 0.2, "errors": {"transient": 0.1}}},
        phases=[{"rate": 100}],
    )
    outcomes(result)
    assert result.summary["success"] >= 0.995
    assert result.summary["attempts"]["per_request"] == pytest.approx(1.11, abs=0.04)


# ── callers and operators ────────────────────────────────────────────────────────


def test_callers_who_leave_are_counted_as_such(run: Run) -> None:
    """Half of the callers leave before the answer, and their calls end with them."""
    phases = [{"rate": 10, "cancelled": 0.5, "cancel_after": 0.1, "streamed": 0.5}]
    result = run(upstreams=FAST, phases=phases)
    share = result.summary["outcomes"]["cancelled"] / result.summary["requests"]
    outcomes(result)
    # 200 draws: four standard deviations are 4 * sqrt(0.25 / 200) = 0.14.
    assert share == pytest.approx(0.5, abs=0.14)


def test_a_deadline_is_heard_of(run: Run) -> None:
    """Callers with less time than an answer takes hear so in time."""
    result = run(upstreams={"*": {"latency": 2.0}}, phases=[{"rate": 10, "deadline": 0.5}])
    assert set(outcomes(result)) == {"failed"}
    assert set(result.summary["errors"]) == {"deadline_exceeded"}


def test_phases_add_up(run: Run) -> None:
    """A second phase brings its requests on top of the first one's."""
    phases = [
        {"rate": 10, "arrivals": "constant"},
        {"rate": 50, "arrivals": "constant", "at": 5, "until": 10},
    ]
    arrivals = run(upstreams=FAST, phases=phases).series["arrivals"]
    assert arrivals[2] == pytest.approx(10, abs=1)
    assert arrivals[7] == pytest.approx(60, abs=2)


def test_a_new_weight_moves_the_share(run: Run) -> None:
    """Weight 0 for one of two: from then on the other one gets everything."""
    change = {"at": 10, "set_weight": {"provider": "a", "weight": 0}}
    result = run(upstreams=FAST, changes=[change])
    outcomes(result)
    calls = result.series["providers"]["a"]["attempts"]
    assert sum(calls[:10]) > 20
    assert sum(calls[11:]) == 0


def test_a_provider_is_switched_off_and_on(run: Run) -> None:
    """Switched off it gets nothing, switched on again it gets its share."""
    changes = [
        {"at": 5, "set_enabled": {"provider": "a", "enabled": False}},
        {"at": 10, "set_enabled": {"provider": "a", "enabled": True}},
    ]
    result = run(upstreams=FAST, changes=changes)
    outcomes(result)
    calls = result.series["providers"]["a"]["attempts"]
    assert sum(calls[6:10]) == 0
    assert sum(calls[11:]) > 20


def test_a_provider_is_taken_out_and_brought_back_by_hand(run: Run) -> None:
    """Ejected it gets nothing, restored it serves again, slowly at first."""
    result = run(upstreams=FAST, changes=[{"at": 5, "eject": "a"}, {"at": 10, "restore": "a"}])
    outcomes(result)
    calls = result.series["providers"]["a"]["attempts"]
    assert sum(calls[6:10]) == 0
    assert sum(calls[11:]) > 0


def test_a_reload_loses_nothing(run: Run) -> None:
    """Another configuration under load: a provider goes, one comes, one changes."""
    config = {
        "providers": [
            {"name": "b", "type": "mock", "timeout": 7, "limits": {"concurrency": 5}},
            {"name": "c", "type": "mock"},
        ]
    }
    result = run(
        upstreams=FAST,
        phases=[{"rate": 40, "streamed": 0.5}],
        changes=[{"at": 10, "reload": "new.yaml"}],
        reloads={0: config},
    )
    assert set(outcomes(result)) == {"completed"}
    calls = result.series["providers"]
    assert sum(calls["a"]["attempts"][12:]) == 0
    assert sum(calls["c"]["attempts"]) > 50


def test_a_refused_change_is_told(run: Run) -> None:
    """What the router refuses is in the result, and the run goes on."""
    changes = [{"at": 5, "set_enabled": {"provider": "a", "enabled": False}}]
    result = run(providers=("a",), upstreams=FAST, changes=changes)
    assert set(outcomes(result)) == {"completed"}
    assert len(result.summary["changes_refused"]) == 1


def test_an_upstream_can_change_for_good(run: Run) -> None:
    """A behaviour that is set at an instant holds from there on."""
    change = {"at": 10, "behaviour": {"provider": "a", "behaviour": {"latency": 1.0}}}
    result = run(providers=("a",), upstreams=FAST, changes=[change])
    outcomes(result)
    assert max(result.series["p99"][:9]) == pytest.approx(0.2)
    assert min(result.series["p50"][12:20]) == pytest.approx(1.0)


def test_a_drain_finishes_what_is_in_flight(run: Run) -> None:
    """Those in flight are answered; those who come later are turned away, and not counted."""
    result = run(upstreams={"*": {"latency": 2.0}}, changes=[{"at": 10, "drain": 5}])
    assert set(outcomes(result)) == {"completed"}
    assert result.summary["turned_away"] > 50


def test_a_total_outage_is_not_made_worse(run: Run) -> None:
    """With everybody down there is little more than one attempt for each request."""
    result = run(
        providers=("a", "b", "c"),
        duration=60,
        phases=[{"rate": 100}],
        faults=[{"kind": "refuse"}],
    )
    outcomes(result)
    assert result.summary["attempts"]["per_request"] <= 1.1
