"""A whole gateway on loopback: configuration in, HTTP out."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.abc
import pytest
from running_gateway import run_gateway

from engine import BaseProvider, ProviderFactory


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Hypercorn runs on asyncio and uvloop only."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def with_gateway() -> Callable[..., Awaitable[None]]:
    """Run a scenario against a gateway; nothing of it is left when the call returns."""
    return run_gateway


@pytest.fixture
def provider_type() -> Iterator[Callable[[type[BaseProvider]], str]]:
    """Make an adapter class known under its own name, for the time of one test."""
    names: list[str] = []

    def register(adapter_class: type[BaseProvider]) -> str:
        name = f"test-{adapter_class.__name__.lower()}"
        ProviderFactory.register_type(name, adapter_class)
        names.append(name)
        return name

    yield register
    for name in names:
        ProviderFactory.unregister_type(name)


@dataclass
class RawUpstream:
    """An upstream in raw bytes: reads a request, sends what it was told, waits for the end."""

    port: int
    asked: int = 0
    closed: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture
def with_upstream() -> Callable[..., Awaitable[None]]:
    """Run a scenario beside a raw upstream that sends `answer` and then keeps silent."""

    async def run(
        answer: bytes, scenario: Callable[[RawUpstream], Awaitable[None]], *, close: bool = False
    ) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        upstream = RawUpstream(listener.extra(anyio.abc.SocketAttribute.local_port))

        async def handle(stream: anyio.abc.SocketStream) -> None:
            async with stream:
                await stream.receive()
                upstream.asked += 1
                if answer:
                    await stream.send(answer)
                if close:
                    return
                try:
                    while True:
                        await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    upstream.closed += 1

        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, handle)
            await scenario(upstream)
            group.cancel_scope.cancel()

    return run


@pytest.fixture(autouse=True)
def _quiet_log() -> None:
    logging.getLogger("hypercorn.error").setLevel(logging.WARNING)
