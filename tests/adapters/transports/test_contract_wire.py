"""What goes over the wire: what the caller set and the framing, and nothing of a browser's."""

import gzip
from typing import Any

import httpx
import pytest


def lines_of(request: bytes) -> list[bytes]:
    return request.split(b"\r\n\r\n")[0].split(b"\r\n")


def answering(*answers: bytes) -> Any:
    """Answer one request after the other on each connection."""

    def script(peer: Any) -> None:
        for answer in answers:
            if not peer.read_request():
                return
            peer.send(answer)
        peer.wait_until_closed()

    return script


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


async def test_exactly_our_headers_are_sent(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """The request has the headers that were set, Host, and the length of its body: no more."""
    upstream = serve(answering(OK))
    headers = [
        (b"Authorization", b"Bearer sk-secret"),
        (b"Content-Type", b"application/json"),
        (b"X-Name", "Zoë".encode()),
        (b"Accept-Encoding", b"identity"),
    ]
    request = build(upstream.url, headers=headers, content=b'{"a":1}')
    await read_all(await transport.handle_async_request(request))
    first, *rest = lines_of(upstream.requests[0])
    assert first == b"POST /v1/chat/completions HTTP/1.1"
    assert rest[0] == b"Host: localhost:%d" % upstream.port
    sent = [tuple(line.split(b": ", 1)) for line in rest[1:]]
    assert [pair for pair in sent if pair[0] != b"Content-Length"] == headers
    assert [pair for pair in sent if pair[0] == b"Content-Length"] == [(b"Content-Length", b"7")]


async def test_request_without_a_body_has_no_other_headers(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """A GET carries nothing but Host and what was set."""
    upstream = serve(answering(OK))
    request = build(upstream.url, method="GET", headers=[(b"X-Only", b"1")], content=b"")
    await read_all(await transport.handle_async_request(request))
    assert lines_of(upstream.requests[0])[1:] == [
        b"Host: localhost:%d" % upstream.port,
        b"X-Only: 1",
    ]


async def test_repeated_request_headers_are_kept(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """A header given twice, even spelled differently, is sent twice and in order."""
    upstream = serve(answering(OK))
    headers = [(b"X-Part", b"one"), (b"X-Other", b"2"), (b"x-part", b"three")]
    request = build(upstream.url, headers=headers)
    await read_all(await transport.handle_async_request(request))
    parts = [line for line in lines_of(upstream.requests[0]) if line.lower().startswith(b"x-part")]
    assert [part.split(b": ")[1] for part in parts] == [b"one", b"three"]


async def test_repeated_answer_headers_are_kept(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """Headers of the answer keep order, spelling and repetitions."""
    head = b"HTTP/1.1 207 Odd\r\nX-B: 1\r\nx-a: 2\r\nX-B: 3\r\nContent-Length: 0\r\n\r\n"
    upstream = serve(answering(head))
    response = await transport.handle_async_request(build(upstream.url))
    await read_all(response)
    assert response.status_code == 207
    assert response.headers.raw == [
        (b"X-B", b"1"),
        (b"x-a", b"2"),
        (b"X-B", b"3"),
        (b"Content-Length", b"0"),
    ]
    assert response.extensions["http_version"] == b"HTTP/1.1"


async def test_path_and_query_are_sent_as_they_are(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """Escapes in the URL are neither undone nor doubled, and its fragment stays here."""
    upstream = serve(answering(OK))
    url = f"http://user:pw@localhost:{upstream.port}/a%2Fb/c%20d?x=%7B1%7D&y=a+b#fragment"
    await read_all(await transport.handle_async_request(build(url)))
    lines = lines_of(upstream.requests[0])
    assert lines[0] == b"POST /a%2Fb/c%20d?x=%7B1%7D&y=a+b HTTP/1.1"
    assert [line for line in lines if line.startswith(b"Authorization")] == [
        b"Authorization: Bearer sk-secret"
    ]


async def test_no_cookie_is_replayed(transport: Any, build: Any, serve: Any, read_all: Any) -> None:
    """A cookie set by one answer is in no later request."""
    cookie = OK.replace(
        b"\r\n\r\n", b"\r\nSet-Cookie: tenant=a; Path=/\r\nSet-Cookie: =;;=\r\n\r\n"
    )
    upstream = serve(answering(cookie, OK))
    for _ in range(2):
        await read_all(await transport.handle_async_request(build(upstream.url)))
    assert len(upstream.requests) == 2
    assert all(b"cookie" not in request.lower() for request in upstream.requests)


async def test_no_redirect_is_followed(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """A redirect is an answer like any other; nobody is called for it."""
    other = serve(answering(OK))
    upstream = serve(
        answering(
            b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://localhost:%d/\r\n"
            b"Content-Length: 0\r\n\r\n" % other.port
        )
    )
    response = await transport.handle_async_request(build(upstream.url))
    await read_all(response)
    assert response.status_code == 307
    assert len(upstream.requests) == 1
    assert other.peers == []


async def test_no_proxy_of_the_environment_is_used(
    transport: Any, build: Any, serve: Any, read_all: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxy variables do not move the call."""
    trap = serve(answering(OK))
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://localhost:{trap.port}")
    upstream = serve(answering(OK))
    await read_all(await transport.handle_async_request(build(upstream.url)))
    assert len(upstream.requests) == 1
    assert trap.peers == []


async def test_nothing_is_decompressed(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """A compressed body arrives as it was sent."""
    packed = gzip.compress(b"x" * 100_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    upstream = serve(answering(head + packed))
    response = await transport.handle_async_request(build(upstream.url))
    assert await read_all(response) == packed


async def test_body_that_ends_with_the_connection_is_complete(
    transport: Any, build: Any, serve: Any, read_all: Any
) -> None:
    """An answer in the manner of HTTP/1.0 ends where the connection ends."""

    def script(peer: Any) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.0 200 OK\r\n\r\nold style")

    upstream = serve(script)
    response = await transport.handle_async_request(build(upstream.url))
    assert await read_all(response) == b"old style"
    assert response.extensions["http_version"] == b"HTTP/1.0"


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_end_at_once(
    transport: Any, build: Any, serve: Any, read_all: Any, status: int
) -> None:
    """204 and 304 have no body whatever they say, and the connection is free again."""
    upstream = serve(answering(b"HTTP/1.1 %d None\r\n\r\n" % status, OK))
    response = await transport.handle_async_request(build(upstream.url))
    assert (response.status_code, await read_all(response)) == (status, b"")
    assert await read_all(await transport.handle_async_request(build(upstream.url))) == b"{}"


async def test_streamed_request_body_is_sent_whole(
    transport: Any, serve: Any, read_all: Any
) -> None:
    """A body that httpx would stream arrives whole."""

    async def parts() -> Any:
        yield b"one "
        yield b"two"

    upstream = serve(answering(OK))
    request = httpx.Request("POST", upstream.url, content=parts(), headers={"Content-Length": "7"})
    await read_all(await transport.handle_async_request(request))
    assert upstream.requests[0].endswith(b"\r\n\r\none two")
