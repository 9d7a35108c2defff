"""The callers of `resilience` see each way in which a request can end, and count it."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from benchmarks.caller import Answer, Caller, Ending, Tally
from benchmarks.scripted_upstream import (
    Behaviour,
    ScriptedUpstream,
    cut,
    error_first,
    html,
    reset,
    serving,
    silent,
    status,
    well,
)
from benchmarks.wire import request_body, request_message

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def anyio_backend() -> Any:
    """The benchmark runs on uvloop."""
    return "asyncio", {"use_uvloop": True}


async def ask(behaviour: Behaviour, *, streamed: bool) -> Answer:
    """Ask an upstream directly."""
    upstream = ScriptedUpstream(behaviour)
    async with serving(upstream), Caller(upstream.port) as caller:
        answer = await caller.ask(request_message(upstream.port, request_body(streamed=streamed)))
    assert answer is not None
    return answer


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("behaviour", "endings"),
    [
        (well(), (Ending.RIGHT, Ending.RIGHT)),
        (well(latency=0.001, gap=0.0001), (Ending.RIGHT, Ending.RIGHT)),
        (status("500 Internal Server Error"), (Ending.TOLD, Ending.TOLD)),
        (html, (Ending.WRONG, Ending.WRONG)),
        (error_first, (Ending.WRONG, Ending.TOLD)),
        (reset, (Ending.LOST, Ending.LOST)),
        (cut, (Ending.LOST, Ending.LOST)),
    ],
)
async def test_each_ending_is_told_apart(
    behaviour: Behaviour, endings: tuple[Ending, Ending], streamed: bool
) -> None:
    """Right, wrong, an explicit error, and nothing whole at all."""
    answer = await ask(behaviour, streamed=streamed)
    assert answer.ending is endings[streamed]


async def test_a_stream_without_its_end_marker_is_wrong() -> None:
    """What has every word but no end may have been cut."""
    answer = await ask(well(), streamed=True)
    shortened = Answer(200, answer.fields, answer.body.replace(b"data: [DONE]\n\n", b""))
    assert shortened.ending is Ending.WRONG


async def test_a_stream_that_misses_an_event_is_wrong() -> None:
    """The end marker alone proves nothing."""
    answer = await ask(well(), streamed=True)
    shortened = Answer(200, answer.fields, answer.body.replace(b"data: {", b"", 1))
    assert shortened.ending is Ending.WRONG


async def test_a_kept_connection_that_was_closed_is_replaced() -> None:
    """A request is not sent into a connection whose end is already known."""
    upstream = ScriptedUpstream(well())
    async with serving(upstream), Caller(upstream.port) as caller:
        message = request_message(upstream.port, request_body())
        assert await caller.ask(message) is not None
        await upstream.close_connections()
        with anyio.fail_after(10):
            while upstream.open:  # noqa: ASYNC110 - looks on
                await anyio.sleep(0.001)
        answer = await caller.ask(message)
    assert answer is not None
    assert answer.ending is Ending.RIGHT


async def test_nobody_listening_is_no_lost_request() -> None:
    """A request that could not be sent is not counted as one without an answer."""
    async with serving(upstream := ScriptedUpstream(well())):
        port = upstream.port
    async with Caller(port) as caller:
        assert await caller.ask(request_message(port, request_body())) is None


async def test_a_caller_that_leaves_is_seen_at_once() -> None:
    """The upstream notes the instant at which its connection ended."""
    upstream = ScriptedUpstream(silent)
    async with serving(upstream), Caller(upstream.port) as caller:
        assert await caller.send(request_message(upstream.port, request_body()))
        with anyio.fail_after(10):
            while not upstream.asked:  # noqa: ASYNC110 - looks on
                await anyio.sleep(0.001)
            await caller.leave()
            while upstream.open:  # noqa: ASYNC110 - looks on
                await anyio.sleep(0.001)
    assert upstream.closed_at > 0


async def test_a_tally_holds_every_request() -> None:
    """Answers, streams and those who left add up."""
    tally = Tally(left=2)
    tally.count(await ask(well(), streamed=False), streamed=False)
    tally.count(await ask(reset, streamed=True), streamed=True)
    assert (tally.total, tally.of(Ending.RIGHT), tally.streams[Ending.LOST]) == (4, 1, 1)
    assert tally.statuses == {200: 1, 0: 1}
