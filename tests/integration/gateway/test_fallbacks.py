"""Fallbacks, budgets and repeats over HTTP: what the header fields of an answer tell."""

from __future__ import annotations

from typing import Any

import pytest
from running_gateway import HELLO, RunningGateway, run_gateway

pytestmark = pytest.mark.anyio


def config(fault: str | None, **more: Any) -> dict[str, Any]:
    """A model `big` that has a fault, and falls back to `small` and then to `tiny`."""

    def mock(name: str, **options: Any) -> dict[str, Any]:
        return {"name": name, "type": "mock", "max_retries": 0, "options": options}

    return {
        "providers": [
            mock("for-big", fault=fault),
            mock("for-small", fault="http_500"),
            mock("for-tiny"),
        ],
        "models": [
            {
                "name": "big",
                "targets": [{"provider": "for-big"}],
                "fallbacks": {"error": ["small", "tiny"], "context_length": ["tiny"]},
            },
            {"name": "small", "targets": [{"provider": "for-small"}]},
            {"name": "tiny", "targets": [{"provider": "for-tiny"}]},
        ],
        **more,
    }


def asked(*, stream: bool) -> dict[str, Any]:
    return {**HELLO, "model": "big", "stream": stream}


STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@STREAM
async def test_an_answer_names_the_models_that_were_fallen_back_to(stream: bool) -> None:
    """In their order; attempts and provider are those of the whole request."""

    async def scenario(gateway: RunningGateway) -> None:
        answer = await gateway.ask(asked(stream=stream))
        assert answer.status_code == 200
        assert answer.headers["x-gateway-fallback"] == "small, tiny"
        assert answer.headers["x-gateway-provider"] == "for-tiny"
        assert answer.headers["x-gateway-attempts"] == "3"

    await run_gateway(config("http_500"), scenario)


@STREAM
async def test_the_cause_decides_which_model_is_asked(stream: bool) -> None:
    """A prompt that is too long goes to the model for long ones."""

    async def scenario(gateway: RunningGateway) -> None:
        answer = await gateway.ask(asked(stream=stream))
        assert answer.status_code == 200
        assert answer.headers["x-gateway-fallback"] == "tiny"

    await run_gateway(config("context_length"), scenario)


async def test_an_ordinary_answer_says_nothing_of_it() -> None:
    """Without a fallback, a key or a budget there is no word of them."""

    async def scenario(gateway: RunningGateway) -> None:
        head = (await gateway.ask(asked(stream=False))).headers
        assert head["x-gateway-attempts"] == "1"
        assert not {
            "x-gateway-fallback", "x-gateway-idempotency", "x-gateway-retry", "x-should-retry",
            "retry-after", "retry-after-ms",
        } & set(head)  # fmt: skip

    await run_gateway(config(None), scenario)


@STREAM
async def test_a_failure_names_the_models_that_were_asked_in_vain(stream: bool) -> None:
    """Also when nobody could answer."""
    all_bad = config("http_500")
    all_bad["providers"][2]["options"] = {"fault": "http_503", "retry_after": 7}

    async def scenario(gateway: RunningGateway) -> None:
        answer = await gateway.ask(asked(stream=stream))
        assert answer.status_code == 503
        assert answer.headers["x-gateway-fallback"] == "small, tiny"
        assert answer.headers["x-gateway-attempts"] == "3"
        assert 1 <= int(answer.headers["retry-after"]) <= 7
        assert 1 <= int(answer.headers["retry-after-ms"]) <= 7000

    await run_gateway(all_bad, scenario)


@STREAM
async def test_a_retry_that_the_budget_forbids_is_told(stream: bool) -> None:
    """The failure goes up unchanged, with the reason why nothing more was tried."""
    budget = {"capacity": 1, "per_success": 0, "per_second": 0}
    failing = {"name": "mock", "type": "mock", "max_retries": 3,
               "options": {"fault": "http_500"}}  # fmt: skip

    async def scenario(gateway: RunningGateway) -> None:
        body = {**HELLO, "stream": stream}
        answers = [await gateway.ask(body) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [500, 500, 500]
        assert answers[-1].headers["x-gateway-retry"] == "budget"
        assert answers[-1].headers["x-gateway-attempts"] == "1"

    await run_gateway({"providers": [failing], "retry_budget": budget}, scenario)


@pytest.mark.parametrize(
    ("fault", "status", "repeat"),
    [
        ("refused", 502, None),
        ("http_500", 500, None),
        ("http_503", 503, None),
        ("reset_before", 502, "false"),
        ("read_timeout", 504, "false"),
        ("html", 502, "false"),
        ("http_401", 502, "false"),
        ("context_length", 400, "false"),
    ],
)
@STREAM
async def test_clients_are_told_whether_to_repeat(
    fault: str, status: int, repeat: str | None, stream: bool
) -> None:
    """Not the caller's own mistakes, and not what may have been executed and billed."""
    provider = {"name": "mock", "type": "mock", "max_retries": 0, "options": {"fault": fault},
                "timeouts": {"headers": 0.05, "first_event": 0.05}}  # fmt: skip

    async def scenario(gateway: RunningGateway) -> None:
        answer = await gateway.ask({**HELLO, "stream": stream})
        assert answer.status_code == status
        assert answer.headers.get("x-should-retry") == repeat
        assert ("retry-after" in answer.headers) == (status == 503)

    config = {"providers": [provider], "retries": {"max_attempts": 1}}
    await run_gateway(config, scenario)


async def test_a_request_that_the_gate_refuses_is_logged() -> None:
    """One line with the id that its sender was told, and nothing of its path or fields."""

    async def scenario(gateway: RunningGateway) -> None:
        answer = await gateway.http("POST", "/v1//secret?secret", content=b"{}")
        assert answer.status_code == 404
        record = await gateway.log.last()
        assert record.request_id == answer.headers["x-request-id"]
        assert (record.status, record.outcome, record.error_code) == (404, "rejected", "not_found")
        assert (record.method, record.route) == ("POST", "(none)")
        assert "secret" not in repr(gateway.log.kept)

    await run_gateway(config(None), scenario)
