"""Records: bounded, free of what callers wrote, and enough to make a choice again."""

import json
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from scripted import CHAT

from engine import (
    BrokenError,
    ChatRequest,
    ErrorClass,
    InvalidRequestError,
    NoProviderAvailableError,
    Outcome,
    Priority,
    Replay,
    Usage,
)
from engine.balancing.weighted_random import WeightedRandom
from engine.choice_replay import repeat_choice
from engine.dispatcher import Choice
from engine.envelope import AttemptFailure
from engine.plan import Candidate, Target, Tier
from engine.request_history import RequestHistory
from engine.request_record import MOST_STEPS, Pick, RequestRecord


def run(request_id: str = "id", model: str = "m") -> Any:
    """A request as far as a record looks at it."""
    return SimpleNamespace(
        request=ChatRequest.from_body({**CHAT, "model": model}),
        request_id=request_id,
        generation=SimpleNamespace(number=3),
        priority=Priority.SHEDDABLE_PLUS,
        streamed=True,
        deadline=110.0,
        attempts=2,
        fallbacks=("n",),
    )


def choice(weights: dict[str, float]) -> Choice:
    """A choice of the first one."""
    targets = [
        Target(cast("Any", SimpleNamespace(name=name)), None, weight)
        for name, weight in weights.items()
    ]
    candidates = tuple(Candidate(t.label, t.label, None, t.weight, 0) for t in targets)
    tier = Tier(WeightedRandom(targets, random.Random(1)), candidates)
    return Choice(targets[0], tier, "healthy", {}, {"drew": (0.1,)})


def envelope(**facts: Any) -> Any:
    """An envelope as far as a record looks at it."""
    return SimpleNamespace(
        **{
            "config": SimpleNamespace(name="a"),
            "number": 1,
            "queued_at": 100.0,
            "picked_up_at": 101.0,
            "upstream_seconds": 2.0,
            "until": 105.0,
            "failures": None,
            **facts,
        }
    )


def test_open_record_has_no_end() -> None:
    """Until it ends, the time goes on and the outcome is not known."""
    record = RequestRecord(run(), 100.0)
    assert not record.ended
    story = record.as_dict(7, 103.0, 1_000.0)
    assert (story["outcome"], story["seconds"], story["steps"]) == (None, 3, [])
    assert (story["began"], story["deadline"]) == (997, 10)
    assert (story["generation"], story["priority"], story["seed"]) == (3, "sheddable_plus", 7)


def test_ended_record_tells_the_end() -> None:
    """Its time stands still from then on."""
    record = RequestRecord(run(), 100.0)
    record.end(
        run(), Outcome.COMPLETED, at=104.5, provider="a", error=None, usage=Usage(3, 4)
    )  # fmt: skip
    assert record.ended
    story = record.as_dict(7, 200.0, 1_000.0)
    assert (story["outcome"], story["seconds"], story["provider"]) == ("completed", 4.5, "a")
    assert (story["attempts"], story["fallbacks"]) == (2, ["n"])
    assert story["usage"] == {"input": 3, "output": 4}


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (BrokenError("secret"), "broken"),
        (NoProviderAvailableError("secret", reason="rate_limited"), "rate_limited"),
        (InvalidRequestError("secret"), "InvalidRequestError"),
        (KeyError("secret"), "KeyError"),
    ],
)
def test_errors_are_told_by_a_word(error: BaseException, word: str) -> None:
    """The text of an error may hold what somebody wrote, so it is left out."""
    record = RequestRecord(run(), 100.0)
    record.end(run(), Outcome.FAILED, at=101.0, provider=None, error=error, usage=None)
    story = record.as_dict(7, 101.0, 0.0)
    assert story["error"] == word
    assert "secret" not in json.dumps(story)


def test_calls_are_told_with_queue_time_and_limit() -> None:
    """Each instant counts from the request's beginning."""
    failure = AttemptFailure("a", 1, ErrorClass.SILENT, Replay.MAYBE_ACCEPTED, 1.5)
    record = RequestRecord(run(), 99.0)
    record.tried(envelope(failures=[failure], number=2), 0, "answered")
    (step,) = record.as_dict(7, 110.0, 0.0)["steps"]
    assert step == {
        "step": "attempts", "provider": "a", "first": 1, "calls": 2, "result": "answered",
        "queue_seconds": 1.0, "upstream_seconds": 2.0, "limit": 6.0,
        "failures": [{"attempt": 1, "class": "silent", "replay": "maybe_accepted",
                      "seconds": 1.5, "wasted": True}],
    }  # fmt: skip


def test_odds_are_those_among_the_eligible() -> None:
    """Weight times share, over those that could have been taken."""
    record = RequestRecord(run(), 100.0)
    made = choice({"a": 2, "b": 4, "c": 10})
    made.passed_over["c"] = "ejected"
    made.facts["share"] = {"b": 0.5}
    record.picked(101.0, "m", made, "healthy")
    (step,) = record.as_dict(7, 110.0, 0.0)["steps"]
    assert (step["picked"], step["odds"], step["at"]) == ("a", 0.5, 1)
    assert step["passed_over"] == {"c": "ejected"}


def test_record_is_bounded() -> None:
    """However a request goes round in circles, its record does not grow without end."""
    record = RequestRecord(run(model="x" * 100_000), 100.0)
    for _ in range(MOST_STEPS * 3):
        record.picked(101.0, "m", choice({"a": 1}), "healthy")
        record.tried(envelope(), 0, "failed")
    story = record.as_dict(7, 110.0, 0.0)
    assert len(story["steps"]) == MOST_STEPS
    assert len(story["model"]) == 256
    assert len(record.picks) == MOST_STEPS // 2


# ── history ──────────────────────────────────────────────────────────────────────


def test_history_keeps_the_newest() -> None:
    """The oldest record makes room; the newest is told first."""
    history = RequestHistory(3)
    for number in range(5):
        history.add(RequestRecord(run(str(number)), 100.0))
    assert [record.request_id for record in history.latest(9)] == ["4", "3", "2"]
    assert [record.request_id for record in history.latest(1)] == ["4"]
    assert history.find("1") is None
    assert history.find("2") is not None
    assert len(history) == 3


def test_newest_of_an_id_is_found() -> None:
    """A client may send an id twice: both are kept, and the latest is meant."""
    history = RequestHistory(3)
    first, second = RequestRecord(run("a"), 100.0), RequestRecord(run("a"), 101.0)
    for record in (first, RequestRecord(run("b"), 100.0), second):
        history.add(record)
    assert history.find("a") is second
    assert [record.request_id for record in history.latest(9)] == ["a", "b", "a"]


def test_history_can_be_resized() -> None:
    """A smaller size takes effect at once; size 0 wants no records."""
    history = RequestHistory(3)
    assert history.wanted
    for name in "abc":
        history.add(RequestRecord(run(name), 100.0))
    history.resize(1)
    assert [record.request_id for record in history.latest(9)] == ["c"]
    history.resize(0)
    assert not history.wanted
    assert len(history) == 0


# ── the choice again ─────────────────────────────────────────────────────────────


def pick(balancer: str, passed_over: dict[str, str] | None = None, **facts: Any) -> Pick:
    """A recorded choice among three."""
    candidates = tuple(Candidate(name, name, None, 1.0, 0) for name in "abc")
    return Pick(0.0, "m", balancer, candidates, 0, "healthy", passed_over or {}, facts)


def test_draws_decide_for_weighted_random() -> None:
    """The first draw that falls on somebody eligible, or the one among the eligible."""
    assert repeat_choice(pick("WeightedRandom", drew=(0.1,))) == "a"
    assert repeat_choice(pick("WeightedRandom", drew=(0.9,))) == "c"
    assert repeat_choice(pick("WeightedRandom", {"c": "down"}, drew=(0.9, 0.5))) == "b"
    shares = {"a": 0.5}
    assert repeat_choice(pick("WeightedRandom", drew=(0.1, 0.4), share=shares)) == "a"
    assert repeat_choice(pick("WeightedRandom", drew=(0.1, 0.6, 0.4), share=shares)) == "b"


def test_credit_decides_for_smooth_weighted() -> None:
    """Who is furthest behind is next."""
    assert repeat_choice(pick("SmoothWeighted", drew=(), credit=[0.0, 2.0, 1.0])) == "b"
    made = pick("SmoothWeighted", {"b": "down"}, drew=(), credit=[0.0, 2.0, 1.0])
    assert repeat_choice(made) == "c"


def test_load_decides_for_least_loaded() -> None:
    """The least work, and of equals the smaller draw."""
    assert repeat_choice(pick("LeastLoaded", drew=(0.5, 0.4), load=[3.0, 2.0, 9.0])) == "b"
    assert repeat_choice(pick("LeastLoaded", drew=(0.5, 0.4), load=[2.0, 2.0, 9.0])) == "b"
    assert repeat_choice(pick("LeastLoaded", drew=(0.3, 0.4), load=[2.0, 2.0, 9.0])) == "a"


def test_shortest_pause_decides_for_a_repeat() -> None:
    """Where all have asked for a pause, the balancer has no say."""
    assert repeat_choice(pick("WeightedRandom", available_in={"a": 3.0, "c": 1.0})) == "c"


@pytest.mark.parametrize(
    "made",
    [
        pick("WeightedRandom", drew=()),
        pick("Unheard", drew=(0.1,)),
        pick("LeastLoaded", dict.fromkeys("abc", "down"), drew=(), load=[0.0, 0.0, 0.0]),
    ],
    ids=["too few draws", "no such balancer", "nobody eligible"],
)
def test_record_that_is_not_enough_is_refused(made: Pick) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError, match=r"record|balancer"):
        repeat_choice(made)
