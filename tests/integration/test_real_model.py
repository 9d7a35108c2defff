"""A real llama.cpp server behind the gateway, asked with the real OpenAI client."""

from __future__ import annotations

import json
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import openai
import pytest

DATA = pathlib.Path(__file__).parents[1] / "data"
COMMAND = pathlib.Path(sys.executable).with_name("inference-gateway")
WEATHER_TOOL: openai.types.chat.ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a place",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}

pytestmark = pytest.mark.shares_a_server


@pytest.fixture(params=[pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """The OpenAI client runs on asyncio; the gateway is a process of its own."""
    return request.param


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gateway over two llama.cpp providers, weights 3 and 1; yields its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"model": str(DATA / "tiny-chat.gguf"), "context_tokens": 1024, "parallel": 2}
    config = {
        "server": {"port": port},
        "seed": 7,
        "telemetry": {"logs": "none"},
        "providers": [
            {"name": "heavy", "type": "llamacpp", "weight": 3, "options": options},
            {"name": "light", "type": "llamacpp", "weight": 1, "options": options},
        ],
        "models": [
            {
                "name": "chat",
                "targets": [
                    {"provider": "heavy", "model": "tiny-chat"},
                    {"provider": "light", "model": "tiny-chat"},
                ],
            }
        ],
    }
    path = tmp_path_factory.mktemp("gateway") / "gateway.json"
    path.write_text(json.dumps(config))
    server = subprocess.Popen([COMMAND, "serve", path], stdout=subprocess.DEVNULL)
    try:
        _wait_until_ready(server, port)
        yield f"http://127.0.0.1:{port}/v1"
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait(30)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        assert server.poll() is None, "the gateway ended before it was ready"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).read()
        except (OSError, urllib.error.URLError):
            time.sleep(0.05)
        else:
            return
    pytest.fail("the gateway was not ready after 30 s")


@pytest.fixture
async def client(gateway: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The real client; it never retries, so that what is seen is what the gateway did."""
    async with openai.AsyncOpenAI(base_url=gateway, api_key="any", max_retries=0) as client:
        yield client


def question(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def test_completion_comes_from_the_model(client: openai.AsyncOpenAI) -> None:
    """A question gets the trained answer, with the usage that the model counted."""
    answer = await client.chat.completions.create(
        model="chat", messages=question("What colour is the boat?"), temperature=0, max_tokens=40
    )
    assert re.fullmatch(r"The \w+ is \w+\.", answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


async def test_stream_adds_up_to_the_whole_answer(client: openai.AsyncOpenAI) -> None:
    """The streamed text equals the unstreamed one, and the usage chunk comes when asked."""
    whole = await client.chat.completions.create(
        model="chat", messages=question("Repeat: Zürich"), temperature=0, max_tokens=40
    )
    stream = await client.chat.completions.create(
        model="chat",
        messages=question("Repeat: Zürich"),
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    async for chunk in stream:
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert usage == whole.usage or usage.completion_tokens > 0


async def test_tool_call_comes_through(client: openai.AsyncOpenAI) -> None:
    """A required tool is called with arguments that fit its schema."""
    answer = await client.chat.completions.create(
        model="chat",
        messages=question("Weather in harbour?"),
        tools=[WEATHER_TOOL],
        tool_choice="required",
        temperature=0,
        max_tokens=80,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    assert isinstance(json.loads(calls[0].function.arguments)["city"], str)
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_streamed_tool_call_comes_through(client: openai.AsyncOpenAI) -> None:
    """The pieces of a streamed tool call add up to valid arguments."""
    stream = await client.chat.completions.create(
        model="chat",
        messages=question("Weather in harbour?"),
        tools=[WEATHER_TOOL],
        tool_choice="required",
        temperature=0,
        max_tokens=80,
        stream=True,
    )
    name, arguments = "", ""
    async for chunk in stream:
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or ():
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert name == "get_weather"
    assert "city" in json.loads(arguments)


async def test_both_providers_serve_by_weight(client: openai.AsyncOpenAI) -> None:
    """Over many requests both providers answer, the heavier one more often."""
    picked: Counter[str] = Counter()
    for _ in range(40):
        answer = await client.chat.completions.with_raw_response.create(
            model="chat", messages=question("Repeat: naïve café"), temperature=0, max_tokens=4
        )
        picked[answer.headers["x-gateway-provider"]] += 1
    assert set(picked) == {"heavy", "light"}
    assert picked["heavy"] > picked["light"]


async def test_context_overflow_raises_what_the_service_raises(client: openai.AsyncOpenAI) -> None:
    """A prompt beyond the model's context is the client's BadRequestError with its code."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            model="chat", messages=question("Repeat: " + "kettle " * 3000), max_tokens=4
        )
    assert caught.value.code == "context_length_exceeded"


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    """The configured model is what can be asked for."""
    assert [model.id async for model in client.models.list()] == ["chat"]
