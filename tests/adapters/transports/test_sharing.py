"""Leases: one transport for all, connections that end with their last user."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

from adapters.transports.aiohttp import AiohttpTransport
from adapters.transports.per_loop import PerLoop
from adapters.transports.sharing import SharedTransport, TransportLease, share_transport


@pytest.fixture(
    params=[("shared", "asyncio"), ("shared", "uvloop"), ("shared", "trio")], ids="-".join
)
def shipped(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Run on every backend; the transport is the shared one."""
    row: tuple[str, str] = request.param
    return row


@pytest.fixture
def upstream(serve: Any) -> Any:
    """An upstream that answers all and notes who left."""

    def script(peer: Any) -> None:
        while peer.read_request():
            peer.answer()
        peer.closed.set()

    return serve(script)


@pytest.fixture
def ask(build: Any, upstream: Any) -> Callable[[TransportLease], Any]:
    """Make one call through a lease."""

    async def call(lease: TransportLease) -> None:
        response = await lease.transport.handle_async_request(build(upstream.url))
        await response.aread()

    return call


def test_all_leases_share_one_transport() -> None:
    """Whoever asks gets the same object."""
    first, second = share_transport(), share_transport()
    assert first.transport is second.transport
    assert isinstance(first.transport, httpx.AsyncBaseTransport)


def test_lease_is_small() -> None:
    """A lease costs less than a kilobyte, its entry among the users included."""
    share_transport()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        leases = [share_transport() for _ in range(1_000)]
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used / len(leases) < 1_024


def test_leases_may_be_taken_from_many_threads() -> None:
    """Taking leases needs no event loop and no lock of the caller's."""
    taken: list[TransportLease] = []
    barrier = threading.Barrier(8)

    def take() -> None:
        barrier.wait()
        for _ in range(500):
            lease = share_transport()
            assert lease.transport is not None
            taken.append(lease)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(lease.transport) for lease in taken}) == 1


def test_another_transport_can_be_put_in_on_asyncio() -> None:
    """What sends on asyncio is a choice of whoever makes the transport."""
    chosen = SharedTransport(on_asyncio=AiohttpTransport(limit=7))
    assert "asyncio=AiohttpTransport(limit=7)" in repr(chosen)
    assert "asyncio=Http1Transport(limit=7)" in repr(SharedTransport(limit=7))


async def test_last_lease_closes_the_connections(ask: Any, upstream: Any, until: Any) -> None:
    """Connections stay while another lease uses the loop, and go with the last."""
    first, second = share_transport(), share_transport()
    await ask(first)
    await ask(second)
    await first.aclose()
    await ask(second)
    assert len(upstream.peers) == 1
    assert not upstream.peers[0].closed.is_set()
    await second.aclose()
    await until(upstream.peers[0].closed.is_set)


async def test_closing_twice_takes_nothing_from_others(ask: Any, upstream: Any) -> None:
    """The second close of a lease does nothing."""
    first, second = share_transport(), share_transport()
    await ask(first)
    await ask(second)
    await first.aclose()
    await first.aclose()
    await ask(second)
    assert len(upstream.peers) == 1
    await second.aclose()


async def test_lease_never_used_keeps_nothing_open(ask: Any, upstream: Any, until: Any) -> None:
    """A lease whose transport was never taken does not count as a user."""
    idle, used = share_transport(), share_transport()
    await ask(used)
    await used.aclose()
    await until(upstream.peers[0].closed.is_set)
    await idle.aclose()


async def test_lease_dropped_unclosed_keeps_nothing_open(
    ask: Any, upstream: Any, until: Any
) -> None:
    """A lease that was used and then forgotten does not count as a user."""
    dropped, used = share_transport(), share_transport()
    await ask(dropped)
    await ask(used)
    del dropped
    gc.collect()
    await used.aclose()
    await until(upstream.peers[0].closed.is_set)


async def test_transport_taken_outside_a_loop_counts_everywhere(
    ask: Any, upstream: Any, until: Any
) -> None:
    """Who took the transport in a thread without a loop may be using it: nothing is cut."""
    outside: list[TransportLease] = []

    def take() -> None:
        lease = share_transport()
        assert lease.transport is not None
        outside.append(lease)

    await anyio.to_thread.run_sync(take)
    used = share_transport()
    await ask(used)
    await used.aclose()
    await anyio.sleep(0.05)
    assert not upstream.peers[0].closed.is_set()
    await outside[0].aclose()
    await until(upstream.peers[0].closed.is_set)


async def test_use_after_close_opens_anew(ask: Any, upstream: Any, until: Any) -> None:
    """A transport used after its lease was closed makes a new connection."""
    lease = share_transport()
    await ask(lease)
    await lease.aclose()
    await ask(lease)
    assert len(upstream.peers) == 2
    await share_transport().aclose()
    await until(upstream.peers[1].closed.is_set)


async def test_statistics_count_calls(ask: Any, build: Any, upstream: Any) -> None:
    """A call counts from its start to the end of its body."""
    lease = share_transport()
    transport: Any = lease.transport
    assert transport.statistics().in_flight == 0
    await ask(lease)
    assert transport.statistics() == (1_000, 0, 0)
    await lease.aclose()


def test_loop_that_ends_unclosed_leaves_no_socket(
    ask: Any, upstream: Any, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """A runner that ends its loop closes what was never closed, without a warning."""
    backend, options = anyio_backend
    lease = share_transport()
    anyio.run(ask, lease, backend=backend, backend_options=options)
    assert upstream.peers[0].closed.wait(2)
    anyio.run(ask, lease, backend=backend, backend_options=options)
    assert len(upstream.peers) == 2
    assert upstream.peers[1].closed.wait(2)
    gc.collect()


def test_two_threads_with_a_loop_each(
    ask: Any, upstream: Any, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """Each loop has connections of its own; closing one's leaves the other's alone."""
    backend, options = anyio_backend
    first_closed, failures = threading.Event(), []
    both_open = threading.Barrier(2)

    async def first() -> None:
        lease = share_transport()
        await ask(lease)
        both_open.wait(5)
        await lease.aclose()
        first_closed.set()

    async def second() -> None:
        lease = share_transport()
        await ask(lease)
        both_open.wait(5)
        first_closed.wait(5)
        await ask(lease)
        await lease.aclose()

    def run(main: Callable[[], Any]) -> None:
        try:
            anyio.run(main, backend=backend, backend_options=options)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=(main,)) for main in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert failures == []
    assert len(upstream.peers) == 2
    assert all(peer.closed.wait(2) for peer in upstream.peers)


def test_closed_loop_is_forgotten_by_the_next() -> None:
    """A loop closed by hand, generators and all, is let go when another loop opens."""

    class Resource:
        abandoned = False

        closed = False

        async def aclose(self) -> None:
            self.closed = True

        def abandon(self) -> None:
            self.abandoned = True

    resources = PerLoop(Resource)

    async def open_one() -> Resource:
        return await resources.open(asyncio.get_running_loop())

    loop = asyncio.new_event_loop()
    first = loop.run_until_complete(open_one())
    loop.close()
    assert not first.abandoned
    other = asyncio.new_event_loop()
    try:
        other.run_until_complete(open_one())
        assert (first.abandoned, first.closed) == (True, False)
        assert resources.find(loop) is None
    finally:
        other.run_until_complete(resources.aclose(other))
        other.close()


def test_no_loop_is_a_plain_mistake() -> None:
    """Closing a lease outside of every event loop says what is missing."""
    lease = share_transport()
    with pytest.raises(RuntimeError, match="running event loop"):
        lease.aclose().send(None)
