"""`Idempotency-Key` over HTTP: one run, however often and by however many it is asked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
from raw_upstream import DONE, LAST_CHUNK, SSE_HEAD, WHOLE, Peer, Upstream, chunk, event
from running_gateway import HELLO, RunningGateway, read_until, run_gateway

pytestmark = pytest.mark.anyio

KEY = {"idempotency-key": "order-17"}
STREAMED = {**HELLO, "stream": True}
Use = Callable[[RunningGateway, "Gated"], Awaitable[None]]


class Gated(Upstream):
    """An upstream that answers when the test lets it: whole, or a stream in two halves."""

    def __init__(self, *, ending: bytes = DONE) -> None:
        super().__init__(self._play_gated)
        self.gate = anyio.Event()
        self.ending = ending

    async def _play_gated(self, peer: Peer) -> None:
        while await peer.read_request():
            if peer.streamed:
                await peer.send(SSE_HEAD + chunk(event("we")))
            if not await self._opened(peer):
                return
            if not peer.streamed:
                await peer.answer(WHOLE)
                continue
            if not self.ending:
                return
            await peer.send(chunk(event("ll") + event(None, finish="stop") + self.ending))
            await peer.send(LAST_CHUNK)

    async def _opened(self, peer: Peer) -> bool:
        """Wait for the gate; False if the gateway leaves before."""
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                await peer.hold()
                group.cancel_scope.cancel()

            group.start_soon(watch)
            await self.gate.wait()
            group.cancel_scope.cancel()
        return self.gate.is_set()


async def beside_upstream(use: Use, *, ending: bytes = DONE, **config: Any) -> None:
    """Run `use` with a gateway and the gated upstream behind it."""
    async with anyio.create_task_group() as group:
        upstream = Gated(ending=ending)

        async def serve(*, task_status: Any) -> None:
            await upstream.serve(task_status=task_status)

        await group.start(serve)
        provider = {"name": "one", "type": "openai_compatible",
                    "base_url": f"http://127.0.0.1:{upstream.port}/v1"}  # fmt: skip
        await run_gateway(
            {"providers": [provider], **config}, lambda gateway: use(gateway, upstream)
        )
        group.cancel_scope.cancel()


def joined(gateway: RunningGateway) -> int:
    """How many have joined a running request."""
    return gateway.app.engine._idempotency().status().joined


async def together(gateway: RunningGateway, upstream: Gated, body: Any) -> list[httpx.Response]:
    """Ask twice with one key, the second time while the first is running."""
    answers: list[httpx.Response] = []

    async def ask() -> None:
        answers.append(await gateway.ask(body, headers=KEY))

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await gateway.until(lambda: upstream.requests == 1)
        group.start_soon(ask)
        await gateway.until(lambda: joined(gateway) == 1)
        upstream.gate.set()
    return answers


@pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["whole", "streamed"])
async def test_a_second_request_joins_the_running_one(body: Any) -> None:
    """Both get the same bytes, one request goes upstream, and the second is told."""

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        first, second = await together(gateway, upstream, body)
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.content == second.content
        assert b"we" in first.content
        assert upstream.requests == 1
        heads = {
            answer.headers.get("x-gateway-idempotency"): answer.headers["x-gateway-attempts"]
            for answer in (first, second)
        }
        assert heads == {None: "1", "joined": "0"}

    await beside_upstream(use)


@pytest.mark.parametrize("body", [HELLO, STREAMED], ids=["whole", "streamed"])
async def test_a_later_request_gets_the_kept_answer(body: Any) -> None:
    """The same bytes again, nothing asked upstream."""

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        upstream.gate.set()
        first = await gateway.ask(body, headers=KEY)
        second = await gateway.ask(body, headers=KEY)
        assert first.content == second.content
        assert second.headers["x-gateway-idempotency"] == "stored"
        assert second.headers["x-gateway-attempts"] == "0"
        assert second.headers["x-gateway-provider"] == "one"
        assert second.headers["content-type"] == first.headers["content-type"]
        assert upstream.requests == 1

    await beside_upstream(use)


async def test_a_key_used_for_another_body_is_the_callers_mistake() -> None:
    """422 that names the header, and says not to repeat."""

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        upstream.gate.set()
        await gateway.ask(HELLO, headers=KEY)
        for body in ({**HELLO, "seed": 1}, STREAMED):
            answer = await gateway.ask(body, headers=KEY)
            assert answer.status_code == 422
            assert answer.json()["error"]["code"] == "idempotency_key_reused"
            assert answer.json()["error"]["param"] == "Idempotency-Key"
            assert answer.headers["x-should-retry"] == "false"
        assert upstream.requests == 1

    await beside_upstream(use)


async def test_callers_with_other_api_keys_do_not_share() -> None:
    """The key of one caller is nothing to another: each gets an answer of its own."""

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        upstream.gate.set()
        for field in ({"authorization": "Bearer a"}, {"x-api-key": "b"}, {}):
            answer = await gateway.ask(HELLO, headers={**KEY, **field})
            assert "x-gateway-idempotency" not in answer.headers
        assert upstream.requests == 3
        answer = await gateway.ask(HELLO, headers={**KEY, "x-api-key": "a"})
        assert answer.headers["x-gateway-idempotency"] == "stored"

    await beside_upstream(use)


@pytest.mark.parametrize("key", ["", "k" * 256, "k\u00e9"])
async def test_a_key_that_is_none_is_refused(key: str) -> None:
    """Empty, too long or not ASCII: 400 that names the header and does not hold the key."""

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        for body in (HELLO, STREAMED):
            answer = await gateway.ask(body, headers={"idempotency-key": key.encode("latin-1")})
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "invalid_idempotency_key"
            assert not key or key not in answer.text
        assert not upstream.requests

    await beside_upstream(use)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_one_that_leaves_does_not_end_the_other(streamed: bool) -> None:
    """The first one leaves, the one that joined gets everything."""
    body = {**HELLO, "stream": streamed}

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        first = await gateway.send_chat(body, Idempotency_Key="order-17")
        await gateway.until(lambda: upstream.requests == 1)
        second = await gateway.send_chat(body, Idempotency_Key="order-17")
        await gateway.until(lambda: joined(gateway) == 1)
        await first.aclose()
        await gateway.until(lambda: any(r.outcome == "cancelled" for r in gateway.log.kept), 1)
        assert upstream.open == 1
        upstream.gate.set()
        async with second:
            received = await read_until(second, b"[DONE]" if streamed else b'"usage"')
        assert b"x-gateway-idempotency: joined" in received
        assert gateway.outcomes() == {"completed": 1}

    await beside_upstream(use)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_the_last_one_that_leaves_closes_the_upstream(streamed: bool) -> None:
    """When nobody waits any more, the work ends at once."""
    body = {**HELLO, "stream": streamed}

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        async with await gateway.send_chat(body, Idempotency_Key="order-17"):
            await gateway.until(lambda: upstream.requests == 1)
            async with await gateway.send_chat(body, Idempotency_Key="order-17"):
                await gateway.until(lambda: joined(gateway) == 1)
        await gateway.until(lambda: upstream.open == 0, 1)
        assert gateway.outcomes() == {"cancelled": 1}

    await beside_upstream(use)


async def test_a_cut_stream_is_cut_for_all_who_share_it() -> None:
    """Each gets what came and an error event, none the end marker; nothing of it is kept."""

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        for answer in await together(gateway, upstream, STREAMED):
            assert '"we"' in answer.text
            assert '"code":"stream_truncated"' in answer.text
            assert "[DONE]" not in answer.text
        upstream.ending = DONE
        again = await gateway.ask(STREAMED, headers=KEY)
        assert "x-gateway-idempotency" not in again.headers
        assert again.text.endswith("data: [DONE]\n\n")

    await beside_upstream(use, ending=b"")


async def test_shared_streams_end_with_the_drain() -> None:
    """Each reader of a shared stream gets the error event when the server goes away."""

    async def use(gateway: RunningGateway, upstream: Gated) -> None:
        async with (
            await gateway.send_chat(STREAMED, Idempotency_Key="order-17") as first,
            await gateway.send_chat(STREAMED, Idempotency_Key="order-17") as second,
        ):
            begun = [await read_until(client, b'"we"') for client in (first, second)]
            gateway.app.draining.expire()
            for client, received in zip((first, second), begun, strict=True):
                rest = await read_until(client, b"0\r\n\r\n")
                assert b"shutting down" in received + rest
                assert b"[DONE]" not in received + rest
        await gateway.until(lambda: not upstream.open, 1)

    await beside_upstream(use)


async def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    """The failed request's key runs anew the next time."""
    failing = {"name": "mock", "type": "mock", "max_retries": 0,
               "options": {"script": ["http_500", "ok"], "repeat_script": False}}  # fmt: skip

    async def scenario(gateway: RunningGateway) -> None:
        assert (await gateway.ask(headers=KEY)).status_code == 500
        answer = await gateway.ask(headers=KEY)
        assert answer.status_code == 200
        assert "x-gateway-idempotency" not in answer.headers

    config = {"providers": [failing], "retries": {"max_attempts": 1}}
    await run_gateway(config, scenario)
