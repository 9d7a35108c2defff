"""A whole gateway on loopback: configuration in, HTTP out, in requests or in raw bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import httpx
from openai import AsyncOpenAI

from adapters.frontdoor.app import GatewayApp, create_app
from adapters.frontdoor.listening_socket import open_listening_socket
from adapters.frontdoor.server import serve
from adapters.observability import RequestRecord
from engine import GatewayConfig

HELLO: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}
CHAT_PATH = "/v1/chat/completions"


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


def chat_bytes(body: Any = None, **fields: str) -> bytes:
    """A chat completion as a client puts it on the wire; names of fields with `_` for `-`."""
    data = json.dumps(HELLO if body is None else body).encode()
    head = [f"POST {CHAT_PATH} HTTP/1.1", "host: gateway", "content-type: application/json"]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return "\r\n".join([*head, f"content-length: {len(data)}", "", ""]).encode() + data


async def read_all(stream: anyio.abc.SocketStream, *, quiet: float = 5.0) -> tuple[bytes, bool]:
    """Read until the server closes, or is quiet for some seconds.

    Returns what came, and whether the server closed.
    """
    received = bytearray()
    while True:
        with anyio.move_on_after(quiet) as scope:
            try:
                received += await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return bytes(received), True
        if scope.cancelled_caught:
            return bytes(received), False


async def read_until(stream: anyio.abc.SocketStream, part: bytes) -> bytes:
    """Read until these bytes have come."""
    received = b""
    with anyio.fail_after(10):
        while part not in received:
            received += await stream.receive()
    return received


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
        return await self.http("POST", CHAT_PATH, json=HELLO if body is None else body, **options)

    async def connect(self) -> anyio.abc.SocketStream:
        """Open a connection."""
        return await anyio.connect_tcp("127.0.0.1", self.port)

    async def send_chat(self, body: Any = None, **fields: str) -> anyio.abc.SocketStream:
        """Send a chat completion in raw bytes and leave the connection open."""
        stream = await self.connect()
        await stream.send(chat_bytes(body, **fields))
        return stream

    async def exchange(self, data: bytes, *, quiet: float = 5.0) -> tuple[bytes, bool]:
        """Send bytes and read all that comes back; see `read_all`."""
        async with await self.connect() as stream:
            await stream.send(data)
            return await read_all(stream, quiet=quiet)

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


async def run_gateway(
    config: dict[str, Any],
    scenario: Scenario,
    *,
    changes: Mapping[str, Any] | None = None,
    user_timeout: float = 30.0,
    **options: Any,
) -> None:
    """Run a scenario against a gateway; nothing of it is left when the call returns.

    Args:
        config: Its configuration.
        scenario: What happens to it.
        changes: Settings of its server that are not what the configuration makes of them.
        user_timeout: Of its sockets, seconds.
        options: Further arguments of `create_app`.
    """
    log = Records()
    app = create_app(GatewayConfig.model_validate(config), request_log=log, **options)
    listener = open_listening_socket("127.0.0.1", 0, user_timeout=user_timeout)
    gateway = RunningGateway(app, listener.getsockname()[1], log)
    started = anyio.Event()

    async def serve_app() -> None:
        await serve(
            app,
            listener=listener,
            settings=dataclasses.replace(app.settings, **(changes or {})),
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
