"""Rules S23 to S34: what a caller, an upstream and the environment cannot do to our calls."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from raw_upstream import Peer, Upstream, be_well
from security_lab import HELLO, Bench, fields_of, on_bench

from adapters.providers.outgoing import check_base_url
from adapters.transports import address_filter
from adapters.transports.address_filter import RefusedAddressError, is_refused, permitted
from adapters.transports.aiohttp import AiohttpTransport
from adapters.transports.http1 import Http1Transport
from adapters.transports.httpx_pool import HttpxPoolTransport
from adapters.transports.tls import shared_tls_context
from engine import ConfigurationError, GatewayConfig, ProviderConfig, ProviderError, Router
from engine.errors import ErrorClass
from engine.factory import ProviderFactory

ROOT = Path(__file__).parents[2]

WITH_A_KEY = {"api_key_env": "LAB_KEY"}

# ── S23: nothing in a request says where or how we call ──────────────────────────

_WORDS = """
api base|api key|api version|api type|base url|endpoint|url|host|hostname|port|path|scheme
proxy|proxies|http proxy|https proxy|all proxy|no proxy|headers|extra headers|default headers
extra query|query|extra body|organization|project|region|region name|deployment id|azure endpoint
aws access key id|aws secret access key|aws session token|aws region name|vertex project
vertex location|vertex credentials|authorization|auth|token|bearer token|credentials|cookie|cookies
user agent|webhook|webhook url|callback|callback url|callbacks|success callback|failure callback
redirect|redirect uri|follow redirects|verify|verify ssl|ssl verify|cert|client|custom llm provider
provider|providers|type|options|transport|api key env|fallbacks|context window fallbacks|num retries
max retries|retries|timeout|timeouts|deployment|model list|router|config|mock response|metadata url
""".replace("\n", "|")


def _spellings(words: str) -> set[str]:
    parts = words.split()
    camel = parts[0] + "".join(part.title() for part in parts[1:])
    return {"_".join(parts), "-".join(parts), camel, "_".join(parts).upper()}


NAMES = sorted({name for words in _WORDS.split("|") if words for name in _spellings(words)})


def spread(name: str, value: Any) -> list[dict[str, Any]]:
    """Bodies that say `name` at the top and at every depth where clients and servers look."""
    deep: Any = {name: value}
    for part in ("litellm_params", "options", "config", "provider", "params"):
        deep = {part: deep}
    message = {"role": "user", "content": "Hello", name: value, "metadata": {name: value}}
    nested = {
        "messages": [
            message,
            {"role": "user", "content": [{"type": "text", "text": "x", name: value}]},
        ],
        "metadata": {name: value, "nested": [deep]},
        "extra_body": {name: value},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {name: value}}}],
        **deep,
    }
    return [{**HELLO, name: value}, {**HELLO, **nested}]


def test_s23_the_corpus_is_large() -> None:
    """At least 200 names by which other gateways can be, or could be, overridden."""
    assert len(NAMES) >= 200


async def test_s23_no_field_of_a_body_changes_where_or_how_we_call(provider_key: str) -> None:
    """Every name at every depth: the head upstream stays the same, and the body as it came.

    Fields we do not know are passed on, for they belong to the operator's provider. That
    is safe because the body is all that a caller's body can become: method, path, host and
    headers are made from the configuration alone before the body is looked at.
    """
    bodies = 0

    async def use(bench: Bench) -> None:
        nonlocal bodies
        async with bench.client() as client:
            for name in NAMES:
                for body in spread(name, bench.trap_url):
                    bodies += 1
                    raw = json.dumps(body).encode()
                    answer = await client.post("/v1/chat/completions", content=raw)
                    assert answer.status_code == 200, name
                    assert bench.bodies[-1] == raw
        heads = {changeable_out(head) for head in bench.heads}
        assert len(heads) == 1
        start, fields = heads.pop()
        assert start == "POST /v1/chat/completions HTTP/1.1"
        assert dict(fields)["host"] == f"127.0.0.1:{bench.upstream.port}"
        assert dict(fields)["authorization"] == f"Bearer {provider_key}"

    await on_bench(use, provider=WITH_A_KEY)
    assert bodies == 2 * len(NAMES)


def changeable_out(head: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A head without what must differ: the body's length and the request's id."""
    fields = fields_of(head)
    assert fields.pop("content-length").isdecimal()
    assert fields.pop("x-request-id")
    return head.split("\r\n", maxsplit=1)[0], tuple(sorted(fields.items()))


async def test_s23_no_header_and_no_query_changes_where_or_how_we_call(provider_key: str) -> None:
    """The same names as header fields and in the query."""
    names = sorted({name.lower().replace("_", "-") for name in NAMES})
    ours = {"host", "cookie", "authorization", "user-agent", "timeout"}

    async def use(bench: Bench) -> None:
        async with bench.client() as client:
            for name in names:
                values = {f"x-{name}": bench.trap_url, f"x-gateway-{name}": bench.trap_url}
                if name not in ours:
                    values[name] = bench.trap_url
                answer = await client.post(
                    "/v1/chat/completions", json=HELLO, headers=values, params=values
                )
                assert answer.status_code == 200, name
        assert len({changeable_out(head) for head in bench.heads}) == 1

    await on_bench(use, provider=WITH_A_KEY)


async def test_s23_the_library_is_as_deaf(provider_key: str) -> None:
    """`Router.complete` with all names at once sends what it sends without them."""

    async def use(bench: Bench) -> None:
        every = dict.fromkeys(NAMES, bench.trap_url)
        await bench.app.engine.complete(HELLO)
        await bench.app.engine.complete({**HELLO, **every})
        assert len({changeable_out(head) for head in bench.heads}) == 1
        assert json.loads(bench.bodies[-1]) == {**HELLO, **every}

    await on_bench(use, provider=WITH_A_KEY)


# ── S24: redirects ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("streamed", [False, True])
async def test_s24_no_redirect_is_followed(status: int, streamed: bool) -> None:
    """Not to another server, and not to another path of the same one."""
    targets: list[str] = []

    async def redirect(peer: Peer) -> None:
        while await peer.read_request():
            head = f'location: {targets[0]}\r\nrefresh: 0; url={targets[0]}\r\nalt-svc: h2=":1"\r\n'
            await peer.answer(b"{}", status=b"%d Elsewhere" % status, head=head.encode())

    async def use(bench: Bench) -> None:
        for target in (bench.trap_url, "http://169.254.169.254/latest/meta-data/", "/v1/other"):
            targets[:] = [target]
            answer = await bench.ask({**HELLO, "stream": streamed})
            assert answer.status_code == 502
            assert "location" not in answer.headers
            assert target not in answer.text
        assert {head.split("\r\n")[0] for head in bench.heads} == {
            "POST /v1/chat/completions HTTP/1.1"
        }
        assert bench.upstream.requests == 3

    await on_bench(use, script=redirect, provider={"ejection": {"consecutive_failures": 0}})


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://h/v1", "gopher://h/", "unix:/run/x", "h:80/v1"]
)
def test_s24_only_http_and_https_can_be_configured(url: str) -> None:
    """Other schemes are refused when the configuration is read."""
    with pytest.raises(ValueError, match="http"):
        check_base_url(url)


# ── S25: addresses that no name may lead to ──────────────────────────────────────

METADATA = [
    "169.254.169.254", "169.254.0.1", "169.254.170.2", "fe80::1", "febf::1", "fd00:ec2::254",
    "fd00:ec2::23", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16",
    "::ffff:169.254.169.254", "::169.254.169.254", "::ffff:0:169.254.169.254",
    "64:ff9b::169.254.169.254", "64:ff9b:1::169.254.169.254", "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
]  # fmt: skip
ALLOWED = [
    "127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "100.64.0.1",
    "fd12:3456::1", "8.8.8.8", "2606:4700::1", "::ffff:10.0.0.1", "169.253.255.255", "169.255.0.0",
]  # fmt: skip
HIDDEN_SPELLINGS = [
    "2852039166",
    "0xa9fea9fe",
    "0251.0376.0251.0376",
    "169.254.43518",
    "0xa9.254.169.254",
]


@pytest.mark.parametrize("address", METADATA)
def test_s25_a_name_cannot_lead_to_a_metadata_address(address: str) -> None:
    """In whatever form the address is wrapped."""
    with pytest.raises(RefusedAddressError) as caught:
        permitted("provider.example", [address], str)
    assert address not in str(caught.value)
    assert permitted("provider.example", [address, "10.0.0.1"], str) == ["10.0.0.1"]


@pytest.mark.parametrize("address", ALLOWED)
def test_s25_private_addresses_are_where_models_are_served(address: str) -> None:
    """Loopback and private networks stay allowed: local servers are a main use."""
    assert permitted("provider.example", [address], str) == [address]


@pytest.mark.parametrize("address", METADATA)
def test_s25_an_address_that_is_written_out_is_the_operators_will(address: str) -> None:
    """A `base_url` of that very address is no trick of anybody's."""
    assert not is_refused(address, address)


@pytest.mark.parametrize("spelling", HIDDEN_SPELLINGS)
def test_s25_no_hidden_spelling_counts_as_written_out(spelling: str) -> None:
    """Decimal, octal and hexadecimal forms are judged by where they lead."""
    assert is_refused(spelling, "169.254.169.254")


BEHIND = "127.0.0.66"
"""Stands in for a metadata address, so that a connection to it would be seen."""


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What host names resolve to, by whichever transport they are looked up."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **named: Any) -> Any:
        text = host.decode() if isinstance(host, bytes) else host
        if text in known:
            return [row for each in known[text] for row in real(each, *arguments, **named)]
        return real(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    refused = (*address_filter._REFUSED, ipaddress.ip_network(BEHIND))
    monkeypatch.setattr(address_filter, "_REFUSED", refused)
    return known


TRANSPORTS: dict[str, tuple[Callable[[], httpx.AsyncBaseTransport], Any]] = {
    "http1": (Http1Transport, ("asyncio", {"use_uvloop": False})),
    "aiohttp": (AiohttpTransport, ("asyncio", {"use_uvloop": False})),
    "httpx_pool-asyncio": (HttpxPoolTransport, ("asyncio", {"use_uvloop": False})),
    "httpx_pool-trio": (HttpxPoolTransport, ("trio", {})),
}


@pytest.mark.parametrize("which", TRANSPORTS)
def test_s25_every_transport_asks_before_it_speaks(which: str, names: dict[str, list[str]]) -> None:
    """A refused address gets not a byte, and the failure is that of a failed connect."""
    make, (backend, options) = TRANSPORTS[which]
    names["turned.example"] = [BEHIND]

    async def main() -> None:
        received = 0

        async def note(stream: anyio.abc.SocketStream) -> None:
            nonlocal received
            async with stream:
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                    received += len(await stream.receive())

        transport = make()
        listener = await anyio.create_tcp_listener(local_host=BEHIND)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, note)
            for scheme in ("http", "https"):
                request = httpx.Request(
                    "POST", f"{scheme}://turned.example:{port}/v1", content=b"x"
                )
                with pytest.raises(httpx.ConnectError) as caught:
                    await transport.handle_async_request(request)
                assert "link-local" in str(caught.value)
                assert BEHIND not in str(caught.value)
            # Written out, it is the operator's own address, and is spoken to.
            with pytest.raises(httpx.TransportError):
                await transport.handle_async_request(
                    httpx.Request("GET", f"http://{BEHIND}:{port}/")
                )
            await transport.aclose()
            group.cancel_scope.cancel()
        assert received > 0
        assert received < 200  # one GET, and nothing of the calls by name

    anyio.run(main, backend=backend, backend_options=options)


async def test_s25_a_provider_whose_name_turns_is_marked(
    names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DNS answer that turns into a metadata address is a failed connect of that provider."""
    monkeypatch.setattr("adapters.transports.http1_connecting.NAMES_KEPT_SECONDS", 0.0)

    async def look_up(host: str, port: int) -> Any:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)

    monkeypatch.setattr("adapters.transports.http1_connecting._ask_the_system", look_up)
    names["turning.example"] = ["127.0.0.1"]

    async def close_after(peer: Peer) -> None:
        await peer.read_request()
        await peer.answer_well(b"connection: close\r\n")

    async def use(bench: Bench) -> None:
        assert (await bench.ask()).status_code == 200
        for metadata in ("169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254"):
            names["turning.example"] = [metadata]
            with pytest.raises(ProviderError) as caught:
                await bench.app.engine.complete(HELLO)
            assert caught.value.error_class is ErrorClass.CONNECT
            assert "link-local or metadata address" in str(caught.value)
            assert metadata not in str(caught.value)
        actor = bench.app.engine.status().actors[0]
        assert actor.failed == {"connect": 3}
        assert actor.health.state == "ejected"
        assert bench.upstream.requests == 1

    ejection = {"ejection": {"consecutive_failures": 3}}
    await on_bench(use, script=close_after, host="turning.example", provider=ejection)


def test_s25_connections_are_made_in_one_place() -> None:
    """Only the transports connect to anybody, so no route can go around their filter."""
    words = (
        "create_connection",
        "connect_tcp",
        "open_connection",
        "AsyncClient(",
        "httpx.Client(",
        "urlopen",
        "ClientSession(",
        "sock_connect",
        "AsyncHTTPTransport(",
        "socket.socket(",
    )
    found = {
        path.relative_to(ROOT / "adapters").as_posix()
        for path in [*(ROOT / "adapters").rglob("*.py"), *(ROOT / "engine").rglob("*.py")]
        for word in words
        if word in path.read_text(encoding="utf-8")
    }
    elsewhere = {name for name in found if not name.startswith("transports/")}
    # The command line asks the operator's own gateway, and the server listens.
    assert elsewhere <= {
        "cli/admin_client.py", "cli/ask.py", "cli/demo.py", "frontdoor/listening_socket.py",
    }  # fmt: skip


# ── S26, S27: nothing ambient ────────────────────────────────────────────────────


async def test_s26_proxies_and_netrc_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A proxy that stands in the environment sees nothing, and .netrc lends no password."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password from-netrc\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))

    async def use(bench: Bench) -> None:
        for name in (
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "all_proxy",
        ):
            monkeypatch.setenv(name, f"http://127.0.0.1:{bench.trap.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        for streamed in (False, True):
            assert (await bench.ask({**HELLO, "stream": streamed})).status_code == 200
        for head in bench.heads:
            assert head.startswith("POST /v1/chat/completions HTTP/1.1")
            assert "authorization" not in fields_of(head)

    await on_bench(use)


async def test_s27_no_cookie_is_kept() -> None:
    """Set under a host name, where a cookie jar would keep it: the next request has none."""

    async def set_cookies(peer: Peer) -> None:
        cookies = (
            b"set-cookie: session=canary; Path=/\r\nset-cookie: b=canary; Domain=localhost\r\n"
        )
        while await peer.read_request():
            await peer.answer_well(cookies)

    async def use(bench: Bench) -> None:
        for streamed in (False, True, False):
            answer = await bench.ask({**HELLO, "stream": streamed})
            assert answer.status_code == 200
            assert "canary" not in str(answer.headers)
        assert len(bench.heads) == 3
        assert "cookie" not in "".join(bench.heads).lower()

    await on_bench(use, script=set_cookies, host="localhost")


# ── S28, S29: which headers pass ─────────────────────────────────────────────────

SENT = {
    "host", "content-type", "accept", "accept-encoding", "user-agent", "content-length",
    "x-request-id", "authorization",
}  # fmt: skip
CALLERS = [
    "authorization", "x-api-key", "cookie", "forwarded", "x-forwarded-for", "x-forwarded-host",
    "x-real-ip", "via", "keep-alive", "te", "trailer", "proxy-authorization", "proxy-connection",
    "proxy-authenticate", "openai-organization", "openai-project", "anthropic-version", "api-key",
    "x-goog-api-key", "user-agent", "accept", "accept-language", "accept-encoding", "referer",
    "origin", "from", "baggage", "tracestate", "x-custom", "sec-fetch-site", "idempotency-key-2",
]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
async def test_s28_no_header_of_a_caller_goes_upstream(provider_key: str, streamed: bool) -> None:
    """A canary in each, and `Connection` that names others: none arrives."""
    canary = "canary-of-the-caller"

    async def use(bench: Bench) -> None:
        lines = [b"%b: %b" % (name.encode(), canary.encode()) for name in CALLERS]
        body = json.dumps({**HELLO, "stream": streamed}).encode()
        head = [
            b"POST /v1/chat/completions HTTP/1.1", b"host: gateway",
            b"connection: close, authorization, x-request-id",
            b"content-type: application/json", b"content-length: %d" % len(body), *lines,
        ]  # fmt: skip
        answer = await bench.raw(b"\r\n".join(head) + b"\r\n\r\n" + body)
        assert answer.startswith(b"HTTP/1.1 200")
        (sent,) = bench.heads
        assert canary not in sent
        # With a stream we ask for the end of the connection ourselves.
        assert fields_of(sent).get("connection", "close") == "close"
        assert set(fields_of(sent)) - {"connection"} == SENT
        assert fields_of(sent)["authorization"] == f"Bearer {provider_key}"

    await on_bench(use, provider=WITH_A_KEY)


ANSWERED = {
    "content-type", "content-length", "transfer-encoding", "cache-control", "vary", "date",
    "x-request-id", "x-gateway-provider", "x-gateway-attempts", "x-gateway-overhead-ms",
    "x-accel-buffering", "connection",
}  # fmt: skip
UPSTREAMS = [
    "set-cookie", "server", "via", "x-powered-by", "openai-organization", "openai-processing-ms",
    "openai-version", "x-ratelimit-remaining-tokens", "cf-ray", "x-envoy-upstream-service-time",
    "strict-transport-security", "alt-svc", "www-authenticate", "location", "content-location",
    "access-control-allow-origin", "x-request-id", "x-custom", "link", "etag", "set-cookie2",
]  # fmt: skip


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad", b"401 No", b"500 Broken"])
async def test_s29_no_header_of_an_upstream_goes_to_a_caller(status: bytes, streamed: bool) -> None:
    """A canary in each: none arrives, with an answer or with an error."""
    canary = b"canary-of-the-upstream"
    lines = b"".join(b"%b: %b\r\n" % (name.encode(), canary) for name in UPSTREAMS)

    async def tell(peer: Peer) -> None:
        while await peer.read_request():
            if status.startswith(b"200"):
                await peer.answer_well(lines)
            else:
                await peer.answer(b'{"error":{"message":"no"}}', status=status, head=lines)

    async def use(bench: Bench) -> None:
        answer = await bench.ask({**HELLO, "stream": streamed})
        assert canary.decode() not in str(answer.headers.raw) + answer.text
        assert set(answer.headers) - {"x-should-retry"} <= ANSWERED

    await on_bench(use, script=tell)


# ── S30, S31, S32: what becomes a line or a URL ──────────────────────────────────

BREAKS = ["\r\nx-injected: 1", "\nx-injected: 1", "\rx-injected: 1", "\0", "\r\n\r\nGET / HTTP/1.1"]


@pytest.mark.parametrize("text", BREAKS)
async def test_s30_no_line_break_of_a_caller_reaches_a_header(text: str) -> None:
    """In the request's id, in a model's name, in every field of a body."""

    async def use(bench: Bench) -> None:
        body = {**HELLO, "model": f"m{text}", "user": f"u{text}", f"name{text}": text}
        await bench.app.engine.complete(body, request_id=f"id{text}")
        answer = await bench.ask(body)
        assert answer.status_code == 200
        assert "x-injected" not in answer.headers
        for head in bench.heads:
            assert set(fields_of(head)) == SENT - {"authorization"}
        assert json.loads(bench.bodies[-1]) == body

    await on_bench(use)


@pytest.mark.parametrize("text", [*BREAKS, "é", "\x7f"])
def test_s30_no_line_break_of_the_operator_reaches_a_header(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name, a URL or a key with one is refused before anything is sent."""
    mistakes: list[dict[str, Any]] = [
        {"name": f"a{text}b"},
        {"base_url": f"http://127.0.0.1/v1{text}"},
        {"base_url": f"http://127.0.0.1{text}/v1"},
    ]
    if "\0" not in text:  # no variable can hold it
        monkeypatch.setenv("LAB_KEY", f"sk-a{text}b")
        mistakes.append(WITH_A_KEY)
    for mistake in mistakes:
        fields = {"name": "a", "type": "vllm", "base_url": "http://127.0.0.1/v1", **mistake}
        with pytest.raises((ConfigurationError, ValueError)) as caught:
            ProviderFactory.create_provider(ProviderConfig.model_validate(fields))
        assert "sk-a" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["../../admin", "..%2f..%2fadmin", "a/b", "a?b=c", "a#b", "a%00b", "%2e%2e/x", "@evil/x"],
)
async def test_s31_no_name_of_a_caller_becomes_a_part_of_a_url(name: str) -> None:
    """A model's name stays in the body, and the path upstream is the operation's own."""

    async def use(bench: Bench) -> None:
        await bench.ask({**HELLO, "model": name})
        await bench.http("GET", f"/v1/models/{name.replace('#', '%23').replace('?', '%3f')}")
        paths = {head.split(" ")[1] for head in bench.heads}
        assert paths <= {"/v1/chat/completions", "/v1/models"}
        assert "/v1/chat/completions" in paths

    await on_bench(use)


async def test_s32_the_key_stands_in_one_header_and_in_no_url(provider_key: str) -> None:
    """Calls, streams, lists of models: `Authorization`, and nothing else of the head."""

    async def use(bench: Bench) -> None:
        for streamed in (False, True):
            await bench.ask({**HELLO, "stream": streamed})
        await bench.http("GET", "/v1/models")
        for head in bench.heads:
            assert head.count(provider_key) == 1
            assert provider_key not in head.split("\r\n")[0]
            assert fields_of(head)["authorization"] == f"Bearer {provider_key}"
        assert len(bench.heads) == 3

    await on_bench(use, provider=WITH_A_KEY)


@pytest.mark.parametrize(
    "url", ["http://user:pw@h/v1", "http://sk-1@h/v1", "http://h/v1?key=sk-1", "http://h/v1#k"]
)
def test_s32_no_key_can_be_put_into_a_base_url(url: str) -> None:
    """Users, queries and fragments are refused, by words that do not repeat them."""
    with pytest.raises(ValueError, match="must not") as caught:
        check_base_url(url)
    assert "sk-1" not in str(caught.value)
    assert "pw" not in str(caught.value)


# ── S33: TLS ─────────────────────────────────────────────────────────────────────


def test_s33_there_is_one_strict_tls_context() -> None:
    """Verifying, TLS 1.2 or newer, the same object for everybody."""
    context = shared_tls_context()
    assert context is shared_tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    makers = [
        path.name
        for path in (ROOT / "adapters").rglob("*.py")
        if any(
            word in path.read_text()
            for word in ("SSLContext(", "create_ssl_context", "verify=False")
        )
    ]
    assert makers == ["tls.py"]


async def test_s33_a_certificate_that_nobody_vouches_for_gets_no_request(provider_key: str) -> None:
    """The handshake ends it: the key is not sent, and the caller hears of no details."""
    certificate = ROOT / "tests" / "adapters" / "transports" / "localhost.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    stranger = Upstream(be_well, tls=lambda: context)

    async def use(url: str) -> None:
        config = {"name": "tls", "type": "vllm", "base_url": url, "max_retries": 0, **WITH_A_KEY}
        async with Router(GatewayConfig.model_validate({"providers": [config]})) as router:
            with pytest.raises(ProviderError) as caught:
                await router.complete(HELLO)
            assert caught.value.error_class is ErrorClass.CONNECT
            assert "TLS" in str(caught.value)

    async with anyio.create_task_group() as group:

        async def listen(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            await stranger.serve(task_status=task_status)

        await group.start(listen)
        with anyio.fail_after(10):
            await use(f"https://localhost:{stranger.port}/v1")
        group.cancel_scope.cancel()
    assert stranger.requests == 0


# ── S34: addresses inside of messages ────────────────────────────────────────────


@pytest.mark.parametrize("streamed", [False, True])
async def test_s34_no_address_in_a_message_is_fetched(streamed: bool) -> None:
    """Images, files, audio, tools: passed on byte for byte, and asked by nobody here."""

    async def use(bench: Bench) -> None:
        url = f"{bench.trap_url}/picture.png"
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "input_image", "image_url": url},
            {"type": "file", "file": {"file_url": url, "file_data": url}},
            {"type": "input_audio", "input_audio": {"url": url}},
            {"type": "text", "text": f"see {url} and ![]({url}) and <img src='{url}'>"},
        ]
        tools = [{"type": "mcp", "server_url": url}, {"type": "web_search", "url": url}]
        body = {**HELLO, "messages": [{"role": "user", "content": parts}], "tools": tools}
        raw = json.dumps({**body, "stream": streamed}).encode()
        answer = await bench.http("POST", "/v1/chat/completions", content=raw)
        assert answer.status_code == 200
        assert bench.bodies == [raw]

    await on_bench(use)
