"""A caller that leaves: the upstream's socket closes at once, and no slot is lost."""

import asyncio
import random
import threading
from typing import Any

import anyio
import httpx
import pytest

BEFORE_HEADERS = b""
IN_THE_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello"


def hanging(answer: bytes) -> Any:
    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(answer)
        peer.wait_until_closed()

    return script


async def call_and_read(transport: Any, request: httpx.Request) -> None:
    """Do as a careless caller does: nothing is closed on the way out."""
    response = await transport.handle_async_request(request)
    async for _ in response.stream:
        pass


@pytest.mark.parametrize("answer", [BEFORE_HEADERS, IN_THE_BODY], ids=["headers", "body"])
async def test_cancelled_wait_closes_the_upstream(
    transport: Any, build: Any, serve: Any, until: Any, answer: bytes
) -> None:
    """Cancelling a scope before the headers or in the body closes the socket promptly."""
    upstream = serve(hanging(answer))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_and_read, transport, build(upstream.url))
        await until(lambda: upstream.requests, seconds=5)
        await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    await until(upstream.peers[0].closed.is_set)
    assert transport.statistics().in_flight == 0


async def test_cancelled_upload_closes_the_upstream(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """Cancelling in the middle of an upload cuts it, though much is still to be written."""
    arrived = []
    reading = threading.Event()

    def script(peer: Any) -> None:
        peer.read_head()
        reading.wait(5)
        try:
            while data := peer.connection.recv(1 << 20):
                arrived.append(len(data))
        except ConnectionError:
            pass
        peer.closed.set()

    upstream = serve(script)
    size = 64 << 20
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_and_read, transport, build(upstream.url, content=b"x" * size))
        await until(lambda: upstream.peers, seconds=5)
        await anyio.sleep(0.2)  # all buffers are full by then
        tasks.cancel_scope.cancel()
    reading.set()
    await until(upstream.peers[0].closed.is_set, seconds=2)
    assert sum(arrived) < size
    assert transport.statistics().in_flight == 0


async def test_cancelled_tls_handshake_closes_the_upstream(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """Cancelling while connecting closes the half-made connection."""
    upstream = serve(lambda peer: peer.wait_until_closed())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call_and_read, transport, build(f"https://localhost:{upstream.port}/"))
        await until(lambda: upstream.peers, seconds=5)
        await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    await until(upstream.peers[0].closed.is_set)
    assert transport.statistics().in_flight == 0


@pytest.mark.parametrize("answer", [BEFORE_HEADERS, IN_THE_BODY], ids=["headers", "body"])
@pytest.mark.parametrize(
    "shipped",
    [
        ("aiohttp", "asyncio"),
        ("aiohttp", "uvloop"),
        ("http1", "asyncio"),
        ("http1", "uvloop"),
        ("httpx_pool", "asyncio"),
    ],
    ids="-".join,
    indirect=True,
)
async def test_native_cancellation_closes_the_upstream(
    transport: Any, build: Any, serve: Any, until: Any, answer: bytes
) -> None:
    """asyncio's own `Task.cancel()` does the same; trio has nothing of the kind."""
    upstream = serve(hanging(answer))
    task = asyncio.create_task(call_and_read(transport, build(upstream.url)))
    await until(lambda: upstream.requests, seconds=5)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(upstream.peers[0].closed.is_set)
    assert transport.statistics().in_flight == 0


async def test_cancellation_is_not_swallowed(transport: Any, build: Any, serve: Any) -> None:
    """A cancelled call ends as cancelled, not as an error of the transport."""
    upstream = serve(hanging(BEFORE_HEADERS))
    outcome = []

    async def call() -> None:
        try:
            await call_and_read(transport, build(upstream.url))
        except BaseException as error:
            outcome.append(type(error))
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
    assert outcome == [anyio.get_cancelled_exc_class()] or not issubclass(outcome[0], Exception)


async def test_no_slot_is_lost_after_a_thousand_cancellations(
    small_transport: Any, build: Any, serve: Any, rng: random.Random
) -> None:
    """With 20 slots and 1,000 calls cancelled at any moment, all 20 serve afterwards."""

    def script(peer: Any) -> None:
        while peer.read_request():
            peer.stopped.wait(0.002)
            peer.answer(b"x" * 2_000)

    upstream = serve(script)
    moments = [rng.uniform(0, 0.02) for _ in range(1_000)]
    cancelled = 0

    async def churn() -> None:
        nonlocal cancelled
        while moments:
            with anyio.move_on_after(moments.pop()) as scope:
                await call_and_read(small_transport, build(upstream.url, pool=30))
            cancelled += scope.cancelled_caught

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(40):  # twice the slots: calls are cancelled while they wait, too
                tasks.start_soon(churn)
    assert cancelled > 100
    statistics = small_transport.statistics()
    assert (statistics.in_flight, statistics.waiting) == (0, 0)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(call_and_read, small_transport, build(upstream.url, pool=0.5))


async def test_full_pool_is_a_pool_timeout(
    small_transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """A call that finds no slot in time is PoolTimeout; nothing of it is sent."""
    upstream = serve(hanging(BEFORE_HEADERS))
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(call_and_read, small_transport, build(upstream.url))
        await until(lambda: len(upstream.requests) == 20, seconds=5)
        with pytest.raises(httpx.PoolTimeout):
            await small_transport.handle_async_request(build(upstream.url, pool=0.1))
        assert len(upstream.requests) == 20
        tasks.cancel_scope.cancel()
    assert small_transport.statistics().in_flight == 0


async def test_waiting_call_gets_the_slot_that_is_freed(
    small_transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """A call that waits for a slot goes on as soon as another is cancelled."""
    upstream = serve(hanging(BEFORE_HEADERS))
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as first:
            async with anyio.create_task_group() as crowd:
                for _ in range(20):
                    crowd.start_soon(call_and_read, small_transport, build(upstream.url))
                await until(lambda: len(upstream.requests) == 20, seconds=5)
                tasks.start_soon(call_and_read, small_transport, build(upstream.url, pool=10))
                await anyio.sleep(0.05)
                assert small_transport.statistics().waiting == 1
                first.cancel()
        await until(lambda: len(upstream.requests) == 21, seconds=5)
        tasks.cancel_scope.cancel()


ON_ASYNCIO = pytest.mark.parametrize(
    "shipped",
    [("aiohttp", "asyncio"), ("aiohttp", "uvloop"), ("http1", "asyncio"), ("http1", "uvloop")],
    ids="-".join,
    indirect=True,
)


@ON_ASYNCIO
async def test_answer_dropped_unread_gives_its_slot_back(
    small_transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """An answer that is forgotten, neither read nor closed, keeps no slot."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
        peer.wait_until_closed()

    upstream = serve(script)
    response = await small_transport.handle_async_request(build(upstream.url))
    assert small_transport.statistics().in_flight == 1
    del response
    await until(lambda: small_transport.statistics().in_flight == 0)
    await until(upstream.peers[0].closed.is_set)


@ON_ASYNCIO
async def test_call_that_waited_for_a_closed_session_uses_a_new_one(
    small_transport: Any, build: Any, serve: Any, read_all: Any, until: Any
) -> None:
    """Closing the transport while a call waits for a slot moves that call, and fails the rest."""

    def script(peer: Any) -> None:
        if not peer.read_request():
            return
        if peer.number < 20:
            peer.wait_until_closed()
        else:
            peer.answer()

    upstream = serve(script)
    failures: list[type[Exception]] = []

    async def fail() -> None:
        try:
            await small_transport.handle_async_request(build(upstream.url))
        except httpx.TransportError as error:
            failures.append(type(error))

    async def wait() -> None:
        response = await small_transport.handle_async_request(build(upstream.url, pool=10))
        assert await read_all(response) == b"{}"

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(fail)
            await until(lambda: len(upstream.requests) == 20, seconds=5)
            tasks.start_soon(wait)
            await until(lambda: small_transport.statistics().waiting == 1)
            await small_transport.aclose()
    assert len(failures) == 20
    assert set(failures) <= {httpx.RemoteProtocolError, httpx.ReadError}
