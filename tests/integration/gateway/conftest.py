"""A whole gateway on loopback: configuration in, HTTP out."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from openai import AsyncOpenAI

from adapters.frontdoor.app import GatewayApp, create_app
from adapters.frontdoor.listening_socket import open_listening_socket
from adapters.frontdoor.server import serve
from adapters.observability import RequestRecord
from engine import BaseProvider, GatewayConfig, ProviderFactory

HELLO = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Hypercorn runs on asyncio and uvloop only."""
    return "asyncio", {"use_uvloop": request.param}


@dataclass
class Records:
    """Keeps request records in memory."""

    kept: list[RequestRecord] = field(default_factory=list)

    def write(self, record: RequestRecord) -> None:
        self.kept.append(record)

    async def last(self) -> RequestRecord:
        """The newest record; waits for it, because it is written after the answer."""
        with anyio.fail_after(5):
            while not self.kept:  # noqa: ASYNC110 - looks from outside, as an operator does
                await anyio.sleep(0.005)
        return self.kept[-1]


@dataclass
class RunningGateway:
    """A gateway under test."""

    app: GatewayApp
    port: int
    log: Records
    shutdown: anyio.Event = field(default_factory=anyio.Event)
    hurry: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, **options: Any) -> AsyncOpenAI:
        """A real OpenAI client."""
        given = {"api_key": "sk-test", "max_retries": 0, "timeout": 20.0, **options}
        return AsyncOpenAI(base_url=f"{self.url}/v1", **given)

    async def http(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One HTTP request on a connection of its own."""
        # Without TLS there is nothing to verify, and reading the certificates takes longest.
        async with httpx.AsyncClient(
            base_url=self.url, trust_env=False, verify=False, timeout=20
        ) as client:
            return await client.request(method, path, **options)

    async def ask(self, body: Any = None, **options: Any) -> httpx.Response:
        """One chat completion."""
        return await self.http(
            "POST", "/v1/chat/completions", json=HELLO if body is None else body, **options
        )

    async def send_chat(self, body: Any = None) -> anyio.abc.SocketStream:
        """Send a chat completion in raw bytes and leave the connection open."""
        data = json.dumps(HELLO if body is None else body).encode()
        stream = await anyio.connect_tcp("127.0.0.1", self.port)
        await stream.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)
        )
        return stream

    @property
    def in_flight(self) -> int:
        """Requests in flight, attempts and waiting requests included."""
        status = self.app.engine.status()
        attempts = sum(actor.in_flight + actor.mailbox.depth for actor in status.actors)
        return status.ledger.in_flight + attempts

    async def until(self, condition: Callable[[], bool], seconds: float = 5) -> None:
        """Wait until something is true."""
        with anyio.fail_after(seconds):
            while not condition():  # noqa: ASYNC110 - looks from outside, as an operator does
                await anyio.sleep(0.005)

    def outcomes(self) -> dict[str, int]:
        """Outcomes that happened, by name."""
        counts = self.app.engine.status().ledger.outcomes
        return {outcome.value: count for outcome, count in counts.items() if count}


Scenario = Callable[[RunningGateway], Awaitable[None]]


@pytest.fixture
def with_gateway() -> Callable[..., Awaitable[None]]:
    """Run a scenario against a gateway; nothing of it is left when the call returns."""

    async def run(config: dict[str, Any], scenario: Scenario, **options: Any) -> None:
        log = Records()
        app = create_app(GatewayConfig.model_validate(config), request_log=log, **options)
        listener = open_listening_socket("127.0.0.1", 0)
        gateway = RunningGateway(app, listener.getsockname()[1], log)
        started = anyio.Event()

        async def serve_app() -> None:
            await serve(
                app,
                listener=listener,
                settings=app.settings,
                draining=app.draining,
                shutdown=gateway.shutdown,
                hurry=gateway.hurry,
                on_started=started.set,
            )
            gateway.ended.set()

        async with anyio.create_task_group() as group:
            group.start_soon(serve_app)
            with anyio.fail_after(10):
                await started.wait()
            with anyio.fail_after(40):
                await scenario(gateway)
            gateway.shutdown.set()
            gateway.hurry.set()
            with anyio.fail_after(10):
                await gateway.ended.wait()
        assert app.engine.status().ledger.conservation_error == 0
        assert gateway.in_flight == 0

    return run


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
