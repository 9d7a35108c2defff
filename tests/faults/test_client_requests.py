"""Clients whose bytes are no plain request: framing, targets, hosts, fields, keys."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import anyio
import pytest
from client_lab import GENEROUS, MOCK, STREAMED, answers_in, keep_silent, status_of, with_client
from raw_upstream import Upstream
from running_gateway import (
    CHAT_PATH,
    HELLO,
    RunningGateway,
    chat_bytes,
    read_all,
    read_until,
    run_gateway,
)

pytestmark = pytest.mark.anyio

BODY = json.dumps(HELLO).encode()
HIDDEN = b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n"
POST = b"POST " + CHAT_PATH.encode() + b" HTTP/1.1"
GET = b"GET /v1/models HTTP/1.1"


@pytest.fixture
def anyio_backend() -> Any:
    """The loop that the server is run with."""
    return "asyncio", {"use_uvloop": True}


def request(line: bytes, *fields: bytes, body: bytes = b"", host: bytes = b"gateway") -> bytes:
    """A request in raw bytes."""
    return b"\r\n".join([line, b"host: " + host, *fields, b"", b""]) + body


def sized(*fields: bytes) -> bytes:
    """A chat completion with its right length, and these fields."""
    return request(POST, b"content-length: %d" % len(BODY), *fields, body=BODY)


async def refused(gateway: RunningGateway, data: bytes, *statuses: int) -> bytes:
    """One answer that refuses, the end of the connection, and nothing else is read or done."""
    answer, closed = await gateway.exchange(data + HIDDEN)
    assert (status_of(answer), answers_in(answer), closed) == (
        status_of(answer) if status_of(answer) in statuses else statuses, 1, True,
    ), (data[:200], answer)  # fmt: skip
    assert gateway.outcomes() == {}
    return answer


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
FRAMING = {
    "CL and TE": (request(POST, b"content-length: 5", b"transfer-encoding: chunked",
                          body=b"0\r\n\r\n"), 400),
    "TE and CL": (request(POST, b"transfer-encoding: chunked", b"content-length: 5",
                          body=b"0\r\n\r\n"), 400),
    "two TE": (request(POST, b"transfer-encoding: chunked", b"transfer-encoding: chunked",
                       body=CHUNKED), 501),
    "TE hidden by a tab": (request(POST, b"transfer-encoding:\tchunked, identity",
                                   body=CHUNKED), 501),
    "TE hidden by a letter": (request(POST, b"transfer-encoding: xchunked", body=CHUNKED), 501),
    "TE hidden by a colon": (request(POST, b"transfer-encoding : chunked", body=CHUNKED), 400),
    "two CL": (sized(b"content-length: 3"), 400),
    "the same CL twice": (sized(b"content-length: %d" % len(BODY)), 400),
    "plus": (request(POST, b"content-length: +3", body=b"abc"), 400),
    "hexadecimal": (request(POST, b"content-length: 0x3", body=b"abc"), 400),
    "negative": (request(POST, b"content-length: -3", body=b"abc"), 400),
    "list": (request(POST, b"content-length: 3, 3", body=b"abc"), 400),
    "space before colon": (request(POST, b"content-length : 3", body=b"abc"), 400),
    "folded": (sized(b"x: a\r\n b"), 400),
    "bare LF": (request(POST, b"content-length: 3", body=b"abc").replace(b"\r\n", b"\n"), 400),
    "bare LF in a field": (sized(b"x: a\ny: b"), 400),
    "bare CR": (sized(b"x: a\rb"), 400),
    "NUL": (sized(b"x: a\0b"), 400),
    "no chunk size": (request(POST, b"transfer-encoding: chunked", body=b"\r\nabc\r\n"), 400),
    "negative chunk": (request(POST, b"transfer-encoding: chunked", body=b"-1\r\na\r\n"), 400),
    "huge chunk": (request(POST, b"transfer-encoding: chunked", body=b"f" * 20 + b"\r\n"), 400),
    "chunk without its end": (request(POST, b"transfer-encoding: chunked",
                                      body=b"1\r\nabc\r\n0\r\n\r\n"), 400),
    "blank line first": (b"\r\n" + request(GET), 400),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status"), FRAMING.values(), ids=FRAMING.keys())
async def test_c18_ambiguous_framing(data: bytes, status: int) -> None:
    """C18: whatever two parsers could cut in two ways is refused once, and nothing follows."""

    async def scenario(gateway: RunningGateway) -> None:
        await refused(gateway, data, status)

    await run_gateway(MOCK, scenario)


async def test_c18_chunk_extensions() -> None:
    """C18: extensions of chunks that are well-formed are thrown away; there is one reading."""

    async def scenario(gateway: RunningGateway) -> None:
        body = CHUNKED.replace(b"\r\n", b";x=y\r\n", 1)
        data = request(POST, b"transfer-encoding: chunked", b"connection: close", body=body)
        answer, closed = await gateway.exchange(data)
        assert (status_of(answer), closed) == (200, True)

    await run_gateway(MOCK, scenario)


async def test_c19_pipelined_requests() -> None:
    """C19: requests sent ahead of their turn are answered in order, streams too."""

    async def scenario(gateway: RunningGateway) -> None:
        kinds = [HELLO, STREAMED, HELLO]
        data = b"".join(
            chat_bytes(kind, x_request_id=f"r{number}") for number, kind in enumerate(kinds)
        )
        answer, closed = await gateway.exchange(data, quiet=0.5)
        assert not closed
        parts = answer.split(b"HTTP/1.1 200")[1:]
        assert [b"x-request-id: r%d" % number in part for number, part in enumerate(parts)] == [
            True, True, True,
        ]  # fmt: skip
        assert [b"[DONE]" in part for part in parts] == [False, True, False]

    await run_gateway(MOCK, scenario)


async def test_c19_leaving_behind_a_pipelined_request() -> None:
    """C19: who left is not noticed while the next request waits unread; the deadline ends it.

    The next one, here a list of models that the provider is asked for, ends with its client.
    """

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        async with await gateway.connect() as client:
            await client.send(chat_bytes(HELLO, x_request_timeout_ms="500") + HIDDEN)
            await gateway.until(lambda: upstream.requests == 1)
        await gateway.until(lambda: gateway.outcomes() == {"failed": 1})
        await gateway.until(lambda: not upstream.open and not gateway.in_flight, GENEROUS)
        await gateway.until(lambda: not gateway.app.draining.in_flight, GENEROUS)
        assert "completed" not in {record.outcome for record in gateway.log.kept}

    await with_client(keep_silent, use)


PROTOCOLS = {
    "h2c": (request(GET, b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c",
                    b"HTTP2-Settings: AAMAAABkAAQAAP__"), 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 400),
    "CONNECT": (request(b"CONNECT gateway:443 HTTP/1.1"), 405),
    "TRACE": (request(b"TRACE / HTTP/1.1"), 405),
    "absolute form": (request(b"GET http://gateway/v1/models HTTP/1.1"), 400),
    "asterisk": (request(b"OPTIONS * HTTP/1.1"), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64, 400),
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", 400),
    "HTTP/3.0": (request(b"GET /v1/models HTTP/3.0"), 505),
    "lower case": (request(b"get /v1/models HTTP/1.1"), 400),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status"), PROTOCOLS.values(), ids=PROTOCOLS.keys())
async def test_c22_other_protocols(data: bytes, status: int) -> None:
    """C22: what is not a plain HTTP/1.1 request for a path is refused; never 101."""

    async def scenario(gateway: RunningGateway) -> None:
        await refused(gateway, data, status, 400)

    await run_gateway(MOCK, scenario)


PATHS = [
    (b"//v1/models", 404), (b"/v1//models", 404), (b"/v1/%2e%2e/v1/models", 400),
    (b"/v1/../v1/models", 404), (b"/v1/./models", 404), (b"/v1%2fmodels", 404),
    (b"/v1/models%00", 400), (b"/v1/models%ff", 400), (b"/v1/models\\", 404),
    (b"/v1/models%5c", 400), (b"/v1/models%2", 400), (b"/v1/m%6fdels", 404),
    (b"/V1/models", 404), (b"/v1/models;x=y", 404), (b"/" + b"a" * 9_000, 414),
    (b"/" + b"a" * 65_536, 414), (b"/v1/models?" + b"q" * 9_000, 414),
]  # fmt: skip


@pytest.mark.parametrize(("path", "status"), PATHS, ids=range(len(PATHS)))
async def test_c23_path_tricks(path: bytes, status: int) -> None:
    """C23: a path is compared as it was sent; nothing is decoded, joined or cleaned up."""

    async def scenario(gateway: RunningGateway) -> None:
        data = request(b"GET %b HTTP/1.1" % path, b"connection: close")
        answer, closed = await gateway.exchange(data)
        # What is larger than a whole head may be gets the head's refusal, if it comes in parts.
        found = 414 if status_of(answer) == 431 and len(path) > 48_000 else status_of(answer)
        assert (found, closed) == (status, True)

    await run_gateway(MOCK, scenario)


HOSTS = [b"a/b", b"a?b", b"a#b", b"u@a", b"a\\b", b"a b", b"a:80:80", b"", b"[::1", b"a%2eb",
         b"a\xff", b"a,b"]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS, ids=range(len(HOSTS)))
async def test_c24_hosts_that_are_none(host: bytes) -> None:
    """C24: a Host that two readers could cut in two ways is refused."""

    async def scenario(gateway: RunningGateway) -> None:
        if host == b"a,b":
            # A name with a comma is one by RFC 3986, and nothing here is decided by it.
            answer, _ = await gateway.exchange(request(GET, host=host), quiet=0.3)
            assert status_of(answer) == 200
        else:
            await refused(gateway, request(GET, host=host), 400)

    await run_gateway(MOCK, scenario)


@pytest.mark.parametrize(
    "data",
    [
        request(GET, b"host: other"),
        request(GET, b"Host: gateway"),
        GET + b"\r\n\r\n",
        b"GET /v1/models HTTP/1.0\r\n\r\n",
    ],
    ids=["two", "the same twice", "none", "none in HTTP/1.0"],
)
async def test_c24_not_one_host(data: bytes) -> None:
    """C24: there is exactly one Host."""

    async def scenario(gateway: RunningGateway) -> None:
        await refused(gateway, data, 400)

    await run_gateway(MOCK, scenario)


MANY = {
    "100 of 8 KiB": [b"x-%d: " % number + b"v" * 8_000 for number in range(100)],
    "1000": [b"x-%d: v" % number for number in range(1_000)],
    "101": [b"x-%d: v" % number for number in range(100)],
    "17 KiB together": [b"x-%d: " % number + b"v" * 5_800 for number in range(3)],
    "one of 9 KiB": [b"x: " + b"v" * 9_000],
    "one of 1 MiB": [b"x: " + b"v" * 1_048_576],
}


@pytest.mark.parametrize("fields", MANY.values(), ids=MANY.keys())
async def test_c25_too_many_headers(fields: list[bytes]) -> None:
    """C25: 431 for too many fields, too large a field, and too much together."""

    async def scenario(gateway: RunningGateway) -> None:
        async with await gateway.connect() as client:
            # It may be refused before all of it was sent.
            with contextlib.suppress(anyio.BrokenResourceError):
                await client.send(request(GET, *fields))
            answer, closed = await read_all(client)
        # Of a megabyte that nobody reads on the way, the reset may be all that arrives.
        assert closed
        assert not answer or status_of(answer) == 431
        assert answer or len(b"".join(fields)) > 100_000
        assert gateway.outcomes() == {}

    await run_gateway(MOCK, scenario)


KEYED = {**MOCK, "server": {"api_keys_env": "KEYS"}}
KEYS = [
    ((b"authorization: Bearer k\xf6y",), 401),
    ((b"authorization: Bearer \xff\xfe",), 401),
    ((b"x-api-key: \xe2\x82\xac",), 401),
    ((b"authorization: Bearer " + b"k" * 4_000,), 401),
    ((b"authorization: Bearer " + b"k" * 1_048_576,), 431),
    ((b"authorization: Bearer key", b"authorization: Bearer other"), 400),
    ((b"authorization: Bearer key", b"Authorization: Bearer key"), 400),
    ((b"x-api-key: key", b"x-api-key: other"), 400),
    ((b"authorization: Bearer", b"x: y"), 401),
    ((b"authorization: Basic key",), 401),
]


@pytest.mark.parametrize(("fields", "status"), KEYS, ids=range(len(KEYS)))
async def test_c26_keys_that_are_none(fields: tuple[bytes, ...], status: int) -> None:
    """C26: no bytes of a key are an exception, and of two keys none is chosen."""

    async def scenario(gateway: RunningGateway) -> None:
        async with await gateway.connect() as client:
            # It may be refused before all of it was sent.
            with contextlib.suppress(anyio.BrokenResourceError):
                await client.send(request(GET, *fields, b"connection: close"))
            answer, closed = await read_all(client)
        assert closed
        assert (not answer and status == 431) or status_of(answer) == status

    await run_gateway(KEYED, scenario, environment={"KEYS": "key"})


@pytest.mark.parametrize(
    ("size", "fields", "status"),
    [(5_000, (), 413), (20, (b"authorization: Bearer wrong",), 401)],
    ids=["too large", "no right key"],
)
async def test_c27_expect_continue_before_a_refusal(
    size: int, fields: tuple[bytes, ...], status: int
) -> None:
    """C27: a client that asks first is told to go on, and gets to read why it is refused."""
    config = {**KEYED, "server": {"api_keys_env": "KEYS", "max_body_bytes": 1_024}}
    key = () if fields else (b"authorization: Bearer key",)

    async def scenario(gateway: RunningGateway) -> None:
        head = request(POST, b"content-length: %d" % size, b"expect: 100-continue", *fields, *key)
        async with await gateway.connect() as client:
            await client.send(head)
            begun = await read_until(client, b"\r\n\r\n")
            await client.send(b"x" * size)
            rest, closed = await read_all(client)
        told, _, answer = (begun + rest).partition(b"\r\n\r\n")
        assert told == b"HTTP/1.1 100 Continue"
        assert (status_of(answer), closed) == (status, True)

    await run_gateway(config, scenario, environment={"KEYS": "key"})
