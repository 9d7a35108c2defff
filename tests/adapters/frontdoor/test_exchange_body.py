"""The body that an exchange reads, on every event loop: whole, limited, once."""

import math
from collections.abc import Callable

import anyio
import pytest
from scripted_exchange import FakeServer, answer, endpoint
from starlette.types import Receive, Scope, Send

from adapters.frontdoor.body_limits import BodyTimeoutError, BodyTooLargeError, ExchangeLimits
from adapters.frontdoor.receiver import Exchange

pytestmark = pytest.mark.anyio


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
    server.put({"type": "http.disconnect"})
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


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_limits_must_limit(value: float) -> None:
    """A limit that is no limit is refused."""
    with pytest.raises(ValueError, match="body_seconds"):
        ExchangeLimits(body_seconds=value)
