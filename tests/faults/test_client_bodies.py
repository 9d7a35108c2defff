"""Clients that send slowly, too much, or something that is no request."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import anyio
import pytest
from client_lab import MOCK, STREAMED, answers_in, status_of
from running_gateway import CHAT_PATH, HELLO, RunningGateway, chat_bytes, read_until, run_gateway

from adapters.frontdoor.body_limits import ExchangeLimits

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
SMALL = {**MOCK, "server": {"max_body_bytes": 65_536}}
CPU_BUDGET = 5.0
"""Seconds for a body that is made to be expensive; generous, for a busy machine."""


@pytest.fixture
def anyio_backend() -> Any:
    """The loop that the server is run with."""
    return "asyncio", {"use_uvloop": True}


def post(*fields: bytes, body: bytes = b"") -> bytes:
    """A chat completion with these header fields and bytes."""
    line = b"POST " + CHAT_PATH.encode() + b" HTTP/1.1"
    return b"\r\n".join([line, b"host: gateway", *fields, b"", b""]) + body


def code_of(answer: bytes) -> str:
    """The word that says what is wrong."""
    code: str = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
    return code


def raw_body(more: bytes, *, stream: bool) -> bytes:
    """A chat completion's body with these bytes among its fields."""
    return b'{"model":"m","messages":[{"role":"user","content":"Hi"}],"stream":%b,%b}' % (
        b"true" if stream else b"false",
        more,
    )


async def refused(gateway: RunningGateway, body: bytes, code: str = "invalid_json") -> None:
    """The body is the caller's mistake; it is answered soon, and nobody else is asked."""
    began = time.perf_counter()
    answer = await gateway.http("POST", CHAT_PATH, content=body)
    assert time.perf_counter() - began < CPU_BUDGET
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert answer.headers["x-should-retry"] == "false"
    assert gateway.outcomes() == {}


async def test_c8_slowloris_headers() -> None:
    """C8: a head has a short time of its own, and a byte now and then does not extend it."""

    async def scenario(gateway: RunningGateway) -> None:
        for before in (b"", b"GET /healthz HTTP/1.1\r\nhost: gateway\r\n\r\n"):
            async with await gateway.connect() as client:
                await client.send(before + b"GET / HTTP/1.1\r\nhost: gateway\r\nx: ")
                received = b""
                try:
                    with anyio.fail_after(10):
                        while b" 408 " not in received:
                            await client.send(b"x")
                            with anyio.move_on_after(0.05):
                                received += await client.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pytest.fail("closed without an answer")
                assert answers_in(received) == 1 + bool(before)

    await run_gateway(MOCK, scenario, changes={"head_seconds": 0.3})


@BOTH
async def test_c9_stalled_body(stream: bool) -> None:
    """C9: a body that stops coming is 408, and the connection is closed."""
    whole = chat_bytes(STREAMED if stream else HELLO)
    limits = ExchangeLimits(body_seconds=0.3, linger_seconds=0.1)

    async def scenario(gateway: RunningGateway) -> None:
        answer, closed = await gateway.exchange(whole[:-10])
        assert (status_of(answer), code_of(answer), closed) == (408, "body_timeout", True)
        assert gateway.outcomes() == {}

    await run_gateway(MOCK, scenario, changes={"limits": limits})


async def test_c9_slow_body() -> None:
    """C9: a body that trickles in below the least rate is 408, long before its total time."""
    limits = ExchangeLimits(body_rate=1000, body_rate_grace=0.3, linger_seconds=0.1)

    async def scenario(gateway: RunningGateway) -> None:
        async with await gateway.connect() as client:
            await client.send(post(b"content-length: 1000"))
            received = b""
            with anyio.fail_after(10):
                while b"body_timeout" not in received:
                    await client.send(b"x")
                    with anyio.move_on_after(0.05):
                        received += await client.receive()
            assert status_of(received) == 408

    await run_gateway(MOCK, scenario, changes={"limits": limits})


async def test_c10_body_above_the_limit_by_its_length() -> None:
    """C10: 413 before a byte of it is read; and who sends it all the same can read that."""

    async def scenario(gateway: RunningGateway) -> None:
        async with await gateway.connect() as client:
            await client.send(post(b"content-length: 5000000"))
            assert status_of(await read_until(client, b"body_too_large")) == 413
        body = b"x" * 5_000_000
        answer, closed = await gateway.exchange(post(b"content-length: 5000000", body=body))
        assert (status_of(answer), code_of(answer), closed) == (413, "body_too_large", True)
        assert b"x-should-retry: false" in answer

    await run_gateway(SMALL, scenario)


async def test_c11_body_above_the_limit_in_chunks() -> None:
    """C11: 413 when the limit is reached, without a declared length."""
    body = b"1000\r\n%b\r\n" % (b"x" * 4096) * 100 + b"0\r\n\r\n"

    async def scenario(gateway: RunningGateway) -> None:
        answer, closed = await gateway.exchange(post(b"transfer-encoding: chunked", body=body))
        assert (status_of(answer), code_of(answer), closed) == (413, "body_too_large", True)

    await run_gateway(SMALL, scenario)


@BOTH
async def test_c12_content_length_too_long(stream: bool) -> None:
    """C12: bytes that were promised and never come are 408; a client that closes gets nothing."""
    body = json.dumps(STREAMED if stream else HELLO).encode()
    data = post(b"content-length: %d" % (len(body) + 5), body=body)
    limits = ExchangeLimits(body_seconds=0.3, linger_seconds=0.1)

    async def scenario(gateway: RunningGateway) -> None:
        answer, closed = await gateway.exchange(data)
        assert (status_of(answer), closed) == (408, True)
        async with await gateway.connect() as client:
            await client.send(data)
            await client.send_eof()
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await client.receive()
        assert gateway.outcomes() == {}

    await run_gateway(MOCK, scenario, changes={"limits": limits})


async def test_c12_content_length_too_short() -> None:
    """C12: a body cut by its own length is 400, and its rest is never taken for a request."""
    body = json.dumps(HELLO).encode()

    async def scenario(gateway: RunningGateway) -> None:
        data = post(b"content-length: %d" % (len(body) - 1), body=body)
        answer, closed = await gateway.exchange(data)
        assert closed
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"400", b"400"]
        assert gateway.outcomes() == {}

    await run_gateway(MOCK, scenario)


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"deflate, gzip", b"x-unknown"])
async def test_c13_compressed_body(coding: bytes) -> None:
    """C13: 415 for a compressed body, a bomb too: nothing is ever unpacked."""
    bomb = gzip.compress(b" " * 10_000_000)

    async def scenario(gateway: RunningGateway) -> None:
        fields = (b"content-encoding: " + coding, b"content-length: %d" % len(bomb))
        answer, closed = await gateway.exchange(post(*fields, body=bomb))
        assert (status_of(answer), closed) == (415, True)
        assert code_of(answer) == "unsupported_content_encoding"

    await run_gateway(MOCK, scenario)


@BOTH
async def test_c14_expensive_json(stream: bool) -> None:
    """C14: nesting and digits without end are 400, in a bounded time."""

    async def scenario(gateway: RunningGateway) -> None:
        deep = b"[" * 100_000
        await refused(gateway, raw_body(b'"x":' + deep, stream=stream))
        await refused(gateway, raw_body(b'"x":' + deep + b"]" * 100_000, stream=stream))
        objects = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
        await refused(gateway, raw_body(b'"x":' + objects, stream=stream))
        await refused(gateway, raw_body(b'"n":' + b"9" * 100_000, stream=stream))

    await run_gateway(MOCK, scenario)


async def test_c14_large_but_honest_json() -> None:
    """C14: a million small objects, or 5,000 messages, are served, within the same time."""

    async def scenario(gateway: RunningGateway) -> None:
        many = raw_body(b'"x":[' + b"{}," * 999_999 + b"{}]", stream=False)
        long = json.dumps({**HELLO, "messages": HELLO["messages"] * 5_000}).encode()
        for body in (many, long):
            began = time.perf_counter()
            assert (await gateway.http("POST", CHAT_PATH, content=body)).status_code == 200
            assert time.perf_counter() - began < CPU_BUDGET

    await run_gateway(MOCK, scenario)


@BOTH
@pytest.mark.parametrize("name", ["model", "stream", "messages"])
async def test_c15_duplicate_keys(name: str, stream: bool) -> None:
    """C15: a field that stands twice could be read in two ways, and is 400; also as an escape."""

    async def scenario(gateway: RunningGateway) -> None:
        value = {"model": b'"other"', "stream": b"true", "messages": b"[]"}[name]
        escaped = b'"\\u00%02x%b"' % (ord(name[0]), name[1:].encode())
        for key in (b'"%b"' % name.encode(), escaped):
            body = raw_body(key + b":" + value, stream=stream)
            await refused(gateway, body, "duplicate_field")

    await run_gateway(MOCK, scenario)


@BOTH
@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
async def test_c16_numbers_that_are_none(number: bytes, stream: bool) -> None:
    """C16: what JSON has no word for is 400, wherever it stands."""

    async def scenario(gateway: RunningGateway) -> None:
        for field in (b'"temperature":%b', b'"x":{"y":[%b]}'):
            await refused(gateway, raw_body(field % number, stream=stream))

    await run_gateway(MOCK, scenario)


TEXTS = {
    "invalid UTF-8": b'"x":"\xff\xfe"',
    "overlong": b'"x":"\xc0\xaf"',
    "surrogate in UTF-8": b'"x":"\xed\xa0\x80"',
    "lone surrogate": b'"x":"\\ud800"',
    "half pair": b'"x":"\\udc00\\ud800"',
    "NUL": b'"x":"a\0b"',
    "NUL outside": b'"x":1\0',
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
async def test_c17_text_that_is_none(text: bytes) -> None:
    """C17: bytes that two readers could take for two texts are 400."""

    async def scenario(gateway: RunningGateway) -> None:
        for stream in (False, True):
            await refused(gateway, raw_body(text, stream=stream))

    await run_gateway(MOCK, scenario)


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
async def test_c17_other_codings(coding: str) -> None:
    """C17: a byte order mark, UTF-16 and UTF-32 are 400."""

    async def scenario(gateway: RunningGateway) -> None:
        await refused(gateway, json.dumps(HELLO).encode(coding))

    await run_gateway(MOCK, scenario)
