"""Active checks over HTTP: against an upstream of raw bytes, and against the mock."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest

from adapters.providers.health_request import check_url
from adapters.providers.mock import MockAdapter
from adapters.providers.openai_compatible import OpenAICompatibleAdapter
from engine import GatewayConfig, ProviderRegistry, Router
from engine.config import ProviderConfig
from engine.errors import (
    BrokenError,
    ConfigurationError,
    ConnectError,
    MisconfiguredError,
    OverloadedError,
    ProviderError,
    TransientError,
)

WELL = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Upstream:
    """Answers every request on a connection with the same bytes."""

    def __init__(self, answer: bytes, *, then_close: bool = False, then_send: bytes = b"") -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self.connections = 0
        self.sent = 0
        self.port = 0
        self._then_close = then_close
        self._then_send = then_send

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        async with stream:
            try:
                while True:
                    request = b""
                    while not request.endswith(b"\r\n\r\n"):
                        request += await stream.receive()
                    self.requests.append(request)
                    await stream.send(self.answer)
                    while self._then_send:
                        await stream.send(self._then_send)
                        self.sent += len(self._then_send)
                    if self._then_close:
                        return
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    @property
    def lines(self) -> list[str]:
        """The lines of the last request."""
        return self.requests[-1].decode().lower().split("\r\n")


@asynccontextmanager
async def listening(upstream: Upstream) -> AsyncGenerator[Upstream, None]:
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        upstream.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, upstream.serve)
            yield upstream
            group.cancel_scope.cancel()


def provider_at(port: int, **settings: Any) -> OpenAICompatibleAdapter:
    return OpenAICompatibleAdapter(
        ProviderConfig.model_validate(
            {
                "name": "up",
                "type": "openai_compatible",
                "base_url": f"http://127.0.0.1:{port}/api/v1",
                "timeouts": {"connect": 2},
                **settings,
            }
        )
    )


async def failure_of(
    upstream: Upstream, path: str = "models", times: int = 1, **settings: Any
) -> ProviderError | None:
    """Check a real upstream, and say how that failed."""
    async with listening(upstream), provider_at(upstream.port, **settings) as provider:
        with anyio.fail_after(10):
            for _ in range(times):
                try:
                    await provider.check_health(path)
                except ProviderError as error:
                    return error
    return None


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("models", "/api/v1/models"),
        ("/health", "/health"),
        ("/ready?full=1", "/ready?full=1"),
        ("//elsewhere.invalid/health", "//elsewhere.invalid/health"),
    ],
)
async def test_the_path_is_asked_at_the_providers_own_server(path: str, target: str) -> None:
    """With a leading slash below the root, else below the base URL; never anywhere else."""
    upstream = Upstream(WELL)
    assert await failure_of(upstream, path) is None
    assert upstream.lines[0] == f"get {target} http/1.1"
    assert f"host: 127.0.0.1:{upstream.port}" in upstream.lines


async def test_the_key_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """`/v1/models` needs one; the check has no body and names no type of one."""
    monkeypatch.setenv("UP_KEY", "sk-canary")
    upstream = Upstream(WELL)
    assert await failure_of(upstream, api_key_env="UP_KEY") is None
    assert "authorization: bearer sk-canary" in upstream.lines
    assert "accept: */*" in upstream.lines
    assert not any(line.startswith(("content-", "transfer-")) for line in upstream.lines)


async def test_checks_share_a_connection() -> None:
    """A short answer is read to its end, so that nothing is opened anew each time."""
    upstream = Upstream(WELL)
    assert await failure_of(upstream, times=5) is None
    assert (len(upstream.requests), upstream.connections) == (5, 1)


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "299 Fine"])
async def test_any_2xx_is_well(status: str) -> None:
    """Whatever else the answer says."""
    length = b"" if status.startswith("204") else b"content-length: 0\r\n"
    assert await failure_of(Upstream(f"HTTP/1.1 {status}\r\n".encode() + length + b"\r\n")) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("302 Found", ProviderError),
        ("401 Unauthorized", MisconfiguredError),
        ("404 Not Found", ProviderError),
        ("429 Too Many Requests", OverloadedError),
        ("500 Oops", TransientError),
        ("503 Away", OverloadedError),
    ],
)
async def test_any_other_status_is_not_well(status: str, kind: type[ProviderError]) -> None:
    """No redirect is followed, and nothing of the answer's text is told."""
    answer = f"HTTP/1.1 {status}\r\nlocation: /x\r\ncontent-length: 6\r\n\r\ncanary".encode()
    upstream = Upstream(answer)
    error = await failure_of(upstream)
    assert isinstance(error, kind)
    assert "canary" not in str(error)
    assert len(upstream.requests) == 1


async def test_nobody_there_is_not_well(free_port: int) -> None:
    """A refused connection is a failed check."""
    async with provider_at(free_port) as provider:
        with pytest.raises(ConnectError):
            await provider.check_health("models")


async def test_cut_answer_is_not_well() -> None:
    """Half a body tells of a server in trouble."""
    upstream = Upstream(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", then_close=True)
    assert isinstance(await failure_of(upstream), BrokenError)


# What httpcore, the client on trio, leaves of a body that is given up halfway.
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore:ResourceWarning")
async def test_endless_answer_is_not_read_to_its_end() -> None:
    """After 64 KiB the status is enough, and the connection is closed."""
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    upstream = Upstream(head, then_send=b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
    assert await failure_of(upstream) is None
    assert upstream.sent < 16_000_000


async def test_upstream_that_fails_its_checks_gets_no_requests() -> None:
    """Through a router, over real sockets: out by its checks, and back when it is well."""
    upstream = Upstream(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n")
    often = {"path": "/health", "interval": 0.01, "timeout": 2, "failures": 2}
    async with listening(upstream), provider_at(upstream.port, health_check=often) as provider:
        registry = ProviderRegistry()
        registry.register_provider("up", provider)
        async with Router(GatewayConfig(providers=(provider.config,)), registry=registry) as router:

            async def wait_for(state: str) -> None:
                with anyio.fail_after(10):
                    while router.status().actors[0].health.state != state:  # noqa: ASYNC110
                        await anyio.sleep(0.005)

            await wait_for("ejected")
            assert all(request.startswith(b"GET /health ") for request in upstream.requests)
            upstream.answer = WELL
            await wait_for("slow_start")
            status = router.status()
    assert (status.actors[0].completed, status.actors[0].failed) == (0, {})
    assert status.ledger.attempts == 0


# ── the mock ─────────────────────────────────────────────────────────────────────


def mock(**options: Any) -> MockAdapter:
    return MockAdapter(ProviderConfig(name="m", type="mock", options=options))


async def test_mock_is_well() -> None:
    """Checks are no inference calls, so a script does not move on."""
    provider = mock(script=["http_500"])
    await provider.check_health("models")
    await provider.check_health("/health")
    assert provider.calls == 0


@pytest.mark.parametrize("fault", ["refused", "reset_before", "http_500", "http_429"])
async def test_mock_that_is_down_fails_its_checks(fault: str) -> None:
    """A fault that lasts is one of the server, and the check meets it."""
    with pytest.raises(ProviderError):
        await mock(fault=fault).check_health("models")


async def test_mock_that_hangs_hangs_in_its_checks() -> None:
    """Only the limit of the check ends it."""
    with anyio.move_on_after(0.02) as scope:
        await mock(fault="hang").check_health("models")
    assert scope.cancelled_caught


# ── the path ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", ["/a\nb", "models\x00", "/\x7f"])
def test_path_that_no_url_can_hold_is_refused_at_once(path: str) -> None:
    """It is a mistake of the configuration and must not look like a sick provider."""
    with pytest.raises(ConfigurationError, match=r"health_check\.path is no path of a URL"):
        provider_at(1, health_check={"path": path})


def test_check_url_never_leaves_the_server() -> None:
    """Neither two slashes nor a user's part lead elsewhere, where the key would go, too."""
    for path in ("//evil/x", "/\\evil", "@evil/x", "//user@evil/", "http://evil/x", "../../x"):
        url = check_url("https://host:8443/v1", path)
        assert (url.scheme, url.host, url.port) == ("https", "host", 8443)
    assert check_url("http://[::1]:80/v1", "/h") == httpx.URL("http://[::1]/h")
