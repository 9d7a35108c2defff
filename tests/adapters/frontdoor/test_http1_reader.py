"""The reader of requests: what it takes, what it refuses, and how little it keeps."""

from __future__ import annotations

import pytest

from adapters.frontdoor.http1_reader import MalformedRequestError, RequestReader

HEAD = b"Host: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def reader_of(data: bytes = b"", *, head_limit: int = 1000) -> RequestReader:
    """A reader that has some bytes."""
    reader = RequestReader(head_limit=head_limit)
    reader.take(data)
    return reader


def body_of(reader: RequestReader, *more: bytes) -> bytes:
    """The whole body, of which more comes."""
    body = reader.next_body()
    for data in more:
        reader.take(data)
        body += reader.next_body()
    assert reader.complete
    return body


def test_head_is_read_as_it_came() -> None:
    """Names are in lower case, blanks around values are gone, the order stays."""
    head = reader_of(b"GET /a?b=c HTTP/1.1\r\nHost: a\r\nX-B: \t b c \r\nx-a:\r\n\r\n").next_head()
    assert head is not None
    assert (head.method, head.target, head.http_version) == ("GET", b"/a?b=c", "1.1")
    assert head.headers == [(b"host", b"a"), (b"x-b", b"b c"), (b"x-a", b"")]
    assert (head.keep_alive, head.upgrading) == (True, False)


@pytest.mark.parametrize("step", [1, 2, 7])
def test_requests_may_come_in_any_pieces(step: int) -> None:
    """Where the network cuts the bytes makes no difference."""
    data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
    reader = RequestReader(head_limit=1000)
    head, body = None, b""
    for at in range(0, len(data), step):
        reader.take(data[at : at + step])
        head = head or reader.next_head()
        body += reader.next_body()
    assert head is not None
    assert (head.method, body, reader.complete, reader.pending) == ("POST", b"hello", True, False)


def test_nothing_is_read_ahead() -> None:
    """The next request stays untouched, however wrong it is, until it is asked for."""
    reader = reader_of(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nabGARBAGE\n")
    assert reader.next_head() is not None
    assert body_of(reader) == b"ab"
    assert reader.pending
    with pytest.raises(MalformedRequestError):
        reader.next_head()


def test_chunks_are_joined_and_trailers_dropped() -> None:
    """Chunk extensions and trailers reach nobody."""
    reader = reader_of(CHUNKED + b"3;x=y\r\nabc\r\n")
    head = reader.next_head()
    assert head is not None
    assert body_of(reader, b"2\r\nde\r\n0\r\nX-Late: v\r\n\r\n") == b"abcde"
    assert (b"x-late", b"v") not in head.headers
    assert not reader.overrun


@pytest.mark.parametrize(
    "rest", [b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"?"]
)
def test_bytes_behind_a_chunked_body_end_the_connection(rest: bytes) -> None:
    """Where they begin is not known, so they are never served; the request itself is whole."""
    reader = reader_of(CHUNKED + b"1\r\na\r\n0\r\n\r\n" + rest)
    head = reader.next_head()
    assert head is not None
    assert body_of(reader) == b"a"
    assert reader.overrun
    assert dict(head.headers) == {b"host": b"a", b"transfer-encoding": b"chunked"}


@pytest.mark.parametrize(
    "data",
    [
        b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        b"GET /\tHTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\r\nHost: a\r\n\r\n",
        b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / RTSP/1.0\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\x01b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\n: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\na",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\na",
        b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\na",
        b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\na",
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\na",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02",
    ],
)
def test_what_is_not_plainly_a_request_is_refused(data: bytes) -> None:
    """Two readers could understand these in two ways, so nobody gets to read them."""
    with pytest.raises(MalformedRequestError) as caught:
        reader_of(data).next_head()
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    ],
)
def test_what_nobody_knows_is_not_implemented(data: bytes) -> None:
    """An unknown method or transfer coding has a status of its own."""
    with pytest.raises(MalformedRequestError) as caught:
        reader_of(data).next_head()
    assert caught.value.status == 501


@pytest.mark.parametrize(
    "chunks",
    [b"3 \r\nabc\r\n", b"3\nabc\r\n", b"0x3\r\n", b"-3\r\n", b"3\r\nabcd\r\n", b"3;a\0\r\n",
     b"g\r\n", b"ffffffffffffffff1\r\n"],
)  # fmt: skip
def test_broken_chunks_are_refused(chunks: bytes) -> None:
    """A chunk's size is a plain hexadecimal number and its data ends where it says."""
    reader = reader_of(CHUNKED + chunks)
    assert reader.next_head() is not None
    with pytest.raises(MalformedRequestError):
        reader.next_body()


def test_head_that_does_not_end_is_too_large() -> None:
    """An endless head is given up at the limit."""
    reader = reader_of(b"GET / HTTP/1.1\r\nX: " + b"x" * 900)
    assert reader.next_head() is None
    reader.take(b"x" * 200)
    with pytest.raises(MalformedRequestError) as caught:
        reader.next_head()
    assert caught.value.status == 431


@pytest.mark.parametrize("endless", [b"3;" + b"x" * 600, b"0\r\nX: " + b"x" * 600])
def test_chunks_without_body_bytes_are_bounded(endless: bytes) -> None:
    """Endless chunk extensions and trailers are given up at the limit."""
    reader = reader_of(CHUNKED + endless)
    assert reader.next_head() is not None
    reader.next_body()
    reader.take(b"x" * 600)
    with pytest.raises(MalformedRequestError):
        reader.next_body()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, close\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_last_request_of_a_connection_is_known(data: bytes) -> None:
    """Clients that close, that speak HTTP/1.0, or that want another protocol ask once."""
    head = reader_of(data).next_head()
    assert head is not None
    assert not head.keep_alive
