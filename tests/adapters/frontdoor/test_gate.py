"""The framing gate, rule by rule, on scopes as a server builds them."""

from typing import Any

import pytest
from starlette.types import Message

from adapters.frontdoor.gate import FramingGate, find_refusal

HOST = (b"host", b"gateway.example:8080")


def scope_of(*headers: tuple[bytes, bytes], host: bool = True, **changes: Any) -> dict[str, Any]:
    """A harmless request, changed where a test wants it."""
    scope = {
        "type": "http",
        "method": "POST",
        "http_version": "1.1",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [HOST, *headers] if host else list(headers),
    }
    return scope | changes


def verdict(scope: dict[str, Any], **options: Any) -> tuple[int, str] | None:
    """Status and code of the refusal, or None."""
    refusal = find_refusal(scope, **options)
    return None if refusal is None else (refusal.status, refusal.code)


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"0")],
        [(b"content-length", b"300"), (b"content-type", b"application/json")],
        [(b"transfer-encoding", b"Chunked")],
        [(b"expect", b"100-continue"), (b"content-length", b"3")],
        [(b"content-encoding", b"identity")],
        [(b"upgrade", b"websocket")],
        [(b"cookie", b"a=b"), (b"cookie", b"c=d")],
        [(b"authorization", b"Bearer x"), (b"x-api-key", b"y")],
    ],
)
def test_gate_lets_ordinary_requests_in(headers: list[tuple[bytes, bytes]]) -> None:
    """Requests as real clients send them pass."""
    assert verdict(scope_of(*headers)) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"content-length", b"5"), (b"transfer-encoding", b"chunked")], "ambiguous_body_length"),
        ([(b"transfer-encoding", b"gzip, chunked")], "bad_transfer_encoding"),
        ([(b"transfer-encoding", b"chunked, chunked")], "bad_transfer_encoding"),
        ([(b"transfer-encoding", b"xchunked")], "bad_transfer_encoding"),
        ([(b"transfer-encoding", b"")], "bad_transfer_encoding"),
        ([(b"transfer-encoding", b"chunked")] * 2, "duplicate_header"),
        ([(b"content-length", b"5")] * 2, "duplicate_header"),
        ([(b"content-length", b"5, 5")], "bad_content_length"),
        ([(b"content-length", b"+5")], "bad_content_length"),
        ([(b"content-length", b"-5")], "bad_content_length"),
        ([(b"content-length", b"0x5")], "bad_content_length"),
        ([(b"content-length", b"")], "bad_content_length"),
        ([(b"content-length", b"5 ")], "bad_content_length"),
        ([(b"content-length", b"1" * 19)], "bad_content_length"),
        ([HOST], "duplicate_header"),
        ([(b"authorization", b"a"), (b"authorization", b"b")], "duplicate_header"),
        ([(b"x-api-key", b"a"), (b"x-api-key", b"b")], "duplicate_header"),
        ([(b"content-type", b"a"), (b"content-type", b"a")], "duplicate_header"),
        ([(b"idempotency-key", b"a"), (b"idempotency-key", b"b")], "duplicate_header"),
        ([(b"upgrade", b"h2c")], "upgrade_refused"),
        ([(b"upgrade", b"websocket, H2C")], "upgrade_refused"),
        ([(b"x-note", b"a\r\nx: y")], "bad_header_value"),
        ([(b"x-note", b"a\nb")], "bad_header_value"),
        ([(b"x-note", b"a\0b")], "bad_header_value"),
    ],
)
def test_gate_refuses_ambiguous_headers(headers: list[tuple[bytes, bytes]], expected: str) -> None:
    """Whatever two readers could take for two things is answered with 400."""
    assert verdict(scope_of(*headers)) == (400, expected)


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"a/b",
        b"a?b",
        b"a#b",
        b"user@a",
        b"a\\b",
        b"a b",
        b"a:80:80",
        b"a:port",
        b"[::1",
        b"[::1]x",
        b"a%2eb",
        b"a\xff",
    ],
)
def test_gate_refuses_hosts_that_are_no_host(host: bytes) -> None:
    """A Host that is not host or host:port of RFC 3986 is refused."""
    assert verdict(scope_of((b"host", host), host=False)) == (400, "bad_host")


@pytest.mark.parametrize(
    "host", [b"a", b"a.example.", b"a_b:1", b"127.0.0.1:8080", b"[::1]:8080", b"[fe80::1]", b"a:"]
)
def test_gate_accepts_hosts_of_every_kind(host: bytes) -> None:
    """Names, IPv4 and IPv6 literals pass, with and without a port."""
    assert verdict(scope_of((b"host", host), host=False)) is None


def test_gate_refuses_a_missing_host_in_every_version() -> None:
    """HTTP/1.0 may leave Host out, we do not accept that."""
    assert verdict(scope_of(host=False, http_version="1.0")) == (400, "bad_host")


def test_gate_refuses_chunked_in_http_1_0() -> None:
    """HTTP/1.0 has no chunked encoding; a proxy may read the body otherwise."""
    scope = scope_of((b"transfer-encoding", b"chunked"), http_version="1.0")
    assert verdict(scope) == (400, "bad_transfer_encoding")


def test_gate_refuses_compressed_bodies() -> None:
    """A compressed body is a way around the size limit."""
    expected = (415, "unsupported_content_encoding")
    assert verdict(scope_of((b"content-encoding", b"gzip"))) == expected


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PRI", "PROPFIND", "get"])
def test_gate_refuses_other_methods(method: str) -> None:
    """Methods outside the list are answered with 405."""
    assert verdict(scope_of(method=method)) == (405, "method_not_allowed")


def test_gate_refuses_other_versions() -> None:
    """The HTTP/2 preface looks like a request of version 2.0."""
    assert verdict(scope_of(http_version="2.0")) == (505, "http_version_not_supported")


def test_gate_bounds_the_number_of_fields() -> None:
    """A hundred fields pass and one more does not."""
    fields = [(b"x-%d" % number, b"v") for number in range(99)]
    assert verdict(scope_of(*fields)) is None
    assert verdict(scope_of(*fields, (b"x", b"v"))) == (431, "too_many_headers")


def test_gate_bounds_the_size_of_a_field() -> None:
    """A field of 8 KiB passes and one byte more does not."""
    name = b"x-note"
    assert verdict(scope_of((name, b"v" * (8192 - len(name))))) is None
    assert verdict(scope_of((name, b"v" * (8193 - len(name))))) == (431, "headers_too_large")


def test_gate_bounds_the_size_of_all_fields() -> None:
    """Fields that are small each may not be large together."""
    fields = [(b"x-%d" % number, b"v" * 4000) for number in range(5)]
    assert verdict(scope_of(*fields)) == (431, "headers_too_large")


def test_gate_bounds_the_target() -> None:
    """Path and query together have 8 KiB."""
    assert verdict(scope_of(query_string=b"q" * 8192)) == (414, "request_target_too_long")


@pytest.mark.parametrize(
    "raw_path",
    [b"*", b"http://a/v1/models", b"a:443", b"/a%00b", b"/%ff", b"/a%0d%0ab", b"/a%2", b"/%2e%2e/a",
     b"/a%5cb", b"/a%zz"],
)  # fmt: skip
def test_gate_refuses_targets_that_are_no_path(raw_path: bytes) -> None:
    """Absolute form, asterisk, broken or dangerous escapes are answered with 400."""
    assert verdict(scope_of(raw_path=raw_path)) == (400, "bad_request_target")


@pytest.mark.parametrize(
    "raw_path", [b"//v1/models", b"/v1//models", b"/v1/../admin", b"/v1/.", b"/v1/..%2f..%2fadmin",
                 b"/a\\b", b"/v1%2fmodels", b'/"', b"/\xc3\xa4"]
)  # fmt: skip
def test_gate_finds_nothing_at_tricky_paths(raw_path: bytes) -> None:
    """Paths that another reader would normalise lead nowhere."""
    assert verdict(scope_of(raw_path=raw_path)) == (404, "not_found")


@pytest.mark.parametrize(
    "raw_path", [b"/", b"/v1/models/", b"/v1/models/gpt-5.mini:free", b"/.well-known/x", b"/a%20b",
                 b"/%C3%A4", b"/a...b"]
)  # fmt: skip
def test_gate_accepts_plain_paths(raw_path: bytes) -> None:
    """Plain paths pass, with escapes for what needs one."""
    assert verdict(scope_of(raw_path=raw_path)) is None


def test_gate_takes_an_encoded_slash_as_data_where_told() -> None:
    """Model names with a slash come encoded from some clients."""
    scope = scope_of(raw_path=b"/v1/models/org%2Fmodel")
    assert verdict(scope) == (404, "not_found")
    assert verdict(scope, encoded_slash_below=(b"/v1/models/",)) is None
    tricky = scope_of(raw_path=b"/v1/models/..%2F..%2Fadmin%5c")
    assert verdict(tricky, encoded_slash_below=(b"/v1/models/",)) == (400, "bad_request_target")


def test_gate_judges_long_hostile_paths_in_linear_time() -> None:
    """A pattern with two ways to match would take ages for this path."""
    assert verdict(scope_of(raw_path=b"/a" * 4000 + b'"')) == (404, "not_found")


@pytest.mark.anyio
async def test_gate_answers_for_the_app_and_closes() -> None:
    """A refused request gets the error object of OpenAI's API and ends its connection."""
    sent: list[Message] = []

    async def never(*_: object) -> None:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    await FramingGate(never)(scope_of(method="TRACE"), never, send)  # type: ignore[arg-type]
    start, body = sent
    assert start["status"] == 405
    assert (b"connection", b"close") in start["headers"]
    assert (
        b'"type": "invalid_request_error", "param": null, "code": "method_not_allowed"'
        in (body["body"])
    )


@pytest.mark.anyio
async def test_gate_closes_websockets() -> None:
    """A websocket handshake is refused without asking the app."""
    sent: list[Message] = []

    async def never(*_: object) -> None:
        raise AssertionError

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await FramingGate(never)({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.anyio
async def test_gate_tells_of_each_refusal_with_the_id_that_was_sent() -> None:
    """An operator finds a refused request in the log by the id that its sender shows."""
    told: list[tuple[str, str, str]] = []
    sent: list[Message] = []

    async def pass_on(*_: object) -> None: ...

    async def send(message: Message) -> None:
        sent.append(message)

    gate = FramingGate(
        pass_on,
        on_refusal=lambda scope, refusal, id_: told.append((scope["method"], refusal.code, id_)),
    )
    await gate(scope_of(), pass_on, send)  # type: ignore[arg-type]
    await gate(scope_of(method="TRACE"), pass_on, send)  # type: ignore[arg-type]
    [(method, code, request_id)] = told
    assert (method, code) == ("TRACE", "method_not_allowed")
    assert (b"x-request-id", request_id.encode()) in sent[0]["headers"]
