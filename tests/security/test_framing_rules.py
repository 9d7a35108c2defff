"""Rules S1 to S14: one reading of every request, and nothing told that nobody asked for."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from raw_upstream import EVENTS as WHOLE_STREAM
from raw_upstream import JSON_HEAD, SSE_HEAD, WHOLE, Peer, chunk
from security_lab import HELLO, Bench, on_bench

from adapters.frontdoor.access import Access
from adapters.frontdoor.app import create_app
from adapters.frontdoor.routes import GatewayRoute
from engine import GatewayConfig

ROOT = Path(__file__).parents[2]
HIDDEN = b"GET /healthz HTTP/1.1\r\nhost: gateway\r\nx-request-id: hidden\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1"
GET = b"GET /v1/models HTTP/1.1"
KEYED = {"server": {"api_keys_env": "KEYS"}}
KEYS = {"KEYS": "key"}


def request(line: bytes, *fields: bytes, body: bytes = b"", host: bytes | None = b"g") -> bytes:
    """A request in raw bytes."""
    named = [] if host is None else [b"host: " + host]
    return b"\r\n".join([line, *named, *fields, b"", b""]) + body


async def verdict(bench: Bench, data: bytes) -> int:
    """The status of the one answer; what stands behind the request must not be served."""
    answer = await bench.raw(data + HIDDEN)
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert b"hidden" not in answer
    return int(answer.split(b" ", 2)[1])


async def all_are(status: int | tuple[int, ...], *data: bytes) -> None:
    """Each of these is answered so, and closes its connection; the provider hears nothing."""
    allowed = (status,) if isinstance(status, int) else status

    async def use(bench: Bench) -> None:
        for each in data:
            assert await verdict(bench, each) in allowed, each[:300]
        assert not bench.upstream.requests

    await on_bench(use)


async def test_s1_content_length_with_transfer_encoding_is_400_and_the_end() -> None:
    """The second request hidden in the first is never answered."""
    length, coding = b"content-length: %d" % (5 + len(HIDDEN)), b"transfer-encoding: chunked"
    await all_are(
        400,
        request(POST, length, coding, body=b"0\r\n\r\n" + HIDDEN),
        request(POST, coding, length, body=b"0\r\n\r\n" + HIDDEN),
        request(POST, b"content-length: 0", coding, body=b"0\r\n\r\n"),
        request(GET, length, coding, body=b"0\r\n\r\n"),
    )


async def test_s2_transfer_encoding_is_chunked_once_or_nothing() -> None:
    """Anything else, and any of it in HTTP/1.0, is refused."""
    odd = [b"xchunked", b"gzip, chunked", b"chunked, chunked", b"chunked, identity", b"identity",
           b"\x0bchunked", b"chunked;q=1", b"chu nked", b'"chunked"', b""]  # fmt: skip
    tail = b"0\r\n\r\n"
    await all_are(
        (400, 501),
        *[request(POST, b"transfer-encoding: " + value, body=tail) for value in odd],
        request(POST, b"transfer-encoding: chunked", b"transfer-encoding: chunked", body=tail),
        request(POST, b"transfer-encoding: chunked", b"Transfer-Encoding: identity", body=tail),
        request(POST, b"transfer-encoding : chunked", body=tail),
        request(b"POST /v1/chat/completions HTTP/1.0", b"transfer-encoding: chunked", body=tail),
    )


async def test_s3_content_length_is_one_number() -> None:
    """Signs, other bases, lists and repeats are refused, the identical ones too."""
    odd = [b"+3", b"-3", b"0x3", b"3, 3", b"3,4", b"3 3", b"3.0", b"1e1", b"", b"\xb3", b"3;",
           b"9" * 30]  # fmt: skip
    await all_are(
        400,
        *[request(POST, b"content-length: " + value, body=b"abc") for value in odd],
        request(POST, b"content-length: 3", b"content-length: 4", body=b"abc"),
        request(POST, b"content-length: 3", b"content-length: 3", body=b"abc"),
        request(POST, b"content-length: 3", b"Content-Length: 3", body=b"abc"),
    )


BODY = b'{"model":"m","messages":[]}'
CHUNKS = b"1b%b\r\n" + BODY + b"\r\n0%b\r\n%b\r\n"
CHUNKED = b"transfer-encoding: chunked"

LENIENT_FRAMING: dict[str, tuple[bytes, int]] = {
    # What parsers are known to differ about, and what this server says. 200: served.
    "folded value": (request(POST, b"x: a\r\n b", b"content-length: 0"), 400),
    "folded first field": (POST + b"\r\n host: g\r\n\r\n", 400),
    "bare LF everywhere": (request(GET).replace(b"\r\n", b"\n"), 400),
    "bare LF behind a field": (request(GET, b"x: a\ny: b"), 400),
    "bare LF at the end": (request(GET)[:-2] + b"\n", 400),
    "bare CR": (request(GET, b"x: a\ry: b"), 400),
    "blank line before": (b"\r\n" + request(GET), 400),
    "two blanks in the line": (request(b"GET  /v1/models HTTP/1.1"), 400),
    "tab in the line": (request(b"GET\t/v1/models HTTP/1.1"), 400),
    "blank behind the version": (request(b"GET /v1/models HTTP/1.1 "), 400),
    "field without a colon": (request(GET, b"x"), 400),
    "field without a name": (request(GET, b": v"), 400),
    "blank before the colon": (request(GET, b"x : v"), 400),
    "blank before the name": (request(GET, b" x: v"), 400),
    "NUL in a value": (request(GET, b"x: a\0b"), 400),
    "NUL in a name": (request(GET, b"a\0b: v"), 400),
    "chunk extension": (request(POST, CHUNKED, body=CHUNKS % (b";x=y", b"", b"")), 200),
    "quoted chunk extension": (request(POST, CHUNKED, body=CHUNKS % (b';x="y"', b"", b"")), 200),
    "extension of the last chunk": (request(POST, CHUNKED, body=CHUNKS % (b"", b";x", b"")), 200),
    "trailer": (request(POST, CHUNKED, body=CHUNKS % (b"", b"", b"t: v\r\n")), 200),
    "bare LF in an extension": (request(POST, CHUNKED, body=CHUNKS % (b";x\n", b"", b"")), 400),
    "blank behind a chunk size": (request(POST, CHUNKED, body=CHUNKS % (b" ", b"", b"")), 400),
    "chunk size with a sign": (request(POST, CHUNKED, body=b"+1\r\na\r\n0\r\n\r\n"), 400),
    "chunk size with 0x": (request(POST, CHUNKED, body=b"0x1\r\na\r\n0\r\n\r\n"), 400),
    "chunk ended by LF": (request(POST, CHUNKED, body=b"1\na\n0\n\n"), 400),
    "chunk longer than said": (request(POST, CHUNKED, body=b"1\r\nab\r\n0\r\n\r\n"), 400),
    "chunk size beyond 64 bits": (request(POST, CHUNKED, body=b"1%b\r\n" % (b"0" * 16)), 400),
}  # fmt: skip
"""The table of what is let through: only what has one meaning by RFC 9112, and is thrown away."""


@pytest.mark.parametrize(("data", "status"), LENIENT_FRAMING.values(), ids=LENIENT_FRAMING.keys())
async def test_s4_what_parsers_differ_about_is_as_the_table_says(data: bytes, status: int) -> None:
    """Whoever changes the parser sees here what changes with it."""
    served = data.replace(b"\r\n", b"\r\nconnection: close\r\n", 1) if status == 200 else data

    async def use(bench: Bench) -> None:
        answer = await bench.raw(served)
        assert int(answer.split(b" ", 2)[1]) == status
        assert answer.count(b"HTTP/1.1 ") == 1

    await on_bench(use)


async def test_s5_http2_without_tls_is_refused() -> None:
    """Neither 101 nor a frame: not by upgrade, not by preface, not with a body behind it."""
    settings = b"http2-settings: AAMAAABkAAQAAP__"
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"

    async def use(bench: Bench) -> None:
        for fields in (
            (b"connection: Upgrade, HTTP2-Settings", b"upgrade: h2c", settings),
            (b"connection: upgrade", b"upgrade: H2C"),
            (b"connection: upgrade", b"upgrade: websocket, h2c"),
        ):
            answer = await bench.raw(request(GET, *fields) + preface)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.1 ") == 1
        for data in (preface, request(b"PRI * HTTP/2.0")):
            answer = await bench.raw(data)
            assert answer.startswith(b"HTTP/1.1 40")
            assert answer.endswith((b"\r\n\r\n", b"}}"))

    await on_bench(use)


async def test_s6_host_is_exactly_one_and_a_host() -> None:
    """RFC 3986's host with a port; nothing that another reader would cut elsewhere.

    There is no list of allowed hosts, because nothing is decided by it: no route, no URL in an
    answer, and no access; but for the admin listener without a key, which wants this machine's.
    """
    bad = [b"a/b", b"a?b", b"a#b", b"u@a", b"a\\b", b"a b", b"a\tb", b"", b"a:port", b"a:1:2",
           b"[::1", b"[::1]x", b"a%2fb", b"a\xe9", b"a:999999", b"http://a"]  # fmt: skip
    await all_are(
        400,
        *[request(GET, host=host) for host in bad],
        request(GET, b"host: g"),
        request(GET, b"Host: other"),
        request(GET, host=None),
        request(b"GET /v1/models HTTP/1.0", host=None),
    )


def test_s7_every_route_says_who_may_use_it() -> None:
    """The requirement belongs to the matched route; only health and the bare root are open."""
    config = GatewayConfig.model_validate({
        "providers": [{"name": "one", "type": "mock"}],
        "server": {"api_keys_env": "KEYS", "admin_key_env": "ADMIN"},
    })  # fmt: skip
    app = create_app(config, environment={"KEYS": "key", "ADMIN": "admin"})
    assert all(isinstance(route, GatewayRoute) for route in app.routes)
    handlers = {
        (method, route.path): handler.access
        for route in app.routes
        if isinstance(route, GatewayRoute)
        for method, handler in route.handlers.items()
    }
    assert all(isinstance(access, Access) for access in handlers.values())
    opened = {path for (_, path), access in handlers.items() if access is Access.OPEN}
    assert opened == {"/", "/health", "/healthz", "/readyz"}
    assert {
        m for (m, path), access in handlers.items() if (access, path) == (Access.OPEN, "/")
    } == {"HEAD"}


async def test_s7_an_unknown_route_is_404_whoever_asks() -> None:
    """Before anything is said about keys; a known one without a key is 401."""

    async def use(bench: Bench) -> None:
        for fields in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer key"}):
            answer = await bench.http("GET", "/v1/nothing", headers=fields)
            assert answer.status_code == 404
            assert "www-authenticate" not in answer.headers
        assert (await bench.http("GET", "/v1/models")).status_code == 401

    await on_bench(use, more=KEYED, environment=KEYS)


async def test_s8_paths_are_compared_as_they_were_sent() -> None:
    """Nothing is decoded, joined or cleaned up on the way to a route, so no key is passed by."""
    tricky = [b"/v1/..%2f..%2fadmin", b"/v1/%2e%2e/models", b"//v1/models", b"/v1//models",
              b"/v1/./models", b"/healthz/../v1/models", b"/healthz%2f..%2fv1%2fmodels",
              b"/v1/models%00", b"/v1%2fmodels", b"/v1/model%73", b"/V1/MODELS", b"/v1/models;a",
              b"/v1\\models", b"/v1/models%5c", b"http://g/v1/models", b"v1/models", b"*",
              b"/healthz/v1/models"]  # fmt: skip

    async def use(bench: Bench) -> None:
        for path in tricky:
            data = request(b"GET %b HTTP/1.1" % path, b"connection: close")
            answer = await bench.raw(data)
            assert int(answer.split(b" ", 2)[1]) in {400, 404}, path

    await on_bench(use, more=KEYED, environment=KEYS)


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT", b"PROPFIND", b"LINK", b"PURGE"])
async def test_s9_other_methods_are_405(method: bytes) -> None:
    """The refusal lists what is served, and nothing of the request is sent back."""

    async def use(bench: Bench) -> None:
        data = request(method + b" /v1/models HTTP/1.1", b"x-secret: canary", b"connection: close")
        answer = await bench.raw(data)
        assert answer.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nallow: GET, " in answer
        assert b"canary" not in answer

    await on_bench(use)


async def test_s9_methods_that_nobody_knows_are_refused() -> None:
    """Invented ones, and known ones in lower case."""
    await all_are(
        (400, 405, 501),
        request(b"HACK /v1/models HTTP/1.1"),
        request(b"get /v1/models HTTP/1.1"),
        request(b"GETX /v1/models HTTP/1.1"),
    )


async def test_s10_header_fields_are_bounded() -> None:
    """100 fields, 16 KiB in all, 8 KiB each: 431, and a request within them is served."""
    await all_are(
        431,
        request(GET, *[b"x-%d: v" % number for number in range(100)]),
        request(GET, *[b"x-%d: v" % number for number in range(1_000)]),
        request(GET, b"x: " + b"v" * 8_192),
        request(GET, *[b"x-%d: " % number + b"v" * 5_800 for number in range(3)]),
        request(GET, b"x: " + b"v" * 17 * 1_024),
    )

    async def use(bench: Bench) -> None:
        fields = [b"x-%d: " % number + b"v" * 100 for number in range(90)]
        data = request(b"GET /healthz HTTP/1.1", *fields, b"connection: close")
        assert (await bench.raw(data)).startswith(b"HTTP/1.1 200 ")

    await on_bench(use)


@pytest.mark.parametrize(
    "name",
    ["authorization", "x-api-key", "host", "content-type", "content-length", "transfer-encoding",
     "content-encoding", "idempotency-key"],
)  # fmt: skip
async def test_s11_fields_that_decide_stand_once(name: str) -> None:
    """Two of them are 400, equal ones too, in whatever case they are written."""
    value = {"content-length": b"3", "transfer-encoding": b"chunked"}.get(name, b"a")
    one, two = name.encode() + b": ", name.title().encode() + b": "
    host = None if name == "host" else b"g"
    await all_are(
        (400, 501) if name == "transfer-encoding" else 400,
        request(POST, one + value, two + value, host=host, body=b"abc"),
        request(POST, one + value, b"x: y", one + value + b"1", host=host, body=b"abc"),
    )


TELLING = (
    b"server: secret-server\r\nx-powered-by: secret\r\nvia: 1.1 secret\r\nset-cookie: a=secret\r\n"
    b"location: http://secret\r\nopenai-organization: secret\r\nx-envoy-upstream: secret\r\n"
    b"access-control-allow-origin: *\r\nauthorization: Bearer secret\r\ncf-ray: secret\r\n"
)


async def tell_much(peer: Peer) -> None:
    """Answer with header fields that are nobody's business: well, or with an error."""
    while asked := await peer.read_request():
        if b'"fail"' in asked:
            await peer.answer(b'{"error":{"message":"no"}}', status=b"500 Oh", head=TELLING)
        elif peer.streamed:
            head = SSE_HEAD.removesuffix(b"\r\n") + TELLING + b"\r\n"
            await peer.send(head + chunk(WHOLE_STREAM) + b"0\r\n\r\n")
        else:
            size = b"content-length: %d\r\n\r\n" % len(WHOLE)
            await peer.send(JSON_HEAD + TELLING + size + WHOLE)


OWN = {"cache-control", "content-length", "content-type", "date", "vary", "x-request-id"}
FACTS = {"x-gateway-provider", "x-gateway-attempts", "x-gateway-overhead-ms"}
SENT = {"x-secret": "canary", "origin": "https://evil.example", "cookie": "c=canary"}

ANSWERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "whole": ({}, OWN | FACTS),
    "streamed": (
        {"stream": True},
        (OWN - {"content-length"}) | FACTS | {"transfer-encoding", "x-accel-buffering"},
    ),
    "failed": ({"model": "fail"}, OWN | FACTS - {"x-gateway-overhead-ms"}),
    "mistaken": ({"messages": 5}, OWN | {"x-should-retry"}),
}


@pytest.mark.parametrize(("change", "fields"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_s12_answers_name_nothing_but_what_they_must(
    change: dict[str, Any], fields: set[str]
) -> None:
    """These header fields and no others: none of the server, the upstream, or the caller."""

    async def use(bench: Bench) -> None:
        answer = await bench.ask({**HELLO, **change}, headers=SENT)
        assert set(answer.headers) == fields
        shown = f"{answer.headers}{answer.text}"
        for word in ("secret", "canary", "hypercorn", f":{bench.upstream.port}"):
            assert word not in shown.lower()

    await on_bench(use, script=tell_much)


async def test_s12_refusals_name_nothing_either() -> None:
    """Neither those of the gate nor those of the parser."""

    async def use(bench: Bench) -> None:
        for data in (request(b"TRACE / HTTP/1.1", b"x: canary"), b"canary\r\n\r\n"):
            answer = (await bench.raw(data)).lower()
            names = set(re.findall(rb"^([a-z-]+):", answer.partition(b"\r\n\r\n")[0], re.MULTILINE))
            assert names <= {name.encode() for name in OWN | {"allow", "connection"}} | {
                b"x-should-retry"
            }
            assert b"canary" not in answer

    await on_bench(use)


async def test_s13_no_cors_no_cookies_no_caching() -> None:
    """On every kind of answer, also when a browser asks."""

    async def use(bench: Bench) -> None:
        browser = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        answers = [
            await bench.ask(headers=SENT),
            await bench.ask({**HELLO, "stream": True}, headers=SENT),
            await bench.ask({**HELLO, "model": "fail"}, headers=SENT),
            await bench.ask({"messages": 5}, headers=SENT),
            await bench.http("OPTIONS", "/v1/chat/completions", headers=browser),
            await bench.http("GET", "/nothing", headers=browser),
            await bench.http("GET", "/v1//models", headers=browser),
            await bench.http("GET", "/healthz", headers=browser),
        ]
        for answer in answers:
            assert not [name for name in answer.headers if name.startswith("access-control")]
            assert "set-cookie" not in answer.headers
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["vary"] == "authorization"

    await on_bench(use, script=tell_much)


def pinned() -> dict[str, Version]:
    """What `constraints.txt` says, by name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in found), "every line pins one version"
    return {name.lower().replace("_", "-"): Version(at) for name, at in found}


def test_s14_parsers_are_not_older_than_their_known_holes() -> None:
    """h11 before 0.16 took broken chunks (CVE-2025-43859); both parsers are pinned beyond that."""
    pins = pinned()
    for name, least in (("h11", "0.16"), ("httptools", "0.6.4"), ("hypercorn", "0.17")):
        assert Version(version(name)) >= Version(least)
        assert pins[name] >= Version(least)


def test_s14_everything_that_is_installed_with_us_is_pinned() -> None:
    """Whoever installs with `constraints.txt` gets the versions that the tests passed with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins, seen = pinned(), set[str]()
    waiting = [Requirement(text) for text in project["dependencies"]]
    while waiting:
        need = waiting.pop()
        name = need.name.lower().replace("_", "-")
        extras = need.extras or {""}
        if name in seen or not any(
            need.marker is None or need.marker.evaluate({"extra": extra}) for extra in extras
        ):
            continue
        seen.add(name)
        assert name in pins, f"{name} is not pinned"
        assert need.specifier.contains(pins[name], prereleases=True)
        waiting += [
            inner
            for inner in map(Requirement, requires(name) or ())
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras)
        ]
    assert {"h11", "hypercorn", "httptools"} <= seen
