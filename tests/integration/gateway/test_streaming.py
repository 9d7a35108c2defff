"""Streams through the gateway: framing, the end marker, cut streams, drains."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from engine import BaseProvider, BrokenError, Chunk, Operation

pytestmark = pytest.mark.anyio

WithGateway = Callable[..., Awaitable[None]]
MOCK = {"name": "mock-a", "type": "mock"}
STREAMED = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(*events: bytes) -> bytes:
    """Events of a stream in HTTP chunks, without the last one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)


def delta(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    body = {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: %b\n\n" % json.dumps(body).encode()


def events_of(text: str) -> list[str]:
    """The data of each event; every event is closed by a blank line."""
    assert text.endswith("\n\n")
    blocks = text[:-2].split("\n\n")
    assert all(block.startswith("data: ") for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]


async def test_stream_is_events_and_one_end_marker(with_gateway: WithGateway) -> None:
    """Each chunk is an event of its own, the last thing is [DONE], and the body ends there."""

    async def scenario(gateway: Any) -> None:
        answer = await gateway.ask(STREAMED)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-gateway-provider"] == "mock-a"
        *chunks, last = events_of(answer.text)
        assert last == "[DONE]"
        assert all("choices" in json.loads(chunk) for chunk in chunks)
        record = await gateway.log.last()
        assert (record.stream, record.outcome, record.status) == (True, "completed", 200)

    await with_gateway({"providers": [MOCK]}, scenario)


async def test_failure_before_the_first_event_is_a_plain_error(with_gateway: WithGateway) -> None:
    """A stream that never began is answered with a status and a JSON error, not with 200."""
    bad = {**MOCK, "max_retries": 0, "options": {"fault": "error_event_first"}}

    async def scenario(gateway: Any) -> None:
        answer = await gateway.ask(STREAMED)
        assert answer.status_code >= 500
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"]["message"]

    await with_gateway({"providers": [bad]}, scenario)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "silent"])
async def test_cut_upstream_ends_in_an_error_event(
    with_gateway: WithGateway, with_upstream: Callable[..., Awaitable[None]], close: bool
) -> None:
    """What came is passed on, then an error event says that it is not all; never [DONE]."""

    async def beside(upstream: Any) -> None:
        async def scenario(gateway: Any) -> None:
            answer = await gateway.ask(STREAMED)
            *chunks, last = events_of(answer.text)
            texts = [json.loads(chunk)["choices"][0]["delta"]["content"] for chunk in chunks]
            assert texts == ["one", "two"]
            assert json.loads(last)["error"]["code"] == "stream_truncated"
            assert "[DONE]" not in answer.text
            assert (await gateway.log.last()).outcome == "truncated"
            assert gateway.outcomes() == {"truncated": 1}

        provider = {"name": "raw", "type": "openai_compatible", "base_url": upstream.url,
                    "timeouts": {"idle": 0.3}}  # fmt: skip
        await with_gateway({"providers": [provider]}, scenario)

    await with_upstream(HEAD + chunked(delta("one"), delta("two")), beside, close=close)


async def test_missing_end_marker_of_a_complete_stream_is_added(
    with_gateway: WithGateway,
) -> None:
    """A provider that finishes without [DONE] still gives a stream that ends with one."""
    odd = {**MOCK, "options": {"fault": "no_done"}}

    async def scenario(gateway: Any) -> None:
        assert events_of((await gateway.ask(STREAMED)).text)[-1] == "[DONE]"

    await with_gateway({"providers": [odd]}, scenario)


async def test_usage_comes_only_when_it_is_asked_for(with_gateway: WithGateway) -> None:
    """`stream_options.include_usage` reaches the provider, and its usage chunk the client."""

    async def scenario(gateway: Any) -> None:
        body = {**STREAMED, "stream_options": {"include_usage": True}}
        chunks = [json.loads(e) for e in events_of((await gateway.ask(body)).text)[:-1]]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["completion_tokens"] > 0
        plain = events_of((await gateway.ask(STREAMED)).text)[:-1]
        assert not any(json.loads(chunk).get("usage") for chunk in plain)

    await with_gateway({"providers": [MOCK]}, scenario)


async def test_stream_is_cut_with_an_error_event_when_the_drain_is_over(
    with_gateway: WithGateway,
) -> None:
    """A server that goes away tells its streams so before it closes them."""
    slow = {**MOCK, "options": {"reply_tokens": 5000, "tokens_per_second": 50}}

    async def scenario(gateway: Any) -> None:
        async with await gateway.send_chat(STREAMED) as client:
            received = await client.receive()
            while b"data: " not in received:
                received += await client.receive()
            gateway.app.draining.expire()
            # The connection stays open for the next request: the answer ends with its last chunk.
            while not received.endswith(b"0\r\n\r\n"):
                received += await client.receive()
        assert b'"choices"' in received
        assert b"shutting down" in received
        assert b"[DONE]" not in received
        assert gateway.outcomes() == {"truncated": 1}

    await with_gateway({"providers": [slow]}, scenario)


async def test_status_waits_for_the_first_useful_event(
    with_gateway: WithGateway, provider_type: Callable[[type[BaseProvider]], str]
) -> None:
    """The provider that fails before it has said anything is left for the next, unnoticed."""

    class Scripted(BaseProvider):
        operations = frozenset(Operation)

        async def send(self, attempt: Any) -> Any:
            raise NotImplementedError

        async def stream(self, attempt: Any) -> Any:
            yield Chunk(b'{"choices":[]}', commits=False)
            if self.name == "first":
                raise BrokenError("cut", provider=self.name)
            yield Chunk(b'{\n"choices":[{"index":0,"delta":{"content":"yes"}}]}')

    async def scenario(gateway: Any) -> None:
        for _ in range(8):
            answer = await gateway.ask(STREAMED)
            assert answer.headers["x-gateway-provider"] == "second"
            assert answer.text.count("data: [DONE]") == 1
            # A line break inside an event's data is framed, not lost.
            assert 'data: {\ndata: "choices"' in answer.text

    kind = provider_type(Scripted)
    providers = [{"name": name, "type": kind} for name in ("first", "second")]
    config = {"providers": providers, "retries": {"repeat_maybe_accepted": "always"}}
    await with_gateway(config, scenario)


async def test_slow_reader_holds_the_provider_back(
    with_gateway: WithGateway, provider_type: Callable[[type[BaseProvider]], str]
) -> None:
    """What a client does not read is not produced without end: the stream waits for it."""
    produced = 0

    class Endless(BaseProvider):
        operations = frozenset(Operation)

        async def send(self, attempt: Any) -> Any:
            raise NotImplementedError

        async def stream(self, attempt: Any) -> Any:
            nonlocal produced
            text = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 60_000}}]})
            while True:
                produced += 1
                yield Chunk(text.encode())
                await anyio.lowlevel.checkpoint()

    async def scenario(gateway: Any) -> None:
        async with await gateway.send_chat(STREAMED) as client:
            await client.receive()
            before = -1
            with anyio.fail_after(20):
                while produced != before:
                    before = produced
                    await anyio.sleep(0.3)
            # Socket buffers of both sides hold a few MiB; an unbounded one would hold it all.
            assert produced < 2_000
        await gateway.until(lambda: gateway.in_flight == 0)

    config = {"providers": [{"name": "p", "type": provider_type(Endless)}]}
    await with_gateway(config, scenario)


async def test_embeddings_cannot_be_streamed(with_gateway: WithGateway) -> None:
    """`stream: true` where there is no stream is the caller's mistake."""

    async def scenario(gateway: Any) -> None:
        body = {"model": "m", "input": "one", "stream": True}
        answer = await gateway.http("POST", "/v1/embeddings", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "stream"

    await with_gateway({"providers": [MOCK]}, scenario)
