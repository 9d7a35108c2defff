"""The guards around httpx's own client."""

from typing import Any

import httpx
import pytest

from adapters.transports import httpx_pool
from adapters.transports.httpx_pool import POOL_CONNECTIONS, HttpxPoolTransport
from adapters.transports.per_loop import required_loop


@pytest.fixture(params=[("httpx_pool", "asyncio"), ("httpx_pool", "trio")], ids="-".join)
def shipped(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Run on both kinds of event loop."""
    row: tuple[str, str] = request.param
    return row


class StuckConnection:
    """What a call cancelled at a bad moment leaves in httpcore's pool."""

    def is_closed(self) -> bool:
        return False

    def is_idle(self) -> bool:
        return False

    def has_expired(self) -> bool:
        return False

    def is_available(self) -> bool:
        return False

    def can_handle_request(self, origin: Any) -> bool:
        return True

    async def aclose(self) -> None:
        return


def echoing(peer: Any) -> None:
    while peer.read_request():
        peer.answer()
    peer.closed.set()


def small_pools(transport: HttpxPoolTransport) -> list[Any]:
    pools = transport._pools.find(required_loop())
    assert pools is not None
    return [pool for pools in pools._origins.values() for pool in pools]


async def test_pool_without_free_slots_is_replaced(
    transport: Any, build: Any, serve: Any, read_all: Any, until: Any
) -> None:
    """A call that a broken pool cannot serve is served by a new one, within its limits."""
    upstream = serve(echoing)
    await read_all(await transport.handle_async_request(build(upstream.url)))
    (broken,) = small_pools(transport)
    await broken.transport._pool.aclose()
    broken.transport._pool._connections = [StuckConnection() for _ in range(POOL_CONNECTIONS)]
    response = await transport.handle_async_request(build(upstream.url, pool=1.0))
    assert await read_all(response) == b"{}"
    assert broken not in small_pools(transport)
    assert transport.statistics().in_flight == 0


async def test_pool_that_lost_a_slot_is_replaced_before_it_is_missed(
    transport: Any, build: Any, serve: Any, read_all: Any, until: Any
) -> None:
    """A pool that counts more connections than there are calls gets no further call."""
    upstream = serve(echoing)
    response = await transport.handle_async_request(build(upstream.url))
    (losing,) = small_pools(transport)
    losing.transport._pool._connections.append(StuckConnection())
    await read_all(response)
    assert small_pools(transport) == []
    await until(upstream.peers[0].closed.is_set)


async def test_calls_gather_in_few_small_pools(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """A pool holds ten calls, the eleventh opens the second, and later calls reuse the first."""
    upstream = serve(echoing)
    responses = [await transport.handle_async_request(build(upstream.url)) for _ in range(11)]
    assert [pool.active for pool in small_pools(transport)] == [10, 1]
    for response in responses:
        await read_all(response)
    await read_all(await transport.handle_async_request(build(upstream.url)))
    assert len(upstream.peers) == 11


async def test_origins_are_bounded(
    transport: Any, build: Any, serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bound, the origin unused for longest loses its idle connections."""
    monkeypatch.setattr(httpx_pool, "MAX_ORIGINS", 2)
    upstreams = [serve(echoing) for _ in range(3)]
    for upstream in upstreams:
        response = await transport.handle_async_request(build(upstream.url))
        await response.aread()
    await until(upstreams[0].peers[0].closed.is_set)
    assert len(small_pools(transport)) == 2
    assert not upstreams[1].peers[0].closed.is_set()


@pytest.mark.parametrize("kind", httpx_pool._TEXTS, ids=lambda row: row[0].__name__)
def test_texts_hide_what_the_library_says(kind: Any) -> None:
    """Every class keeps its meaning and loses its text."""
    foreign, ours, _ = kind
    error = httpx_pool.told_without_secrets(foreign("Bearer sk-secret"))
    assert type(error) is ours
    assert "sk-secret" not in str(error)
    assert isinstance(error, httpx.TransportError)
