"""The reader held against h11: what both take, both understand in the same way."""

from __future__ import annotations

import random

import h11
import pytest

from adapters.frontdoor.gate import find_refusal
from adapters.frontdoor.http1_reader import MalformedRequestError, RequestReader

Understood = tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]], bytes]

SEEDS = (
    b"POST /v1/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
    (
        b"GET /v1/models?x=1 HTTP/1.1\r\nHost: a:80\r\nX-A:  b c \r\n\r\n"
        b"GET / HTTP/1.1\r\nHost: b\r\n\r\n"
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n1;x=y\r\nd\r\n0\r\nT: v\r\n\r\n"
    ),
    b"POST / HTTP/1.0\r\nHost: a\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nabGET /x",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\nzzz",
)  # fmt: skip
FRAGMENTS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"3", b"\xff", b"\x7f", b"+",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: z\r\n", b" folded\r\n",
    b"HTTP/1.1", b"RTSP/1.0", b"HTTP/2.0", b"chunked", b"0\r\n\r\n", b"\r\n\r\n", b"-", b"0x",
)  # fmt: skip


def understood_by_us(data: bytes) -> list[Understood]:
    """The requests that our reader and the gate let in."""
    reader = RequestReader(head_limit=48_000)
    reader.take(data)
    requests: list[Understood] = []
    try:
        while (head := reader.next_head()) is not None:
            body = reader.next_body()
            path, _, query = head.target.partition(b"?")
            scope = {
                "method": head.method,
                "http_version": head.http_version,
                "path": "",
                "raw_path": path,
                "query_string": query,
                "headers": head.headers,
            }
            if not reader.complete or find_refusal(scope) is not None:
                break
            version = head.http_version.encode()
            requests.append((head.method.encode(), head.target, version, head.headers, body))
            if not head.keep_alive or reader.overrun:
                break
    except MalformedRequestError:
        pass
    return requests


def understood_by_h11(data: bytes) -> list[Understood]:
    """The requests that h11 finds."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
    connection.receive_data(data)
    requests: list[Understood] = []
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                fields = list(request.headers)
                requests.append(
                    (request.method, request.target, request.http_version, fields, body)
                )
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            else:
                return requests
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return requests


def mangled(rng: random.Random) -> bytes:
    """A request with a few bytes changed, added, removed or repeated."""
    data = rng.choice(SEEDS)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
        match rng.randrange(4):
            case 0:
                data = data[:at] + rng.choice(FRAGMENTS) + data[at:]
            case 1:
                data = data[:at] + data[at + rng.choice((1, 1, 2, 5)) :]
            case 2:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
            case _:
                data = data[:end] + data[at:end][:30] + data[end:]
    return data


def plain(request: Understood) -> Understood:
    """A request with its transfer coding in lower case, as h11 gives it."""
    method, target, version, fields, body = request
    fields = [
        (name, value.lower() if name == b"transfer-encoding" else value) for name, value in fields
    ]
    return method, target, version, fields, body


@pytest.mark.parametrize("seed", range(4))
def test_what_is_let_in_is_what_h11_understands(seed: int) -> None:
    """Of thousands of mangled requests, none is let in that h11 refuses or reads otherwise."""
    rng = random.Random(seed)
    let_in = 0
    for _ in range(3000):
        data = mangled(rng)
        ours = [plain(request) for request in understood_by_us(data)]
        assert ours == understood_by_h11(data)[: len(ours)], data
        let_in += bool(ours)
    assert let_in > 300
