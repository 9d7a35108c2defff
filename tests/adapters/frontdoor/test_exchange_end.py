"""How an exchange ends, on every event loop: unread bodies, the drain, and broken routes."""

import anyio
import anyio.lowlevel
import pytest
from scripted_exchange import FakeServer, answer, endpoint
from starlette.responses import PlainTextResponse

from adapters.frontdoor.border import exchange_of
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.receiver import Exchange

pytestmark = pytest.mark.anyio


async def test_unread_body_is_discarded_before_the_end_of_the_answer(calls_back: bool) -> None:
    """An early answer is complete at once, says close, and ends when the body has been read."""
    parts = [b"x" * 1000] * 30
    server = FakeServer(*parts, calls_back=calls_back)
    await server.run(endpoint(answer))
    assert (b"connection", b"close") in server.sent[0]["headers"]
    assert [message.get("more_body") for message in server.sent[1:]] == [True, False]
    assert server.received == 31


async def test_discarding_an_unread_body_is_bounded_in_bytes(calls_back: bool) -> None:
    """A client that sends for ever is read up to the limit only."""
    server = FakeServer(*[b"x" * 1000] * 30, calls_back=calls_back)
    await server.run(endpoint(answer), linger_bytes=5000)
    assert server.received_before_end < 31
    assert server.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_discarding_an_unread_body_is_bounded_in_time(calls_back: bool) -> None:
    """A client that announces a body and sends none does not hold the answer."""
    server = FakeServer(calls_back=calls_back, length=1000)
    with anyio.fail_after(2):
        await server.run(endpoint(answer), linger_seconds=0.05)
    assert server.body == b"done"


async def test_answers_without_request_body_keep_the_connection(calls_back: bool) -> None:
    """A request without a body needs no reading and no close."""
    server = FakeServer(calls_back=calls_back)
    await server.run(endpoint(answer))
    assert (b"connection", b"close") not in server.sent[0]["headers"]
    assert server.received == 0


async def test_draining_server_refuses_and_closes(calls_back: bool) -> None:
    """A refused request gets 503 with Retry-After; watched paths are served to the end."""
    server = FakeServer(b"ab", calls_back=calls_back)
    server.draining.refuse()
    await server.run(endpoint(answer))
    assert server.status == 503
    headers = dict(server.sent[0]["headers"])
    assert (headers[b"retry-after"], headers[b"connection"]) == (b"1", b"close")

    watched = FakeServer(calls_back=calls_back)
    watched.draining = Draining(always_served=frozenset({"/"}))
    watched.draining.refuse()
    await watched.run(PlainTextResponse("draining"))
    assert (watched.status, dict(watched.sent[0]["headers"])[b"connection"]) == (200, b"close")


async def test_cut_request_is_told_why(calls_back: bool) -> None:
    """A request that is cancelled at the end of a drain is answered if nothing was sent yet."""
    server = FakeServer(b"ab", calls_back=calls_back)

    async def work(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.run(anyio.sleep_forever)

    with anyio.fail_after(2):
        async with anyio.create_task_group() as group:
            group.start_soon(server.run, endpoint(work))
            await anyio.wait_all_tasks_blocked()
            assert server.draining.in_flight == 1
            assert server.draining.cut() == 1
            await server.draining.wait_idle()
    assert server.status == 503
    assert b"server_draining" in server.body


async def test_stream_ends_itself_when_the_drain_expires(calls_back: bool) -> None:
    """A stream registered with the drain gets to send its own last event."""
    server = FakeServer(b"ab", calls_back=calls_back)

    async def stream(exchange: Exchange) -> None:
        await exchange.send({"type": "http.response.start", "status": 200, "headers": []})
        with anyio.CancelScope() as scope, server.draining.ends(scope):
            await anyio.sleep_forever()
        assert scope.cancelled_caught
        await exchange.send({"type": "http.response.body", "body": b"error event"})

    async def work(exchange: Exchange) -> None:
        await exchange.body()
        await exchange.run(lambda: stream(exchange))

    with anyio.fail_after(2):
        async with anyio.create_task_group() as group:
            group.start_soon(server.run, endpoint(work))
            await anyio.wait_all_tasks_blocked()
            server.draining.expire()
    assert server.body == b"error event"
    assert server.draining.state == "expired"


async def test_unknown_errors_leave_the_border_as_they_are(calls_back: bool) -> None:
    """A bug in a route is not hidden by the border, and the request is counted out."""
    server = FakeServer(b"ab", calls_back=calls_back)

    async def broken(_exchange: Exchange) -> None:
        await anyio.lowlevel.checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await server.run(endpoint(broken))
    assert not server.draining.in_flight
    assert server.client is None or server.client.on_gone is None


def test_exchange_of_needs_the_border() -> None:
    """A route outside of the border is told what is missing."""
    with pytest.raises(RuntimeError, match="ExchangeBorder"):
        exchange_of({"type": "http"})
