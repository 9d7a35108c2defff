"""The gateway as the real OpenAI client sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from engine import BaseProvider, Operation, Response

pytestmark = pytest.mark.anyio

WithGateway = Callable[..., Awaitable[None]]
MOCK = {"name": "mock-a", "type": "mock"}
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]


async def test_chat_and_its_request_id(with_gateway: WithGateway) -> None:
    """A chat completion parses, and its request id is the one that was sent."""

    async def scenario(gateway: Any) -> None:
        async with gateway.openai() as client:
            answer = await client.chat.completions.create(
                model="m", messages=MESSAGES, extra_headers={"x-request-id": "id-7"}
            )
            assert answer.choices[0].message.content
            assert answer.usage.total_tokens > 0
            assert answer._request_id == "id-7"

    await with_gateway({"providers": [MOCK]}, scenario)


async def test_streamed_chat_with_usage(with_gateway: WithGateway) -> None:
    """A stream iterates to its end, and its last chunk has the usage that was asked for."""

    async def scenario(gateway: Any) -> None:
        async with gateway.openai() as client:
            stream = await client.chat.completions.create(
                model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text
            assert chunks[-1].usage.completion_tokens > 0

    await with_gateway({"providers": [MOCK]}, scenario)


async def test_one_connection_serves_stream_after_stream(with_gateway: WithGateway) -> None:
    """The body ends right after [DONE], so that the client keeps its connection."""
    clients = set()

    async def scenario(gateway: Any) -> None:
        app, original = gateway.app, type(gateway.app).__call__

        async def note(self: Any, scope: Any, receive: Any, send: Any) -> None:
            clients.add(tuple(scope["client"]))
            await original(self, scope, receive, send)

        type(app).__call__ = note
        try:
            async with gateway.openai() as client:
                for _ in range(3):
                    stream = await client.chat.completions.create(
                        model="m", messages=MESSAGES, stream=True
                    )
                    assert [chunk async for chunk in stream]
        finally:
            type(app).__call__ = original
        assert len(clients) == 1

    await with_gateway({"providers": [MOCK]}, scenario)


async def test_tools_reach_the_provider_and_tool_calls_come_back(
    with_gateway: WithGateway, provider_type: Callable[[type[BaseProvider]], str]
) -> None:
    """Tools and tool choice pass unchanged; the call that the model makes parses."""
    seen: list[Any] = []

    class Calls(BaseProvider):
        operations = frozenset({Operation.CHAT})

        async def send(self, attempt: Any) -> Response:
            seen.append(attempt.request.body)
            call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            return Response({"id": "x", "object": "chat.completion", "created": 1, "model": "m",
                             "choices": [choice]})  # fmt: skip

        def stream(self, attempt: Any) -> Any:
            raise NotImplementedError

    async def scenario(gateway: Any) -> None:
        async with gateway.openai() as client:
            answer = await client.chat.completions.create(
                model="m", messages=MESSAGES, tools=TOOLS, tool_choice="required"
            )
            assert answer.choices[0].message.tool_calls[0].function.name == "look"
            assert (seen[0]["tools"], seen[0]["tool_choice"]) == (TOOLS, "required")
            with pytest.raises(openai.NotFoundError) as caught:
                await client.embeddings.create(model="m", input="one")
            assert caught.value.code == "unsupported_operation"

    config = {"providers": [{"name": "p", "type": provider_type(Calls)}]}
    await with_gateway(config, scenario)


async def test_completions_embeddings_and_models(with_gateway: WithGateway) -> None:
    """The other calls of the client work as well, base64 embeddings included."""
    models = [{"name": "org/big", "targets": [{"provider": "mock-a"}]}]

    async def scenario(gateway: Any) -> None:
        async with gateway.openai() as client:
            text = await client.completions.create(model="org/big", prompt="Once")
            assert text.choices[0].text
            parts = await client.completions.create(model="org/big", prompt="Once", stream=True)
            assert [part async for part in parts]
            vectors = await client.embeddings.create(model="org/big", input=["one", "two"])
            assert all(isinstance(v.embedding[0], float) for v in vectors.data)
            assert [model.id async for model in client.models.list()] == ["org/big"]
            assert (await client.models.retrieve("org/big")).owned_by == "mock-a"

    await with_gateway({"providers": [MOCK], "models": models}, scenario)


@pytest.mark.parametrize(
    ("fault", "raised", "status"),
    [
        ("http_400", openai.BadRequestError, 400),
        ("context_length", openai.BadRequestError, 400),
        ("content_filter", openai.BadRequestError, 400),
        ("http_422", openai.UnprocessableEntityError, 422),
        ("http_500", openai.InternalServerError, 500),
        ("http_503", openai.InternalServerError, 503),
        ("http_401", openai.InternalServerError, 502),
        ("refused", openai.InternalServerError, 502),
        ("html", openai.InternalServerError, 502),
        ("cut_json", openai.InternalServerError, 502),
    ],
)
async def test_failures_raise_the_right_exception(
    with_gateway: WithGateway, fault: str, raised: type[openai.APIStatusError], status: int
) -> None:
    """Each failure of a provider is the client's exception of that kind, with a text."""
    bad = {**MOCK, "max_retries": 0, "options": {"fault": fault}}

    async def scenario(gateway: Any) -> None:
        async with gateway.openai() as client:
            with pytest.raises(raised) as caught:
                await client.chat.completions.create(model="m", messages=MESSAGES)
            error = caught.value
            assert error.status_code == status
            assert error.request_id
            assert isinstance(error.body, dict)
            assert error.body["message"]
            assert error.type
            assert "mock.invalid" not in str(error)

    await with_gateway({"providers": [bad]}, scenario)


async def test_keys_models_and_deadlines_raise_the_right_exception(
    with_gateway: WithGateway,
) -> None:
    """The gateway's own refusals are the client's own exceptions."""
    slow = {**MOCK, "options": {"latency": 30}}
    models = [{"name": "chat", "targets": [{"provider": "mock-a"}]}]

    async def scenario(gateway: Any) -> None:
        async with gateway.openai(api_key="wrong") as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()
        async with gateway.openai(api_key="key") as client:
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.chat.completions.create(model="other", messages=MESSAGES)
            assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.BadRequestError) as wrong:
                await client.chat.completions.create(model="chat", messages="text")
            assert wrong.value.param == "messages"
            headers = {"x-request-timeout-ms": "200"}
            with pytest.raises(openai.InternalServerError) as late:
                # Retries of the client are on here: the answer tells it that they are hopeless.
                await client.with_options(max_retries=2).chat.completions.create(
                    model="chat", messages=MESSAGES, extra_headers=headers
                )
            assert late.value.status_code == 504
            assert gateway.outcomes().get("failed") == 1

    config = {"providers": [slow], "models": models, "server": {"api_keys_env": "KEYS"}}
    await with_gateway(config, scenario, environment={"KEYS": "key"})


async def test_cut_stream_raises_in_the_client(with_gateway: WithGateway) -> None:
    """A client that iterates a stream which breaks gets an exception, not a clean end."""
    cut = {**MOCK, "max_retries": 0, "options": {"fault": "cut_stream"}}

    async def scenario(gateway: Any) -> None:
        async with gateway.openai() as client:
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            with pytest.raises(openai.APIError) as caught:
                async for _ in stream:
                    pass
            assert caught.value.code == "stream_truncated"

    await with_gateway({"providers": [cut]}, scenario)
