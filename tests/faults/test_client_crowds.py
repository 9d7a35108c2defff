"""Many clients at once: idle ones, hasty ones, and storms of the same request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx
import pytest
from client_lab import MOCK, STREAMED, Stopwatch, with_client
from raw_upstream import Peer, Upstream, be_well
from running_gateway import HELLO, RunningGateway, run_gateway

pytestmark = pytest.mark.anyio

BOTH = pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["whole", "streamed"])
IDLE = 1_000
HASTY = 3_000


@pytest.fixture
def anyio_backend() -> Any:
    """The loop that the server is run with."""
    return "asyncio", {"use_uvloop": True}


async def test_c20_idle_connections() -> None:
    """C20: connections that say nothing are closed after their time, and bother nobody before."""

    async def scenario(gateway: RunningGateway) -> None:
        async with AsyncExitStack() as clients:
            idle = [await clients.enter_async_context(await gateway.connect()) for _ in range(IDLE)]
            assert (await gateway.ask()).status_code == 200
            with anyio.fail_after(20):
                for client in idle:
                    with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                        await client.receive()

    await run_gateway(MOCK, scenario, changes={"keep_alive_seconds": 1.5})


async def test_c21_connect_and_close() -> None:
    """C21: clients that come and go at once leave nothing; the next one is served."""

    async def scenario(gateway: RunningGateway) -> None:
        watch = Stopwatch()
        tasks = anyio.get_running_tasks

        async def come_and_go(count: int) -> None:
            for _ in range(count):
                await (await gateway.connect()).aclose()

        await come_and_go(10)
        before = len(tasks())
        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(come_and_go, HASTY // 30)
        watch.show(f"C21: {HASTY} connections")
        assert (await gateway.ask()).status_code == 200
        await gateway.until(lambda: len(tasks()) <= before)

    await run_gateway(MOCK, scenario)


async def storm(
    gateway: RunningGateway, count: int, body: Any, **head: str
) -> list[httpx.Response]:
    """The same request many times at once, each on a connection of its own."""
    answers: list[httpx.Response] = []
    limits = httpx.Limits(max_connections=count)

    async with (
        httpx.AsyncClient(
            base_url=gateway.url, trust_env=False, verify=False, timeout=30, limits=limits
        ) as client,
        anyio.create_task_group() as group,
    ):

        async def ask() -> None:
            answers.append(await client.post("/v1/chat/completions", json=body, headers=head))

        for _ in range(count):
            group.start_soon(ask)
    return answers


class Gated:
    """An upstream that answers everybody once the storm has come in.

    Attributes:
        most: Requests that it had at the same time.
    """

    def __init__(self) -> None:
        self.gate = anyio.Event()
        self.running = self.most = 0

    async def __call__(self, peer: Peer) -> None:
        """Play it on one connection."""
        while await peer.read_request():
            self.running += 1
            self.most = max(self.most, self.running)
            await self.gate.wait()
            self.running -= 1
            await peer.answer_well()

    async def open_when(self, gateway: RunningGateway, condition: Callable[[], bool]) -> None:
        """Answer from when the condition is true."""
        await gateway.until(condition, 30)
        self.gate.set()


def rejected(gateway: RunningGateway) -> int:
    """Requests that were shed so far."""
    return gateway.outcomes().get("rejected", 0)


@BOTH
async def test_c28_retry_storm_with_a_key(body: Any) -> None:
    """C28: with an idempotency key, a storm of one request is one request upstream."""
    script = Gated()

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        def all_joined() -> bool:
            return gateway.app.engine._idempotency().status().joined == 49

        async with anyio.create_task_group() as group:
            group.start_soon(script.open_when, gateway, all_joined)
            answers = await storm(gateway, 50, body, **{"idempotency-key": "again"})
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert upstream.requests == 1
        shared = [answer.headers.get("x-gateway-idempotency") for answer in answers]
        assert (shared.count(None), shared.count("joined")) == (1, 49)

    await with_client(script, use)


async def shed(count: int, body: Any, limits: dict[str, int], *, served: int) -> Gated:
    """A storm of which so many are served, and the others told when to come back."""
    script = Gated()

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        async with anyio.create_task_group() as group:
            enough = count - served
            group.start_soon(script.open_when, gateway, lambda: rejected(gateway) == enough)
            answers = await storm(gateway, count, body, authorization="Bearer one")
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(200), statuses.count(503)) == (served, count - served)
        assert upstream.requests == served
        for answer in answers:
            if answer.status_code == 503:
                assert int(answer.headers["retry-after"]) >= 1
                assert int(answer.headers["retry-after-ms"]) >= 1
                assert answer.json()["error"]["code"] == "mailbox_full"

    await with_client(script, use, provider={"limits": limits})
    return script


@BOTH
async def test_c28_retry_storm_without_a_key(body: Any) -> None:
    """C28: without one, what finds no room is shed at once and told when to come back."""
    # Two run and nine wait: a tenth of the queue is kept for requests that matter more.
    await shed(50, body, {"concurrency": 2, "queue": 10}, served=11)


@BOTH
async def test_c30_one_caller_with_64_requests(body: Any) -> None:
    """C30: eight run at a time, the queue is served, the rest is told to come back."""
    script = await shed(64, body, {"concurrency": 8, "queue": 40}, served=44)
    assert script.most == 8


async def test_c30_a_rate_that_is_used_up() -> None:
    """C30: what a provider's rate has no room for is told when there will be some."""

    async def use(gateway: RunningGateway, upstream: Upstream) -> None:
        answers = await storm(gateway, 30, HELLO)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused
        assert {answer.status_code for answer in refused} <= {429, 503}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)

    limits = {"requests_per_minute": 60, "concurrency": 8}
    await with_client(be_well, use, provider={"limits": limits})
