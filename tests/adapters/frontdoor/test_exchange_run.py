"""The work of an exchange, on every event loop, and clients that leave or stop reading."""

import math
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from scripted_exchange import FakeServer, answer, endpoint
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from adapters.frontdoor.body_limits import ClientDisconnectedError
from adapters.frontdoor.border import exchange_of
from adapters.frontdoor.receiver import Exchange

pytestmark = pytest.mark.anyio


async def test_run_gives_the_result_and_takes_errors_as_they_are(calls_back: bool) -> None:
    """Work returns and raises as in a plain call, also twice in a row."""
    server = FakeServer(b"ab", calls_back=calls_back)

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise LookupError

    async def succeed() -> int:
        await anyio.lowlevel.checkpoint()
        return 42

    async def work(exchange: Exchange) -> None:
        await exchange.body()
        with pytest.raises(LookupError):
            await exchange.run(fail)
        assert await exchange.run(succeed) == 42
        await answer(exchange)

    await server.run(endpoint(work))
    assert server.status == 200


async def test_run_cancels_the_work_of_a_client_that_left(calls_back: bool) -> None:
    """The work is cancelled at once and the route hears why."""
    server = FakeServer(b"ab", calls_back=calls_back)
    ended = []

    async def hang() -> None:
        try:
            await anyio.sleep(math.inf)
        finally:
            ended.append("work")

    async def work(exchange: Exchange) -> None:
        await exchange.body()
        with pytest.raises(ClientDisconnectedError):
            await exchange.run(hang)
        with pytest.raises(ClientDisconnectedError):
            await answer(exchange)
        with pytest.raises(ClientDisconnectedError):
            await exchange.run(hang)
        ended.append("route")

    with anyio.fail_after(2):
        async with anyio.create_task_group() as group:
            group.start_soon(server.run, endpoint(work))
            await anyio.wait_all_tasks_blocked()
            server.leave()
    assert ended == ["work", "route"]
    assert server.sent == []


async def test_run_covers_a_stream_to_its_last_chunk(calls_back: bool) -> None:
    """A stream that is sent inside run() stops when the client leaves."""
    server = FakeServer(b"ab", calls_back=calls_back)

    async def stream(exchange: Exchange) -> None:
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await exchange.send({"type": "http.response.body", "body": b"x", "more_body": True})
            await anyio.sleep(0.001)

    async def work(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.run(lambda: stream(exchange))

    with anyio.fail_after(2):
        async with anyio.create_task_group() as group:
            group.start_soon(server.run, endpoint(work))
            await server.has_sent_some.wait()
            server.leave()
    assert not server.draining.in_flight


async def test_leaving_after_the_answer_cancels_nothing(calls_back: bool) -> None:
    """What a route does after its answer is not disturbed by the client going its way."""
    server = FakeServer(b"ab", calls_back=calls_back)
    done = []

    async def work(exchange: Exchange) -> None:
        await exchange.body()

        async def respond() -> None:
            await answer(exchange)
            server.leave()
            await anyio.sleep(0.01)
            done.append(exchange.gone)

        await exchange.run(respond)

    await server.run(endpoint(work))
    assert done == [False]


async def test_run_may_not_be_nested(calls_back: bool) -> None:
    """Two pieces of work at once would each believe to own the client."""
    server = FakeServer(b"ab", calls_back=calls_back)

    async def work(exchange: Exchange) -> None:
        await exchange.body()

        async def nested() -> None:
            with pytest.raises(RuntimeError, match="already active"):
                await exchange.run(lambda: answer(exchange))
            await answer(exchange)

        await exchange.run(nested)

    await server.run(endpoint(work))
    assert server.status == 200


@pytest.mark.parametrize("inside_run", [True, False])
async def test_client_that_does_not_read_counts_as_gone(calls_back: bool, inside_run: bool) -> None:
    """A message that does not get out in time ends the request and frees the connection."""
    server = FakeServer(b"ab", calls_back=calls_back)
    server.reads = False
    exchanges = []

    async def work(exchange: Exchange) -> None:
        exchanges.append(exchange)
        await exchange.body()
        if inside_run:
            with pytest.raises(ClientDisconnectedError):
                await exchange.run(lambda: answer(exchange))
        else:
            await answer(exchange)

    with anyio.fail_after(2):
        await server.run(endpoint(work), write_seconds=0.05)
    assert exchanges[0].gone
    assert server.client is None or server.client.aborted


async def test_starlette_responses_work_inside_run(calls_back: bool) -> None:
    """A streaming response listens for the disconnect by itself and shares receive() with us."""
    server = FakeServer(b"ab", calls_back=calls_back)

    async def chunks() -> Any:
        for number in range(3):
            await anyio.lowlevel.checkpoint()
            yield str(number)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        await exchange.body()
        await exchange.run(lambda: StreamingResponse(chunks())(scope, receive, send))

    await server.run(app)
    assert server.body == b"012"


async def test_client_that_left_before_anybody_listened_is_gone() -> None:
    """A client that leaves right behind its request, which has no body to read, starts no work."""
    server = FakeServer(calls_back=True)
    server.leave()
    seen: list[str] = []

    async def work(exchange: Exchange) -> None:
        async def note() -> None:
            seen.append("ran")

        assert exchange.gone
        await exchange.run(note)

    await server.run(endpoint(work))
    assert (seen, server.sent) == ([], [])
