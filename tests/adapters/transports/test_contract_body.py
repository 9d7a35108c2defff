"""What becomes of an answer's body: passed on at once, never called complete when it is not."""

import threading
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest

CUT = (httpx.RemoteProtocolError, httpx.ReadError)


async def read_to_error(
    response: Any, *, on_chunk: Callable[[], object] = bool
) -> tuple[bytes, httpx.TransportError]:
    """Return what arrived of a body, and the error it ended in."""
    arrived = b""
    try:
        async for chunk in response.stream:
            arrived += chunk
            on_chunk()
    except httpx.TransportError as error:
        return arrived, error
    pytest.fail(f"the body ended well with {arrived!r}")


async def cut_body(
    transport: Any, build: Any, serve: Any, answer: bytes, *, reset: bool = False
) -> tuple[bytes, httpx.TransportError]:
    """Return what arrived of a body that is cut, and the error it ended in."""
    go_on = threading.Event()

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(answer)
        go_on.wait(5)
        if reset:
            peer.reset()

    upstream = serve(script)
    with anyio.fail_after(10):
        response = await transport.handle_async_request(build(upstream.url))
        arrived, error = await read_to_error(response, on_chunk=go_on.set)
        await response.aclose()
    return arrived, error


async def test_body_shorter_than_its_length_is_cut(transport: Any, build: Any, serve: Any) -> None:
    """A close before Content-Length bytes is an error, after what had come."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"
    arrived, error = await cut_body(transport, build, serve, answer)
    assert arrived == b"hello"
    assert isinstance(error, httpx.RemoteProtocolError)
    assert (error.__cause__, error.__context__) == (None, None)


async def test_chunked_body_without_its_end_is_cut(transport: Any, build: Any, serve: Any) -> None:
    """A close before the last chunk is an error, after what had come."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    arrived, error = await cut_body(transport, build, serve, answer)
    assert arrived == b"hello"
    assert isinstance(error, httpx.RemoteProtocolError)


async def test_reset_in_the_body_is_cut(transport: Any, build: Any, serve: Any) -> None:
    """A reset in the middle of a body is an error, after what had come."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    arrived, error = await cut_body(transport, build, serve, answer, reset=True)
    assert arrived == b"hello"
    assert isinstance(error, CUT)


async def test_reset_is_no_end_of_a_body_without_length(
    transport: Any, build: Any, serve: Any
) -> None:
    """A body that only a close can end is cut, not complete, when the close is a reset."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\nhello"
    arrived, error = await cut_body(transport, build, serve, answer, reset=True)
    assert arrived == b"hello"
    assert isinstance(error, CUT)


async def test_data_that_comes_with_the_cut_is_passed_on(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """Bytes that arrive in the same moment as the cut are handed over before the error."""
    sent = threading.Event()

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent.wait(5)
        peer.send(b"5\r\nhello\r\n5\r\nagain\r\n")

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    sent.set()
    await until(upstream.peers[0].done.is_set)
    await anyio.sleep(0.05)
    arrived, error = await read_to_error(response)
    assert arrived == b"helloagain"
    assert isinstance(error, CUT)


async def test_bad_chunk_size_is_a_protocol_error(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """A chunk whose size is no number is an error, and the connection is closed."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(answer)
        peer.wait_until_closed()

    upstream = serve(script)
    with anyio.fail_after(5), pytest.raises(CUT):
        await read_all(await transport.handle_async_request(build(upstream.url)))


async def test_bad_chunk_size_later_on_is_a_protocol_error(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """A bad chunk after good ones is an error after those, and the connection is closed."""
    go_on = threading.Event()

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        go_on.wait(5)
        peer.send(b"zz\r\n")
        peer.wait_until_closed()

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    with anyio.fail_after(5):
        arrived, error = await read_to_error(response, on_chunk=go_on.set)
    assert arrived == b"hello"
    assert isinstance(error, httpx.RemoteProtocolError)
    await until(upstream.peers[0].closed.is_set)


async def test_silence_in_the_body_is_a_read_timeout(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """A body that stalls ends in ReadTimeout at the limit, and the connection is closed."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        peer.wait_until_closed()

    upstream = serve(script)
    with anyio.fail_after(5):
        response = await transport.handle_async_request(build(upstream.url, read=0.2))
        arrived, error = await read_to_error(response)
    assert arrived == b"hello"
    assert isinstance(error, httpx.ReadTimeout)
    await until(upstream.peers[0].closed.is_set)


async def test_each_piece_is_passed_on_at_once(transport: Any, build: Any, serve: Any) -> None:
    """The upstream's next piece waits for us to have seen the last: nothing is held back."""
    seen = threading.Semaphore(0)

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(20):
            peer.send(b"1\r\n%c\r\n" % (97 + number))
            assert seen.acquire(timeout=5)
        peer.send(b"0\r\n\r\n")

    upstream = serve(script)
    pieces = []
    with anyio.fail_after(10):
        response = await transport.handle_async_request(build(upstream.url))
        async for chunk in response.stream:
            pieces.append(chunk)
            seen.release()
    assert pieces == [b"%c" % (97 + number) for number in range(20)]


async def test_unread_body_holds_the_upstream_back(transport: Any, build: Any, serve: Any) -> None:
    """A body of 50 MiB that nobody reads is not collected in memory."""
    size = 50 << 20

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        peer.send(b"x" * size)

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    last = -1
    while upstream.peers[0].sent != last:
        last = upstream.peers[0].sent
        await anyio.sleep(0.2)
    # Our buffers hold less than 1 MiB; the two kernels' socket buffers may hold several.
    assert last < 20 << 20
    received = 0
    async for chunk in response.stream:
        received += len(chunk)
    assert received == size


@pytest.mark.parametrize(
    "surplus",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", b"rubbish\r\n\r\n", b"x"],
    ids=["answer", "rubbish", "byte"],
)
async def test_surplus_after_the_body_spoils_only_its_connection(
    transport: Any, build: Any, serve: Any, surplus: bytes
) -> None:
    """Bytes beyond Content-Length never become part of this answer or of the next."""

    def script(peer: Any) -> None:
        peer.read_request()
        if peer.number == 0:
            # In one piece: what comes after the next request went out cannot be told apart.
            good = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
            peer.send(good + surplus)
            peer.wait_until_closed()
        else:
            peer.answer(b"clean")

    upstream = serve(script)
    try:
        response = await transport.handle_async_request(build(upstream.url))
        assert await response.aread() == b"hello"
    except httpx.RemoteProtocolError:
        pass  # the surplus came in the same read: distrusting all of it is right as well
    response = await transport.handle_async_request(build(upstream.url))
    assert await response.aread() == b"clean"
    assert len(upstream.peers) == 2


async def test_surplus_on_an_idle_connection_is_never_an_answer(
    transport: Any, build: Any, serve: Any
) -> None:
    """An answer that comes while the connection idles is not taken for the next one's."""
    idle = threading.Event()

    def script(peer: Any) -> None:
        peer.read_request()
        if peer.number == 0:
            peer.answer(b"first")
            idle.wait(5)
            peer.answer(b"poison")
            peer.wait_until_closed()
        else:
            peer.answer(b"second")

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    assert await response.aread() == b"first"
    idle.set()
    await anyio.sleep(0.1)
    response = await transport.handle_async_request(build(upstream.url))
    assert await response.aread() == b"second"
    assert len(upstream.peers) == 2


async def test_connection_is_reused_after_a_whole_body(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """Calls one after the other share a connection."""

    def script(peer: Any) -> None:
        while peer.read_request():
            peer.answer()

    upstream = serve(script)
    for _ in range(5):
        assert await read_all(await transport.handle_async_request(build(upstream.url))) == b"{}"
    assert len(upstream.peers) == 1
    assert len(upstream.requests) == 5


async def test_closing_an_unfinished_body_closes_the_connection(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """Closing twice in the middle of a body cuts the connection at once and is no error."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello")
        peer.wait_until_closed()

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    await response.stream.aclose()
    await response.stream.aclose()
    await until(upstream.peers[0].closed.is_set)
    assert transport.statistics().in_flight == 0


async def test_closing_the_transport_ends_who_is_reading(
    transport: Any, build: Any, serve: Any, until: Any
) -> None:
    """A body that is being read when the transport is closed ends in an error, not in silence."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nhello")
        peer.wait_until_closed()

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    chunks = aiter(response.stream)
    assert await anext(chunks) == b"hello"

    async def read_on() -> None:
        with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
            await anext(chunks)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_on)
            await anyio.sleep(0.05)
            await transport.aclose()
    await until(upstream.peers[0].closed.is_set)
