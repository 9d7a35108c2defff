"""Bad input: a 4xx in the OpenAI shape that names the field, and the server serves on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

pytestmark = pytest.mark.anyio

WithGateway = Callable[..., Awaitable[None]]
CANARY = "canary-91c2"
MESSAGES = f'[{{"role":"user","content":"{CANARY}"}}]'
CONFIG = {
    "providers": [{"name": "mock", "type": "mock"}],
    "models": [{"name": "chat", "targets": [{"provider": "mock"}]}],
    "server": {"max_body_bytes": 4096, "api_keys_env": "KEYS"},
}
KEY = {"authorization": "Bearer key"}

BODIES: list[tuple[str, bytes, int, str | None, str]] = [
    ("malformed", b'{"model": "chat", ', 400, None, "invalid_json"),
    ("empty", b"", 400, None, "invalid_json"),
    ("trailing rubbish", b'{"model":"chat"} x', 400, None, "invalid_json"),
    ("not an object", b'["chat"]', 400, None, "invalid_json"),
    ("null", b"null", 400, None, "invalid_json"),
    ("invalid UTF-8", b'{"model":"chat","messages":[],"x":"\xff\xfe"}', 400, None, "invalid_json"),
    ("UTF-16", '{"model":"chat"}'.encode("utf-16"), 400, None, "invalid_json"),
    ("half a pair", b'{"model":"chat","messages":[],"x":"\\ud800"}', 400, None, "invalid_json"),
    ("NaN", b'{"model":"chat","messages":[],"temperature":NaN}', 400, None, "invalid_json"),
    ("infinity", b'{"model":"chat","messages":[],"top_p":-Infinity}', 400, None, "invalid_json"),
    ("huge", b'{"model":"chat","messages":[],"top_p":1e999}', 400, None, "invalid_json"),
    ("digits", b'{"model":"chat","n":' + b"9" * 4001 + b"x}", 400, None, "invalid_json"),
    ("model twice", f'{{"model":"chat","model":"other","messages":{MESSAGES}}}'.encode(),
     400, "model", "duplicate_field"),
    ("deep", b'{"model":"chat","messages":' + b"[" * 2000 + b"]" * 2000 + b"}",
     400, None, "invalid_json"),
    ("too large", b'{"model":"chat","x":"' + b"y" * 5000 + b'"}', 413, None, "body_too_large"),
    ("no model", f'{{"messages":{MESSAGES}}}'.encode(), 400, "model", "missing_required_parameter"),
    ("model is a number", f'{{"model":5,"messages":{MESSAGES}}}'.encode(),
     400, "model", "invalid_type"),
    ("model is null", f'{{"model":null,"messages":{MESSAGES}}}'.encode(),
     400, "model", "invalid_type"),
    ("model is empty", f'{{"model":"","messages":{MESSAGES}}}'.encode(),
     400, "model", "invalid_type"),
    ("unknown model", f'{{"model":"other","messages":{MESSAGES}}}'.encode(),
     404, "model", "model_not_found"),
    ("no messages", b'{"model":"chat"}', 400, "messages", "missing_required_parameter"),
    ("messages is text", f'{{"model":"chat","messages":"{CANARY}"}}'.encode(),
     400, "messages", "invalid_type"),
    ("a message is text", f'{{"model":"chat","messages":["{CANARY}"]}}'.encode(),
     400, "messages[0]", "invalid_type"),
    ("stream is text", f'{{"model":"chat","stream":"yes","messages":{MESSAGES}}}'.encode(),
     400, "stream", "invalid_type"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "param", "code"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES]
)
async def test_a_bad_body_is_refused(
    with_gateway: WithGateway, body: bytes, status: int, param: str | None, code: str
) -> None:
    """The answer has the OpenAI shape and names the field; the log has no part of the body."""

    async def scenario(gateway: Any) -> None:
        path = "/v1/chat/completions"
        headers = {**KEY, "content-type": "application/json"}
        answer = await gateway.http("POST", path, content=body, headers=headers)
        assert answer.status_code == status, answer.text
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["param"], error["code"]) == (param, code)
        assert error["type"] == "invalid_request_error"
        assert answer.headers["x-request-id"]
        assert answer.headers["x-should-retry"] == "false"
        record = await gateway.log.last()
        assert (record.status, record.outcome, record.error_code) == (status, "rejected", code)
        assert CANARY not in answer.text + repr(gateway.log.kept)
        assert (await gateway.http("GET", "/healthz")).status_code == 200

    await with_gateway(CONFIG, scenario, environment={"KEYS": "key"})


async def test_a_missing_key_is_refused_before_the_body_is_read(with_gateway: WithGateway) -> None:
    """Who has no key gets 401 without sending a body."""

    async def scenario(gateway: Any) -> None:
        async with await anyio.connect_tcp("127.0.0.1", gateway.port) as client:
            await client.send(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
                b"content-length: 4000\r\n\r\n"
            )
            with anyio.fail_after(5):
                assert (await client.receive()).startswith(b"HTTP/1.1 401")

    await with_gateway(CONFIG, scenario, environment={"KEYS": "key"})


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/models", 405, "GET, HEAD"),
        ("OPTIONS", "/v1/embeddings", 405, "POST"),
        ("POST", "/", 405, "GET, HEAD"),
        ("POST", "/v1/chat/completions/", 404, None),
        ("POST", "/V1/chat/completions", 404, None),
        ("POST", "/v1/ch%61t/completions", 404, None),
        ("GET", "/v1/models/", 404, None),
        ("GET", "/metrics", 404, None),
        ("GET", "/v1/..%2f..%2fstatus", 404, None),
    ],
)
async def test_a_wrong_route_is_refused(
    with_gateway: WithGateway, method: str, path: str, status: int, allow: str | None
) -> None:
    """Unknown paths and wrong methods are answered in the same shape as everything else."""

    async def scenario(gateway: Any) -> None:
        answer = await gateway.http(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.headers.get("allow") == allow

    await with_gateway(CONFIG, scenario, environment={"KEYS": "key"})


async def test_unknown_fields_and_exact_numbers_pass_both_ways(
    with_gateway: WithGateway, with_upstream: Callable[..., Awaitable[None]]
) -> None:
    """The caller gets the provider's bytes, with fields and spellings that we do not know."""
    choice = b'{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}'
    body = (
        b'{"id": "c",  "choices": [%b], "exact": 12345678901234567890, "odd": 1.10, "\\u00e9": 0}'
        % choice
    )
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"

    async def beside(upstream: Any) -> None:
        async def scenario(gateway: Any) -> None:
            answer = await gateway.ask()
            assert answer.content == body

        provider = {"name": "raw", "type": "openai_compatible", "base_url": upstream.url}
        await with_gateway({"providers": [provider]}, scenario)

    await with_upstream(head % len(body) + body, beside)


async def test_a_bad_configuration_of_keys_never_starts(with_gateway: WithGateway) -> None:
    """A gateway that is to ask for keys and has none is not started at all."""

    async def scenario(gateway: Any) -> None:
        pytest.fail("it started")

    for environment in ({}, {"KEYS": " , "}, {"KEYS": "good,b\u00e4d"}):
        with pytest.raises(ValueError, match="KEYS") as caught:
            await with_gateway(CONFIG, scenario, environment=environment)
        assert "b\u00e4d" not in str(caught.value)
