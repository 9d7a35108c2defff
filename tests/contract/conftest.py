"""An adapter of every HTTP type, and the upstreams that the contract's cases need."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpx
import pytest

from adapters.providers.http import HttpAdapter
from adapters.providers.openai import OpenAIAdapter
from adapters.providers.openai_compatible import OpenAICompatibleAdapter
from adapters.providers.vllm import VLLMAdapter
from engine.attempt import Attempt
from engine.config import ProviderConfig
from engine.errors import ProviderError
from engine.operations import ChatRequest, Chunk, Request

ADAPTERS: dict[str, type[HttpAdapter]] = {
    "openai": OpenAIAdapter,
    "vllm": VLLMAdapter,
    "openai_compatible": OpenAICompatibleAdapter,
}
Handler = Callable[[httpx.Request], httpx.Response]


class Parts(httpx.AsyncByteStream):
    """A body in given parts, ending in an exception if one stands last."""

    def __init__(self, parts: Iterable[bytes | Exception]) -> None:
        self.parts = parts
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def aclose(self) -> None:
        self.closed = True


class Wire:
    """One adapter type, with what its calls are made of."""

    KEY = "sk-canary-0123456789abcdef"
    HOST = "canary-host.internal"
    Parts = Parts

    def __init__(self, type_name: str) -> None:
        self.adapter_class = ADAPTERS[type_name]
        self.config = ProviderConfig(
            name="up", type=type_name, base_url=f"https://{self.HOST}/v1", api_key_env="CANARY_KEY"
        )

    def make(self, transport: httpx.AsyncBaseTransport | Handler) -> HttpAdapter:
        if not isinstance(transport, httpx.AsyncBaseTransport):
            transport = httpx.MockTransport(transport)
        return self.adapter_class(self.config, transport=transport)

    def chat(self, **fields: Any) -> ChatRequest:
        return ChatRequest("public", [{"role": "user", "content": "hi"}], **fields)

    def attempt(
        self, adapter: HttpAdapter, request: Request | None = None, **given: Any
    ) -> Attempt:
        given.setdefault("timeouts", adapter.config.timeouts)
        return Attempt(request or self.chat(), "upstream-model", "req-1", **given)

    async def read(self, adapter: HttpAdapter, attempt: Attempt) -> list[Chunk]:
        source = adapter.stream(attempt)
        try:
            return [chunk async for chunk in source]
        finally:
            await source.aclose()

    async def failure(self, adapter: HttpAdapter, *, streamed: bool = False) -> ProviderError:
        """The error of one call, checked to hold neither the key nor an address."""
        call: Callable[[Attempt], Any] = adapter.send
        if streamed:
            call = functools.partial(self.read, adapter)
        with pytest.raises(ProviderError) as caught:
            await call(self.attempt(adapter))
        error = caught.value
        told = f"{error!r} {error} {error.__dict__} {error.body}"
        assert self.KEY not in told
        assert self.HOST not in told
        assert not isinstance(error.__cause__ or error.__context__, httpx.HTTPError)
        assert error.provider == "up"
        return error

    def body(
        self,
        parts: Iterable[bytes | Exception],
        *,
        kind: str = "text/event-stream",
        status: int = 200,
    ) -> Handler:
        return lambda _: httpx.Response(status, headers={"content-type": kind}, stream=Parts(parts))

    def raising(self, error: Exception) -> Handler:
        def handle(_: httpx.Request) -> httpx.Response:
            raise error

        return handle


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Adapters use nothing of a loop but what these two show."""
    return request.param


@pytest.fixture(params=list(ADAPTERS))
def wire(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Each adapter type in turn."""
    monkeypatch.setenv("CANARY_KEY", Wire.KEY)
    return Wire(request.param)
