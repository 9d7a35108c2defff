"""An envelope is answered exactly once: by a worker, a limit, or its actor's end."""

import pytest
from scripted import CHAT

from engine import (
    ActorCrashedError,
    ChatRequest,
    ConnectError,
    DeadlineExceededError,
    OverloadedError,
    ProviderConfig,
    Replay,
    Response,
    SilentError,
)
from engine.envelope import CLEANUP_GRACE, LAST_GRACE, Envelope, State
from engine.resilience.deadline import TICK, DeadlineWheel


class Holder:
    """Holds an envelope and notes when it is told to let go."""

    def __init__(self) -> None:
        self.interrupted = 0

    def interrupt(self, envelope: Envelope) -> None:
        self.interrupted += 1


def make(
    deadline: float = 10.0, *, streamed: bool = False, until: float | None = None
) -> tuple[Envelope, Holder]:
    """An envelope on a wheel, and its holder."""
    wheel = DeadlineWheel(lambda: 0.0)
    config = ProviderConfig.model_validate(
        {"name": "a", "type": "mock", "timeout": 6}
        | {"timeouts": {"headers": 2, "first_event": 3, "idle": 1}}
    )
    envelope = Envelope(
        ChatRequest.from_body(CHAT), "m", "id", config=config, wheel=wheel, deadline=deadline,
        now=0.0, streamed=streamed, assembled=streamed, until=until,
    )  # fmt: skip
    holder = envelope.handler = Holder()
    wheel.add(envelope, envelope.until)
    return envelope, holder


def due_at(envelope: Envelope) -> float:
    """The instant at which the wheel calls the envelope."""
    assert envelope.tick is not None
    return envelope.tick * TICK


async def test_first_answer_wins() -> None:
    """Whoever comes later finds it done, and the wheel has forgotten it."""
    envelope, _ = make()
    envelope.begin(1.0)
    response = Response({})
    assert envelope.answer(response, 1.5)
    envelope.fail(ConnectError("late"))
    assert not envelope.answer(Response({}), 2.0)
    envelope.abandon()
    assert (envelope.result, envelope.error) == (response, None)
    assert envelope.replied.is_set()
    assert envelope.tick is None
    assert not envelope.open


async def test_first_failure_wins() -> None:
    """A failure settles the envelope like an answer does."""
    envelope, _ = make()
    envelope.fail(ConnectError("first"))
    envelope.fail(ConnectError("second"))
    assert not envelope.answer(Response({}), 1.0)
    assert str(envelope.error) == "first"


async def test_abandoned_envelope_is_let_go() -> None:
    """When the caller leaves, its holder is told once, and answers go nowhere."""
    envelope, holder = make()
    envelope.abandon()
    envelope.abandon()
    assert holder.interrupted == 1
    assert envelope.state is State.ABANDONED
    assert not envelope.answer(Response({}), 1.0)
    assert envelope.result is None
    assert envelope.tick is None


@pytest.mark.parametrize(("streamed", "limit"), [(False, 2), (True, 3)])
async def test_begin_sets_the_limit_of_the_phase(streamed: bool, limit: float) -> None:
    """Headers for whole answers, first event for streams."""
    envelope, _ = make(streamed=streamed)
    envelope.begin(1.0)
    assert envelope.number == 1
    assert 1 + limit <= due_at(envelope) <= 1 + limit + 2 * TICK


async def test_headers_change_the_limit_to_the_attempts_own() -> None:
    """After the headers, `timeout` counts from the beginning of the attempt."""
    envelope, _ = make()
    envelope.begin(1.0)
    envelope.headers_received()
    assert 7 <= due_at(envelope) <= 7 + 2 * TICK
    streamed, _ = make(streamed=True)
    streamed.begin(1.0)
    streamed.headers_received()
    assert due_at(streamed) <= 4 + 2 * TICK


async def test_no_limit_lies_beyond_the_deadline() -> None:
    """The deadline bounds each phase."""
    envelope, _ = make(deadline=1.5)
    envelope.begin(1.0)
    assert due_at(envelope) <= 1.5 + TICK
    envelope.headers_received()
    assert due_at(envelope) <= 1.5 + TICK


async def test_waiting_envelope_is_answered_at_its_deadline() -> None:
    """In the mailbox there is nothing to clean up: the answer comes at once."""
    envelope, holder = make(deadline=5)
    envelope.wheel.discard(envelope)
    envelope.on_due(5.01)
    assert isinstance(envelope.error, DeadlineExceededError)
    assert holder.interrupted == 1


async def test_running_envelope_gets_a_grace_and_then_an_answer() -> None:
    """A cancelled call may clean up for a moment; then the caller is answered without it."""
    envelope, holder = make()
    envelope.begin(1.0)
    envelope.wheel.discard(envelope)
    envelope.on_due(3.01)
    assert holder.interrupted == 1
    assert envelope.open
    assert due_at(envelope) <= 3.01 + CLEANUP_GRACE + 2 * TICK
    envelope.wheel.discard(envelope)
    envelope.on_due(3.3)
    assert isinstance(envelope.error, SilentError)
    assert envelope.error.provider == "a"


async def test_grace_at_the_deadline_keeps_the_promise() -> None:
    """A tick, the grace and another tick are less than the 100 ms that are promised."""
    assert TICK + LAST_GRACE + TICK < 0.1
    envelope, _ = make(deadline=2.0)
    envelope.begin(1.0)
    envelope.wheel.discard(envelope)
    envelope.on_due(2.0 + TICK)
    assert due_at(envelope) < 2.1


async def test_failures_are_recorded_with_their_attempt() -> None:
    """Each failed attempt leaves its number, class and replay mark."""
    envelope, _ = make()
    envelope.begin(1.0)
    envelope.failed(ConnectError("x"), 1.5)
    envelope.begin(2.0)
    envelope.failed(SilentError("y"), 4.0)
    assert envelope.failures is not None
    shown = [(f.number, f.error_class.value, f.replay.value, f.seconds) for f in envelope.failures]
    assert shown == [(1, "connect", "not_accepted", 0.5), (2, "silent", "maybe_accepted", 2.0)]
    assert envelope.upstream_seconds == 2.5


@pytest.mark.parametrize("begun", [False, True])
async def test_crash_says_whether_it_was_sent(begun: bool) -> None:
    """What waited was never sent; what ran may have been executed."""
    envelope, _ = make()
    if begun:
        envelope.begin(1.0)
    error = envelope.crashed()
    assert isinstance(error, ActorCrashedError)
    assert error.replay is (Replay.MAYBE_ACCEPTED if begun else Replay.NOT_ACCEPTED)


async def test_repr_shows_no_prompt() -> None:
    """An envelope in a traceback tells nothing of its contents."""
    envelope, _ = make()
    assert repr(envelope) == "Envelope('id', number=0, operation='chat', model='m')"


async def test_time_that_is_kept_back_bounds_each_phase() -> None:
    """A provider must have answered by `until`, though the request goes on after it."""
    envelope, _ = make(deadline=10, until=1.5)
    assert due_at(envelope) <= 1.5 + TICK
    envelope.begin(1.0)
    assert due_at(envelope) <= 1.5 + TICK
    envelope.headers_received()
    envelope.pause()
    assert due_at(envelope) <= 1.5 + TICK


async def test_kept_back_time_ends_a_wait_as_overload() -> None:
    """What could not begin in its part of the time was never sent, and goes elsewhere."""
    envelope, holder = make(deadline=10, until=5)
    envelope.wheel.discard(envelope)
    envelope.on_due(5.01)
    assert isinstance(envelope.error, OverloadedError)
    assert (envelope.error.code, envelope.error.provider) == ("queue_wait_exceeded", "a")
    assert envelope.error.replay is Replay.NOT_ACCEPTED
    assert holder.interrupted == 1


async def test_kept_back_time_ends_a_call_as_silence() -> None:
    """The request's own deadline has not passed: it is the provider that was too slow."""
    envelope, _ = make(deadline=10, until=2)
    envelope.begin(1.0)
    assert isinstance(envelope.expired(2.01), SilentError)
    assert isinstance(envelope.expired(10.0), DeadlineExceededError)


async def test_events_that_commit_move_the_limit() -> None:
    """Before the first useful event its own limit holds, after it the one between events."""
    envelope, _ = make(streamed=True)
    envelope.begin(1.0)
    envelope.event_received(2.0, committed=False)
    assert 4 <= due_at(envelope) <= 4 + 2 * TICK
    envelope.event_received(3.0, committed=True)
    assert 4 <= due_at(envelope) <= 4 + 2 * TICK
    envelope.event_received(7.5, committed=True)
    assert 8.5 <= due_at(envelope) <= 8.5 + 2 * TICK
    envelope.event_received(9.9, committed=True)
    assert due_at(envelope) <= 10 + TICK


async def test_silence_is_told_by_what_was_awaited() -> None:
    """The text says whether nothing came at all, or nothing more."""
    envelope, _ = make(streamed=True)
    envelope.begin(1.0)
    assert "no first event within 3 s" in str(envelope.expired(4.0))
    envelope.event_received(5.0, committed=True)
    assert "no further event within 1 s" in str(envelope.expired(6.0))
    envelope.begin(7.0)
    assert "no first event within 2 s" in str(envelope.expired(9.0))


async def test_events_of_a_lost_cause_move_no_limit() -> None:
    """Once a limit has passed, later events cannot put the answer off."""
    envelope, _ = make(streamed=True)
    envelope.begin(1.0)
    envelope.wheel.discard(envelope)
    envelope.on_due(4.01)
    before = due_at(envelope)
    envelope.event_received(4.02, committed=True)
    assert due_at(envelope) == before
