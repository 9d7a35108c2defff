"""A gateway between a caller who means no good and an upstream that may not either.

Beside the upstream stands a trap: a listener that nobody may ever connect to. Whatever a
request says, whatever the upstream answers, and whatever stands in the environment, the
trap stays empty.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
import httpx
from raw_upstream import Script, Upstream, be_well

from adapters.frontdoor.app import GatewayApp, create_app
from adapters.frontdoor.listening_socket import open_listening_socket
from adapters.frontdoor.server import serve
from adapters.observability import RequestRecord
from engine import GatewayConfig

KEY = "sk-lab-4c1d2e3f5a6b7c8d"
"""The provider's key."""

HELLO: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}


async def never(peer: object) -> None:
    """A script for a listener that nobody may reach."""


@dataclass
class Records:
    """Keeps request records in memory."""

    kept: list[RequestRecord] = field(default_factory=list)

    def write(self, record: RequestRecord) -> None:
        """Keep one."""
        self.kept.append(record)


@dataclass
class Bench:
    """What one test works with.

    Attributes:
        app: The gateway.
        port: Where it listens.
        upstream: The one provider, named `upstream`.
        trap: Nobody may connect to it; checked at the end.
        records: What was written to the request log.
    """

    app: GatewayApp
    port: int
    upstream: Upstream
    trap: Upstream
    records: Records

    @property
    def url(self) -> str:
        """Where the gateway is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def trap_url(self) -> str:
        """Where the trap is."""
        return f"http://127.0.0.1:{self.trap.port}/v1"

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of the gateway; to be entered."""
        return httpx.AsyncClient(
            base_url=self.url, trust_env=False, verify=False, timeout=20, **options
        )

    async def http(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request on a connection of its own."""
        async with self.client() as client:
            return await client.request(method, path, **options)

    async def ask(self, body: Any = None, **options: Any) -> httpx.Response:
        """One chat completion."""
        return await self.http(
            "POST", "/v1/chat/completions", json=HELLO if body is None else body, **options
        )

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, and read until the gateway closes; the request must ask for that."""
        async with await anyio.connect_tcp("127.0.0.1", self.port) as stream:
            await stream.send(data)
            found = b""
            with anyio.fail_after(10):
                while True:
                    try:
                        found += await stream.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return found

    @property
    def heads(self) -> list[str]:
        """The heads of all requests that the upstream got."""
        everything = [request for peer in self.upstream.peers for request in peer.requests]
        return [request.partition(b"\r\n\r\n")[0].decode("latin-1") for request in everything]

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of all requests that the upstream got."""
        everything = [request for peer in self.upstream.peers for request in peer.requests]
        return [request.partition(b"\r\n\r\n")[2] for request in everything]


def fields_of(head: str) -> dict[str, str]:
    """The header fields of a head, names in lower case; none may stand twice."""
    found: dict[str, str] = {}
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        assert name.lower() not in found
        found[name.lower()] = value.strip()
    return found


async def on_bench(
    use: Callable[[Bench], Awaitable[None]],
    *,
    script: Script = be_well,
    host: str = "127.0.0.1",
    provider: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Run `use` with a gateway and its upstream, and see that the trap stayed empty.

    Args:
        use: The test.
        script: What the upstream does with each connection.
        host: How the provider's URL names the upstream.
        provider: Further fields of the provider.
        more: Further parts of the configuration.
        environment: Where the gateway reads its own keys from.
        options: Further arguments of `create_app`.
    """
    upstream, trap = Upstream(script), Upstream(never)
    async with anyio.create_task_group() as group:
        for listener in (upstream, trap):
            await group.start(_serve_upstream, listener)
        config = {
            "providers": [
                {
                    "name": "upstream",
                    "type": "openai_compatible",
                    "base_url": f"http://{host}:{upstream.port}/v1",
                    "max_retries": 0,
                    **(provider or {}),
                }
            ],
            **(more or {}),
        }
        await _with_gateway(use, config, upstream, trap, environment=environment or {}, **options)
        group.cancel_scope.cancel()
    assert not trap.peers, "somebody connected to the trap"


async def _with_gateway(
    use: Callable[[Bench], Awaitable[None]],
    config: Mapping[str, Any],
    upstream: Upstream,
    trap: Upstream,
    **options: Any,
) -> None:
    records = Records()
    app = create_app(GatewayConfig.model_validate(config), request_log=records, **options)
    listener = open_listening_socket("127.0.0.1", 0)
    bench = Bench(app, listener.getsockname()[1], upstream, trap, records)
    started, shutdown, hurry = anyio.Event(), anyio.Event(), anyio.Event()

    async def serve_app() -> None:
        await serve(
            app,
            listener=listener,
            settings=app.settings,
            draining=app.draining,
            shutdown=shutdown,
            hurry=hurry,
            on_started=started.set,
        )

    async with anyio.create_task_group() as group:
        group.start_soon(serve_app)
        with anyio.fail_after(10):
            await started.wait()
        with anyio.fail_after(40):
            await use(bench)
        shutdown.set()
        hurry.set()


async def _serve_upstream(
    upstream: Upstream, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    await upstream.serve(task_status=task_status)
