"""Connections of the HTTP/1.1 transport while nobody uses them, and how names become addresses."""

import asyncio
import errno
import random
import socket
import ssl
from typing import Any

import anyio
import httpx
import pytest

from adapters.transports import http1_pool
from adapters.transports.http1 import Http1Transport
from adapters.transports.http1_connecting import MAX_NAMES, Resolver, not_sent

UNTRUSTED = ssl.SSLCertVerificationError(1, "certificate verify failed")
UNTRUSTED.verify_message = "Hostname mismatch, certificate is not valid for 'secret-host'."


@pytest.fixture(params=[("http1", "asyncio"), ("http1", "uvloop")], ids="-".join)
def shipped(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Run on both loops of asyncio."""
    row: tuple[str, str] = request.param
    return row


def answering(peer: Any) -> None:
    while peer.read_request():
        peer.answer()
    peer.closed.set()


def sink(peer: Any) -> None:
    peer.wait_until_closed()


@pytest.fixture
def ask(transport: Any, build: Any, read_all: Any) -> Any:
    """Make one whole call."""

    async def call(upstream: Any, *, through: Any = transport) -> None:
        response = await through.handle_async_request(build(upstream.url))
        assert await read_all(response) == b"{}"

    return call


async def test_idle_connections_are_closed_after_a_while(
    ask: Any, serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that nobody uses is closed by a timer, without another call."""
    monkeypatch.setattr(http1_pool, "KEEPALIVE_SECONDS", 0.1)
    monkeypatch.setattr(http1_pool, "_SWEEP_SECONDS", 0.05)
    upstream = serve(answering)
    await ask(upstream)
    assert not upstream.peers[0].closed.is_set()
    await until(upstream.peers[0].closed.is_set)


async def test_connection_that_idled_too_long_is_not_used(
    ask: Any, serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the timer has come round, a stale connection is replaced all the same."""
    monkeypatch.setattr(http1_pool, "KEEPALIVE_SECONDS", 0.1)
    upstream = serve(answering)
    await ask(upstream)
    await anyio.sleep(0.15)
    await ask(upstream)
    assert len(upstream.peers) == 2
    await until(upstream.peers[0].closed.is_set)


async def test_old_connections_are_replaced(
    ask: Any, serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However busy, a connection ends after its greatest age, so that moved names are followed."""
    monkeypatch.setattr(http1_pool, "MAX_AGE_SECONDS", 0.2)
    upstream = serve(answering)
    with anyio.fail_after(5):
        while len(upstream.peers) < 2:
            await ask(upstream)
            await anyio.sleep(0.01)
    await until(upstream.peers[0].closed.is_set)


async def test_idle_connections_are_bounded(ask: Any, serve: Any, until: Any) -> None:
    """With room for one idle connection, the older of two is closed."""
    first, second = serve(answering), serve(answering)
    transport = Http1Transport(limit=1)
    await ask(first, through=transport)
    await ask(second, through=transport)
    await until(first.peers[0].closed.is_set)
    assert not second.peers[0].closed.is_set()
    await ask(second, through=transport)
    assert len(second.peers) == 1
    await transport.aclose()


async def test_connection_closed_while_idle_is_not_used(ask: Any, serve: Any, until: Any) -> None:
    """A close that was seen while the connection idled costs no call."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.answer()

    upstream = serve(script)
    for _ in range(3):
        await ask(upstream)
        await until(upstream.peers[-1].done.is_set)
        await anyio.sleep(0.02)
    assert len(upstream.peers) == 3


async def test_connection_used_last_is_used_first(
    transport: Any, build: Any, ask: Any, serve: Any, read_all: Any
) -> None:
    """Of several idle connections the freshest is taken, so that the others may end."""
    upstream = serve(answering)
    one = await transport.handle_async_request(build(upstream.url))
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask, upstream)
    await read_all(one)
    opened = len(upstream.peers)
    counts = [len(peer.requests) for peer in upstream.peers]
    for _ in range(5):
        await ask(upstream)
    grown = [len(peer.requests) for peer in upstream.peers]
    assert len(grown) == opened
    assert max(new - old for new, old in zip(grown, counts, strict=True)) == 5


async def test_closing_while_a_call_connects_fails_it_unsent(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """A connection that comes to be after the close is not used."""
    upstream = serve(lambda peer: peer.wait_until_closed())
    failures: list[type[Exception]] = []

    async def call() -> None:
        try:
            await transport.handle_async_request(
                build(f"https://localhost:{upstream.port}/", connect=0.5)
            )
        except httpx.TransportError as error:
            failures.append(type(error))

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await until(lambda: upstream.peers, seconds=5)
            await transport.aclose()
    assert failures[0] in {httpx.ConnectError, httpx.ConnectTimeout}


async def test_cancelled_connects_leave_nothing_behind(
    transport: Any, build: Any, serve: Any, rng: random.Random, until: Any
) -> None:
    """Calls cancelled at any moment of their connect are forgotten, connection and all."""
    upstream = serve(sink)

    async def call(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await transport.handle_async_request(build(upstream.url))

    for _ in range(10):
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(call, rng.uniform(0, 0.02))
    connections = transport._connections.find(asyncio.get_running_loop())
    await until(lambda: not connections._open)
    assert transport.statistics().in_flight == 0


async def test_addresses_of_a_name_are_kept_for_a_while(transport: Any) -> None:
    """A burst of connections asks the system once; a failed connection makes it ask again."""
    asked = []
    found = socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)

    async def look_up(host: str, port: int) -> Any:
        asked.append((host, port))
        await anyio.sleep(0.01)
        return found

    resolver = Resolver(look_up)
    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(resolver.find, "provider.example", 80)
    assert await resolver.find("provider.example", 80) == found
    assert asked == [("provider.example", 80)]
    resolver.forget("provider.example", 80)
    assert await resolver.find("provider.example", 80) == found
    assert len(asked) == 2


async def test_kept_names_are_bounded(transport: Any) -> None:
    """A process that calls ever new names does not remember all of them."""

    async def look_up(host: str, port: int) -> Any:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, host, ("127.0.0.1", port))]

    resolver = Resolver(look_up)
    for number in range(MAX_NAMES * 2):
        await resolver.find(f"provider-{number}.example", 80)
    assert len(resolver._known) <= MAX_NAMES
    assert len(resolver._asking) == 0


async def test_name_without_addresses_does_not_resolve(transport: Any) -> None:
    """An empty list of addresses is a name that does not resolve."""

    async def look_up(host: str, port: int) -> Any:
        return []

    with pytest.raises(socket.gaierror):
        await Resolver(look_up).find("provider.example", 80)


async def test_waiting_for_a_name_can_be_cancelled(transport: Any) -> None:
    """When the call that asks for a name is cancelled, the next in line asks in its place."""
    asked = []

    async def look_up(host: str, port: int) -> Any:
        asked.append(host)
        if len(asked) == 1:
            await anyio.sleep_forever()
        return socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)

    resolver = Resolver(look_up)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            with anyio.move_on_after(0.1):
                async with anyio.create_task_group() as first:
                    first.start_soon(resolver.find, "provider.example", 80)
                    await anyio.sleep(0.01)
                    tasks.start_soon(resolver.find, "provider.example", 80)
    assert len(asked) == 2


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "xn--\x00"])
async def test_impossible_names_are_told_as_unsent(transport: Any, host: str) -> None:
    """A name that no system would look up is an error before anything is sent."""
    with pytest.raises((httpx.ConnectError, httpx.LocalProtocolError, httpx.InvalidURL)):
        await transport.handle_async_request(httpx.Request("GET", f"http://{host}/"))
    assert transport.statistics().in_flight == 0


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            httpx.ConnectError,
            "not known",
        ),
        (OSError(errno.ECONNREFUSED, "('10.0.0.1', 80)"), httpx.ConnectError, "Connection refused"),
        (OSError(errno.ETIMEDOUT, "late"), httpx.ConnectTimeout, "in time"),
        (UNTRUSTED, httpx.ConnectError, "Hostname mismatch"),
        (ssl.SSLError(1, "x"), httpx.ConnectError, "TLS handshake failed"),
        (TimeoutError(), httpx.ConnectTimeout, "in time"),
        (UnicodeError("secret-host"), httpx.LocalProtocolError, "address"),
        (RuntimeError("10.0.0.1"), httpx.ConnectError, "cannot connect"),
    ],
)
def test_failures_while_connecting_are_not_sent(
    error: Exception, expected: type[Exception], text: str
) -> None:
    """Whatever fails before there is a connection says that nothing was sent."""
    failure = not_sent(error)
    assert type(failure) is expected
    assert text in str(failure)
    assert "secret-host" not in str(failure)
    assert "10.0.0.1" not in str(failure)
