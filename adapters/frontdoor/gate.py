"""The framing gate: what is not plainly one well-formed HTTP request does not reach a route.

Request smuggling, host confusion and path tricks all live on two parties reading the same bytes
differently. The gate takes away the room for that: it looks at the ASGI scope, after the server's
parser and before any routing, and refuses whatever a second reader could understand in another way.

What our own server's reader (`adapters.frontdoor.http1_reader`) already refuses by itself, and what
the gate therefore sees only from other servers: Content-Length together with Transfer-Encoding or
repeated in any way, two Transfer-Encoding fields, control characters in a value. What only the gate
stops: every odd or repeated Host, a missing one, duplicate Authorization, X-Api-Key, Content-Type
and Idempotency-Key, a coding in front of ``chunked``, any number and size of fields that fit into
the reader's limit, every method and path trick.

Not visible in a scope, so not stoppable here: obsolete line folding, bare LF line ends and chunk
extensions. Our reader refuses the first two and throws the last away; under another server, put a
strict proxy in front where that matters.

Costs about 5 microseconds for a request with 12 header fields.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.frontdoor.refusal import Refusal, refusal_id

OnRefusal = Callable[[Scope, Refusal, str], None]
"""Hears of a refused request: its scope, why, and the id that its sender was told."""

MAX_HEADER_FIELDS: Final = 100
"""Header fields of one request; more is answered with 431."""
MAX_HEADER_BYTES: Final = 16 * 1024
"""Bytes of all names and values together; more is answered with 431."""
MAX_FIELD_BYTES: Final = 8 * 1024
"""Bytes of one name and its value; more is answered with 431."""
MAX_TARGET_BYTES: Final = 8 * 1024
"""Bytes of path and query string together; more is answered with 414."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
_VERSIONS: Final = frozenset({"1.0", "1.1", "2"})
_ONCE: Final = {
    name: Refusal(
        400,
        "duplicate_header",
        message=f"The {name.decode().title()} header was sent more than once. Send it once.",
    )
    for name in (
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
    )
}

# RFC 3986, section 3.2: IP literal, or registered name and IPv4 address; then a port. Percent
# signs are left out of the name on purpose: nobody's real host needs one.
_HOST: Final = re.compile(
    rb"(?:\[(?:[0-9A-Fa-f:.]{2,45}|v[0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+)\]"
    rb"|[A-Za-z0-9._~!$&'()*+,;=-]{1,255})(?::[0-9]{0,5})?"
)
# A slash starts each segment and no segment contains one, so there is one way only to match and
# the time stays linear. An empty segment ("//") does not match.
_PLAIN_PATH: Final = re.compile(rb"(?:/[A-Za-z0-9._~!$&'()*+,;=:@-]+)*/?")
_DOT_SEGMENT: Final = re.compile(rb"/\.\.?(?:/|$)")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})|%(?:2[eE]|5[cC]|[01][0-9A-Fa-f]|7[fF])")
_ENCODED_SLASH: Final = re.compile(rb"%2[fF]")
_ESCAPE: Final = re.compile(rb"%[0-9A-Fa-f]{2}")

_METHOD: Final = Refusal(
    405,
    "method_not_allowed",
    message="This method is not served here.",
    headers=[(b"allow", b"GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH")],
)
_VERSION: Final = Refusal(
    505,
    "http_version_not_supported",
    message="Only HTTP/1.0 and HTTP/1.1 are spoken here.",
)
_TARGET: Final = Refusal(
    400,
    "bad_request_target",
    message="The request target must be a plain path that starts with '/'.",
)
_TARGET_LONG: Final = Refusal(
    414,
    "request_target_too_long",
    message=f"Path and query string may have {MAX_TARGET_BYTES} bytes together.",
)
_PATH: Final = Refusal(404, "not_found", message="There is nothing at this path.")
_FIELDS: Final = Refusal(
    431,
    "too_many_headers",
    message=f"A request may have {MAX_HEADER_FIELDS} header fields.",
)
_HEADERS_LARGE: Final = Refusal(
    431,
    "headers_too_large",
    message=(
        f"Header fields may have {MAX_HEADER_BYTES} bytes together "
        f"and {MAX_FIELD_BYTES} bytes each."
    ),
)
_CONTROL: Final = Refusal(
    400,
    "bad_header_value",
    message="A header value contains a line break or a NUL character.",
)
_HOST_REFUSED: Final = Refusal(
    400,
    "bad_host",
    message="Send exactly one Host header, in the form host or host:port.",
)
_BOTH_LENGTHS: Final = Refusal(
    400,
    "ambiguous_body_length",
    message="Content-Length and Transfer-Encoding were sent together. Send one of them.",
)
_CODING: Final = Refusal(
    400,
    "bad_transfer_encoding",
    message="The only Transfer-Encoding understood is 'chunked', once, with HTTP/1.1.",
)
_LENGTH: Final = Refusal(
    400, "bad_content_length", message="Content-Length must be one decimal number."
)
_COMPRESSED: Final = Refusal(
    415,
    "unsupported_content_encoding",
    message="Compressed request bodies are not accepted. Send the body as it is.",
    headers=[(b"accept-encoding", b"identity")],
)
_H2C: Final = Refusal(
    400,
    "upgrade_refused",
    message="An upgrade to HTTP/2 without TLS is not offered here.",
)

# 10**18 bytes; a longer number cannot be a real body and Python refuses to read very long ones.
_MAX_LENGTH_DIGITS: Final = 18


class FramingGate:
    """ASGI middleware that refuses ambiguous or hostile requests before they are routed.

    It answers a refused request by itself and closes the connection; the app never hears of it.
    Websocket handshakes are refused too, because no route of ours speaks it.
    """

    __slots__ = ("_app", "_on_refusal", "_slash_prefixes")

    def __init__(
        self,
        app: ASGIApp,
        *,
        encoded_slash_below: tuple[bytes, ...] = (),
        on_refusal: OnRefusal | None = None,
    ) -> None:
        """Put the gate in front of an app.

        Args:
            app: what comes behind the gate.
            encoded_slash_below: raw path prefixes under which ``%2F`` is data and not a trick, for
                routes whose last part is a model name such as ``org/model``.
            on_refusal: hears of every request that is refused here; it must not raise.
        """
        self._app = app
        self._on_refusal = on_refusal
        self._slash_prefixes = encoded_slash_below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request or hand it on unchanged."""
        kind = scope["type"]
        if kind == "http":
            refusal = find_refusal(scope, encoded_slash_below=self._slash_prefixes)
            if refusal is not None:
                await self._refuse(refusal, scope, send)
                return
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    async def _refuse(self, refusal: Refusal, scope: Scope, send: Send) -> None:
        request_id = refusal_id()
        if self._on_refusal is not None:
            # Before the answer: a sender of such bytes may not wait for it.
            self._on_refusal(scope, refusal, request_id)
        await refusal.answer(send, request_id=request_id)


def find_refusal(  # noqa: PLR0911 - one return per rule
    scope: Scope, *, encoded_slash_below: tuple[bytes, ...] = ()
) -> Refusal | None:
    """Say why an HTTP request must not come in, or None when it may.

    Args:
        scope: ASGI scope of type ``http``; header names in lower case, as ASGI demands.
        encoded_slash_below: see `FramingGate`.
    """
    if scope["method"] not in _METHODS:
        return _METHOD
    if scope["http_version"] not in _VERSIONS:
        return _VERSION
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode()
    if len(raw_path) + len(scope["query_string"]) > MAX_TARGET_BYTES:
        return _TARGET_LONG
    refusal = _check_path(raw_path, encoded_slash_below)
    if refusal is not None:
        return refusal
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if len(headers) > MAX_HEADER_FIELDS:
        return _FIELDS
    size = 0
    watched: dict[bytes, bytes] = {}
    for name, value in headers:
        size += len(name) + len(value)
        if name in _ONCE:
            if name in watched:
                return _ONCE[name]
            watched[name] = value
    return _check_values(headers, size=size) or _check_watched(watched, scope["http_version"])


@lru_cache(maxsize=256)
def _check_path(raw_path: bytes, encoded_slash_below: tuple[bytes, ...]) -> Refusal | None:
    """Refuse everything but a plain path of non-empty segments.

    Remembered, because a gateway serves the same few paths all day; bounded, because a scanner
    does not. At most 256 paths of 8 KiB are kept.
    """
    if raw_path[:1] != b"/":
        return _TARGET
    path = raw_path
    if b"%" in raw_path:
        if _BAD_ESCAPE.search(raw_path) or not _is_utf8(raw_path):
            return _TARGET
        if _ENCODED_SLASH.search(raw_path) and not raw_path.startswith(encoded_slash_below):
            return _PATH
        path = _ESCAPE.sub(b"_", raw_path)
    if _PLAIN_PATH.fullmatch(path) is None or _DOT_SEGMENT.search(path):
        return _PATH
    return None


def _is_utf8(raw_path: bytes) -> bool:
    try:
        unquote_to_bytes(raw_path).decode()
    except UnicodeDecodeError:
        return False
    return True


def _check_values(headers: list[tuple[bytes, bytes]], *, size: int) -> Refusal | None:
    """Bound the size of the fields and refuse characters that split a message."""
    # No field can be too large when all of them together are not.
    if size > MAX_FIELD_BYTES and (
        size > MAX_HEADER_BYTES
        or any(len(name) + len(value) > MAX_FIELD_BYTES for name, value in headers)
    ):
        return _HEADERS_LARGE
    # Joined in C and then searched three times; asking each value by itself costs three times more.
    values = b"".join([value for _, value in headers])
    if b"\r" in values or b"\n" in values or b"\0" in values:
        return _CONTROL
    return None


def _check_watched(  # noqa: PLR0911 - one return per rule
    watched: dict[bytes, bytes], http_version: str
) -> Refusal | None:
    """Judge the fields that decide where a message ends and where it goes."""
    host = watched.get(b"host")
    if host is None or _HOST.fullmatch(host) is None:
        return _HOST_REFUSED
    length = watched.get(b"content-length")
    coding = watched.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            return _BOTH_LENGTHS
        if coding.lower() != b"chunked" or http_version == "1.0":
            return _CODING
    elif length is not None and (not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS):
        return _LENGTH
    content = watched.get(b"content-encoding")
    if content is not None and content.lower() != b"identity":
        return _COMPRESSED
    upgrade = watched.get(b"upgrade")
    if upgrade is not None and b"h2c" in upgrade.lower():
        return _H2C
    return None
