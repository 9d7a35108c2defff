"""`x-gateway-priority` over HTTP: who is shed first, and what a caller may not claim."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from running_gateway import RunningGateway, run_gateway

pytestmark = pytest.mark.anyio

STUCK = {"name": "mock", "type": "mock", "options": {"fault": "hang"},
         "limits": {"concurrency": 1, "queue": 10}}  # fmt: skip
CONFIG = {"providers": [STUCK]}
WELL = {"providers": [{"name": "mock", "type": "mock"}]}


async def test_the_sheddable_are_shed_first() -> None:
    """With half of the queue taken there is room only for those who matter more."""

    async def scenario(gateway: RunningGateway) -> None:
        def waiting() -> int:
            depth: int = gateway.app.engine.status().actors[0].mailbox.depth
            return depth

        async with AsyncExitStack() as clients:
            for _ in range(6):
                await clients.enter_async_context(await gateway.send_chat())
            await gateway.until(lambda: waiting() == 5)
            answer = await gateway.ask(headers={"x-gateway-priority": "sheddable"})
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) >= 1
            assert int(answer.headers["retry-after-ms"]) >= 1
            assert "x-should-retry" not in answer.headers
            await clients.enter_async_context(
                await gateway.send_chat(x_gateway_priority="sheddable_plus")
            )
            await gateway.until(lambda: waiting() == 6)
        await gateway.until(lambda: gateway.in_flight == 0)

    await run_gateway(CONFIG, scenario)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_the_priority_reaches_the_queue(stream: bool) -> None:
    """A request waits in the class that its header names."""

    async def scenario(gateway: RunningGateway) -> None:
        def depths() -> dict[str, int]:
            found: dict[str, int] = gateway.app.engine.status().actors[0].mailbox.depths
            return {word: depth for word, depth in found.items() if depth}

        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
        async with AsyncExitStack() as clients:
            await clients.enter_async_context(await gateway.send_chat())
            await gateway.until(lambda: gateway.app.engine.status().actors[0].in_flight == 1)
            for word in ("sheddable", "Critical"):
                client = await gateway.send_chat(body, x_gateway_priority=word)
                await clients.enter_async_context(client)
            await gateway.until(lambda: depths() == {"critical": 1, "sheddable": 1})
        await gateway.until(lambda: gateway.in_flight == 0)

    await run_gateway(CONFIG, scenario)


@pytest.mark.parametrize(
    ("word", "text"), [("critical_plus", "only lower"), ("urgent", "takes one of"), ("", "takes")]
)
async def test_a_priority_that_cannot_be_claimed_is_refused(word: str, text: str) -> None:
    """400 that names the header and says what it takes; nobody is asked."""

    async def scenario(gateway: RunningGateway) -> None:
        answer = await gateway.ask(headers={"x-gateway-priority": word})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("x-gateway-priority", "invalid_value")
        assert text in error["message"]
        assert "critical, sheddable_plus, sheddable" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
        assert gateway.outcomes() == {}

    await run_gateway(WELL, scenario)


@pytest.mark.parametrize("word", ["critical", "sheddable_plus", "sheddable"])
async def test_in_calm_times_every_priority_is_served(word: str) -> None:
    """Being sheddable costs nothing while nothing is shed; embeddings know it, too."""

    async def scenario(gateway: RunningGateway) -> None:
        head = {"x-gateway-priority": word}
        assert (await gateway.ask(headers=head)).status_code == 200
        body = {"model": "m", "input": "one"}
        answer = await gateway.http("POST", "/v1/embeddings", json=body, headers=head)
        assert answer.status_code == 200

    await run_gateway(WELL, scenario)
