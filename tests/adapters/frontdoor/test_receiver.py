"""The exchange: one owner of receive() and send(), on every event loop, with a scripted server."""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.frontdoor.body_limits import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientDisconnectedError,
    ExchangeLimits,
)
from adapters.frontdoor.border import ExchangeBorder, exchange_of
from adapters.frontdoor.client_connection import CLIENT_STATE_KEY
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.receiver import Exchange

pytestmark = pytest.mark.anyio


class FakeClient:
    """The connection object of a server that offers one."""

    def __init__(self) -> None:
        self.on_gone: Callable[[], None] | None = None
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class FakeServer:
    """A server with one request: queues body parts, records the answer, lets the client leave."""

    def __init__(self, *parts: bytes, calls_back: bool, length: int | None = None) -> None:
        self.sent: list[Message] = []
        self.received = 0
        self.received_before_end = 0
        self.reads = True
        self.client = FakeClient() if calls_back else None
        self.draining = Draining()
        self.has_sent_some = anyio.Event()
        self._waiting = anyio.Event()
        self._queue: deque[Message] = deque()
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "state": {CLIENT_STATE_KEY: self.client} if calls_back else {},
            "headers": [],
        }
        if length is not None or parts:
            size = sum(map(len, parts)) if length is None else length
            self.scope["headers"].append((b"content-length", str(size).encode()))
        for part in parts:
            self.put({"type": "http.request", "body": part, "more_body": True})
        if length is None:
            self.put({"type": "http.request", "body": b"", "more_body": False})

    def put(self, message: Message) -> None:
        self._queue.append(message)
        self._waiting.set()

    def leave(self) -> None:
        self.put({"type": "http.disconnect"})
        if self.client is not None and self.client.on_gone is not None:
            self.client.on_gone()

    async def receive(self) -> Message:
        while not self._queue:
            self._waiting = anyio.Event()
            await self._waiting.wait()
        self.received += 1
        return self._queue.popleft()

    async def send(self, message: Message) -> None:
        if not self.reads:
            await anyio.sleep(math.inf)
        self.sent.append(message)
        if len(self.sent) == 4:
            self.has_sent_some.set()
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.received_before_end = self.received
            self.put({"type": "http.disconnect"})

    async def run(self, app: ASGIApp, **limits: Any) -> None:
        border = ExchangeBorder(app, limits=ExchangeLimits(**limits), draining=self.draining)
        await border(self.scope, self.receive, self.send)

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


@pytest.fixture(params=[True, False], ids=["calls-back", "events-only"])
def calls_back(request: pytest.FixtureRequest) -> bool:
    """Whether the server tells of a leaving client by itself."""
    return bool(request.param)


def endpoint(handler: Callable[[Exchange], Awaitable[None]]) -> ASGIApp:
    """An app that is one handler."""

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        await handler(exchange_of(scope))

    return app


async def answer(exchange: Exchange, body: bytes = b"done", status: int = 200) -> None:
    """Send a whole answer."""
    length = (b"content-length", str(len(body)).encode())
    await exchange.send({"type": "http.response.start", "status": status, "headers": [length]})
    await exchange.send({"type": "http.response.body", "body": body})


async def test_body_joins_all_parts(calls_back: bool) -> None:
    """A body that comes in parts is one body."""
    server = FakeServer(b"ab", b"cd", calls_back=calls_back)

    async def echo(exchange: Exchange) -> None:
        await answer(exchange, await exchange.body())

    await server.run(endpoint(echo))
    assert (server.status, server.body) == (200, b"abcd")
    assert not server.draining.in_flight


async def test_body_waits_for_late_parts(calls_back: bool) -> None:
    """A part that is not there yet is waited for."""
    server = FakeServer(b"ab", calls_back=calls_back, length=4)

    async def echo(exchange: Exchange) -> None:
        await answer(exchange, await exchange.body())

    async with anyio.create_task_group() as group:
        group.start_soon(server.run, endpoint(echo))
        await anyio.wait_all_tasks_blocked()
        server.put({"type": "http.request", "body": b"cd", "more_body": False})
    assert server.body == b"abcd"


async def test_body_above_the_limit_is_refused_before_reading(calls_back: bool) -> None:
    """Content-Length above the limit is answered with 413 and nothing is read for the body."""
    server = FakeServer(calls_back=calls_back, length=100)
    server.leave()
    seen = []

    async def read(exchange: Exchange) -> None:
        try:
            await exchange.body()
        except BodyTooLargeError:
            seen.append(server.received)
            raise

    await server.run(endpoint(read), body_bytes=99)
    assert seen == [0]
    assert server.status == 413
    assert b"body_too_large" in server.body
    assert (b"connection", b"close") in server.sent[0]["headers"]


async def test_body_above_the_limit_is_found_while_reading(calls_back: bool) -> None:
    """A body without a declared length is counted."""
    server = FakeServer(b"x" * 60, b"x" * 60, calls_back=calls_back, length=0)

    async def read(exchange: Exchange) -> None:
        with pytest.raises(BodyTooLargeError) as caught:
            await exchange.body()
        assert (caught.value.status, caught.value.code) == (413, "body_too_large")
        await answer(exchange)

    await server.run(endpoint(read), body_bytes=100)
    assert server.status == 200


async def test_receive_has_the_same_limit(calls_back: bool) -> None:
    """Code that reads the ASGI way is limited too."""
    server = FakeServer(b"x" * 60, b"x" * 60, calls_back=calls_back)

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while True:
            await receive()

    await server.run(app, body_bytes=100)
    assert server.status == 413


@pytest.mark.parametrize("calls_back", [True, False])
def test_stalled_body_times_out(virtual_time: Callable[..., None], calls_back: bool) -> None:
    """A body that stops coming is given up at the grace of the rate, in virtual time."""
    times = []

    async def main() -> None:
        server = FakeServer(b"ab", calls_back=calls_back, length=4)

        async def read(exchange: Exchange) -> None:
            began = anyio.current_time()
            try:
                await exchange.body()
            except BodyTimeoutError as error:
                times.append((anyio.current_time() - began, error.status))
                raise

        await server.run(endpoint(read))
        assert server.status == 408

    virtual_time(main)
    [(seconds, status)] = times
    assert 20 <= seconds < 21
    assert status == 408


def test_slow_body_must_keep_the_rate(virtual_time: Callable[..., None]) -> None:
    """A drip below the rate is given up; the same drip above it may take until the total time."""

    async def duration(part: bytes) -> float:
        server = FakeServer(calls_back=True, length=10**6)

        async def drip() -> None:
            while True:
                await anyio.sleep(1)
                server.put({"type": "http.request", "body": part, "more_body": True})

        async def read(exchange: Exchange) -> None:
            with pytest.raises(BodyTimeoutError):
                await exchange.body()
            await answer(exchange)

        began = anyio.current_time()
        async with anyio.create_task_group() as group:
            group.start_soon(drip)
            await server.run(endpoint(read), linger_bytes=1)
            group.cancel_scope.cancel()
        return anyio.current_time() - began

    async def main() -> None:
        slow, steady = await duration(b"x" * 400), await duration(b"x" * 600)
        assert 20 <= slow < 22
        assert 120 <= steady < 122

    virtual_time(main)


async def test_body_of_a_client_that_left_raises(calls_back: bool) -> None:
    """A client that leaves in the middle of its body ends the request without an answer."""
    server = FakeServer(b"ab", calls_back=calls_back, length=4)
    server.leave()

    async def read(exchange: Exchange) -> None:
        await exchange.body()

    await server.run(endpoint(read))
    assert server.sent == []


async def test_body_can_be_read_once_only(calls_back: bool) -> None:
    """The second call is a mistake in the route and says so."""
    server = FakeServer(b"ab", calls_back=calls_back)

    async def read(exchange: Exchange) -> None:
        await exchange.body()
        with pytest.raises(RuntimeError, match="only once"):
            await exchange.body()

    await server.run(endpoint(read))


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


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_limits_must_limit(value: float) -> None:
    """A limit that is no limit is refused."""
    with pytest.raises(ValueError, match="body_seconds"):
        ExchangeLimits(body_seconds=value)
