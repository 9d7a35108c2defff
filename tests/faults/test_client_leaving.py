"""Clients that leave, vanish, or do not read: their work ends, and its upstream with it."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import anyio.abc
import pytest
from client_lab import (
    GENEROUS,
    STREAMED,
    Flood,
    SmallClient,
    Stopwatch,
    begin_a_stream,
    cancelled,
    keep_silent,
    upstream_is_closed,
    vanish,
    with_client,
)
from raw_upstream import SSE_HEAD, Peer, Upstream, chunk, event
from running_gateway import HELLO, RunningGateway, chat_bytes, read_all, read_until

from adapters.frontdoor.body_limits import ExchangeLimits
from adapters.frontdoor.listening_socket import open_listening_socket

pytestmark = pytest.mark.anyio

BODIES = pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["whole", "streamed"])
HASTY = {"limits": ExchangeLimits(write_seconds=0.3)}


@pytest.fixture
def anyio_backend() -> Any:
    """The loop that the server is run with."""
    return "asyncio", {"use_uvloop": True}


@BODIES
async def test_c1_disconnect_while_queued(body: Any) -> None:
    """C1: who leaves the queue is taken out of it, and nothing is sent upstream for it."""

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        def waiting() -> int:
            depth: int = gateway.app.engine.status().actors[0].mailbox.depth
            return depth

        async with await gateway.send_chat():
            await gateway.until(lambda: upstream.requests == 1)
            async with await gateway.send_chat(body):
                await gateway.until(lambda: waiting() == 1)
            await gateway.until(lambda: waiting() == 0, GENEROUS)
            assert gateway.outcomes() == {"cancelled": 1}
        await cancelled(gateway, 2)
        assert upstream.requests == 1

    await with_client(keep_silent, use, provider={"limits": {"concurrency": 1}})


@BODIES
async def test_c2_disconnect_before_the_first_byte(body: Any) -> None:
    """C2: the upstream connection is closed at once, and not used for anybody else."""

    async def silent_once(peer: Peer) -> None:
        await peer.read_request()
        if peer.number == 0:
            await peer.hold()
        else:
            await peer.answer_well()

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        async with await gateway.send_chat(body):
            await gateway.until(lambda: upstream.requests == 1)
        await upstream_is_closed(upstream, "C2")
        await cancelled(gateway)
        assert (await gateway.log.last()).status == 499
        assert (await gateway.ask(body)).status_code == 200
        assert [len(peer.requests) for peer in upstream.peers] == [1, 1]

    await with_client(silent_once, use)


async def test_c3_disconnect_in_the_middle_of_a_stream() -> None:
    """C3: as before the first byte, and the tokens that were told so far are on record."""

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        async with await gateway.send_chat(STREAMED, x_request_id="c3") as client:
            await read_until(client, b'"we"')
        await upstream_is_closed(upstream, "C3")
        await cancelled(gateway)
        record = await gateway.log.last()
        assert (record.status, record.outcome) == (200, "cancelled")
        story = gateway.app.engine.explain("c3")
        assert story is not None
        assert story["usage"] == {"input": 3, "output": 1}

    await with_client(begin_a_stream, use)


async def test_c4_host_vanishes_while_it_is_sent_to() -> None:
    """C4: nobody acknowledges what is sent, no FIN ever comes: the kernel's limit ends it."""

    async def tick(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(SSE_HEAD)
        while True:
            await peer.send(chunk(event("tick")))
            await anyio.sleep(0.05)

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        async with await gateway.send_chat(STREAMED) as client:
            await read_until(client, b"tick")
            vanish(client)
            watch = Stopwatch()
            await gateway.until(lambda: not upstream.open, 15)
            watch.show("C4: upstream closed after the client vanished, limit 1 s")
            await cancelled(gateway)

    await with_client(tick, use, user_timeout=1.0)


def test_c4_host_vanishes_while_it_waits() -> None:
    """C4: every accepted connection is probed, so that a silent one ends as well."""
    with (
        open_listening_socket("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 60_000


@BODIES
async def test_c5_half_close_after_sending(body: Any) -> None:
    """C5: a client that shuts down its sending half counts as gone; it gets no answer."""

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        async with await gateway.send_chat(body) as client:
            await gateway.until(lambda: upstream.requests == 1)
            await client.send_eof()
            await upstream_is_closed(upstream, "C5")
            assert await read_all(client) == (b"", True)
        await cancelled(gateway)

    await with_client(keep_silent, use)


async def test_c6_slow_reader_of_a_stream() -> None:
    """C6: what is not read is not fetched; when it is read, the stream goes on."""
    flood = Flood()

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        with SmallClient(gateway.port) as client:
            client.send(chat_bytes(STREAMED))
            await flood.has_stopped()
            # Buffers of four sockets, and ours of 64 KiB: an unbounded one would hold it all.
            held = flood.sent
            assert held < 64 * 1024 * 1024
            with anyio.fail_after(20):
                while flood.sent == held:
                    await client.receive()
        await upstream_is_closed(upstream, "C6")
        await cancelled(gateway)

    await with_client(flood, use)


async def test_c7_never_reads() -> None:
    """C7: a client that does not read for the time of a write is ended, and its upstream."""
    flood = Flood()

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        with SmallClient(gateway.port) as client:
            client.send(chat_bytes(STREAMED))
            await gateway.until(lambda: upstream.requests == 1)
            await gateway.until(lambda: not upstream.open, 15)
            await cancelled(gateway)
            assert gateway.app.draining.in_flight == 0

    await with_client(flood, use, changes=HASTY)


async def test_c29_stream_closed_after_its_headers() -> None:
    """C29: a client that wanted to see the status only ends the stream at once."""

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        async with await gateway.send_chat(STREAMED) as client:
            head = await read_until(client, b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
        await upstream_is_closed(upstream, "C29")
        await cancelled(gateway)

    await with_client(begin_a_stream, use)
