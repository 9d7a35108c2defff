"""A caller that leaves: its work ends at once, wherever it was."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

pytestmark = pytest.mark.anyio

WithGateway = Callable[..., Awaitable[None]]
WithUpstream = Callable[..., Awaitable[None]]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DELTA = {"choices": [{"index": 0, "delta": {"content": "one"}, "finish_reason": None}]}
EVENT = b"data: %b\n\n" % json.dumps(DELTA).encode()
FIRST_CHUNK = HEAD + b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


def to(upstream: Any, **settings: Any) -> dict[str, Any]:
    """A configuration with one provider: the raw upstream."""
    provider = {"name": "raw", "type": "openai_compatible", "base_url": upstream.url, **settings}
    return {"providers": [provider]}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_leaving_while_running_closes_the_upstream(
    with_gateway: WithGateway, with_upstream: WithUpstream, stream: bool
) -> None:
    """A caller that leaves before the answer closes the upstream socket within a second."""

    async def beside(upstream: Any) -> None:
        async def scenario(gateway: Any) -> None:
            async with await gateway.send_chat({**CHAT, "stream": stream}):
                await gateway.until(lambda: upstream.asked == 1)
            await gateway.until(lambda: upstream.closed == 1, 1)
            await gateway.until(lambda: gateway.in_flight == 0, 1)
            assert gateway.outcomes() == {"cancelled": 1}
            record = await gateway.log.last()
            assert (record.status, record.outcome) == (499, "cancelled")
            assert record.error_code == "client_disconnected"

        await with_gateway(to(upstream), scenario)

    await with_upstream(b"", beside)


async def test_leaving_a_stream_closes_the_upstream(
    with_gateway: WithGateway, with_upstream: WithUpstream
) -> None:
    """A caller that leaves between two events closes the upstream socket within a second."""

    async def beside(upstream: Any) -> None:
        async def scenario(gateway: Any) -> None:
            async with await gateway.send_chat({**CHAT, "stream": True}) as client:
                received = b""
                while b"one" not in received:
                    received += await client.receive()
            await gateway.until(lambda: upstream.closed == 1, 1)
            await gateway.until(lambda: gateway.in_flight == 0, 1)
            assert gateway.outcomes() == {"cancelled": 1}
            record = await gateway.log.last()
            assert (record.status, record.outcome) == (200, "cancelled")

        await with_gateway(to(upstream), scenario)

    await with_upstream(FIRST_CHUNK, beside)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_leaving_the_queue_means_never_being_sent(
    with_gateway: WithGateway, with_upstream: WithUpstream, stream: bool
) -> None:
    """A caller that leaves while it waits is taken out of the mailbox; nothing goes upstream."""

    async def beside(upstream: Any) -> None:
        async def scenario(gateway: Any) -> None:
            def waiting() -> int:
                depth: int = gateway.app.engine.status().actors[0].mailbox.depth
                return depth

            async with await gateway.send_chat(CHAT):
                await gateway.until(lambda: upstream.asked == 1)
                async with await gateway.send_chat({**CHAT, "stream": stream}):
                    await gateway.until(lambda: waiting() == 1)
                await gateway.until(lambda: waiting() == 0, 1)
                assert gateway.outcomes() == {"cancelled": 1}
            await gateway.until(lambda: gateway.in_flight == 0, 1)
            assert upstream.asked == 1
            assert gateway.outcomes() == {"cancelled": 2}

        await with_gateway(to(upstream, limits={"concurrency": 1}), scenario)

    await with_upstream(b"", beside)


async def test_leaving_in_the_middle_of_the_body_asks_nobody(with_gateway: WithGateway) -> None:
    """A body that never ends because its sender left is not passed on."""

    async def scenario(gateway: Any) -> None:
        async with await anyio.connect_tcp("127.0.0.1", gateway.port) as client:
            await client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
                b'content-length: 1000\r\n\r\n{"model": '
            )
            await gateway.until(lambda: gateway.app.draining.in_flight == 1)
        await gateway.until(lambda: gateway.app.draining.in_flight == 0, 1)
        assert gateway.outcomes() == {}
        assert (await gateway.log.last()).error_code == "client_disconnected"

    await with_gateway({"providers": [{"name": "mock", "type": "mock"}]}, scenario)


async def test_many_leaving_callers_leave_every_permit_behind(with_gateway: WithGateway) -> None:
    """After a crowd has left, as many requests as before can run at once."""
    slow = {"name": "mock", "type": "mock", "options": {"latency": 20},
            "limits": {"concurrency": 4, "queue": 100}}  # fmt: skip

    async def scenario(gateway: Any) -> None:
        async def leave(stream: bool) -> None:
            async with await gateway.send_chat({**CHAT, "stream": stream}):
                await anyio.sleep(0.3)

        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(leave, number % 2 == 0)
        await gateway.until(lambda: gateway.in_flight == 0, 2)
        assert gateway.outcomes() == {"cancelled": 40}

    await with_gateway({"providers": [slow]}, scenario)
