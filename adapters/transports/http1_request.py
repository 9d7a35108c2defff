"""The head of a request as HTTP/1.1 bytes, checked before any of it is sent."""

import functools
import re
from typing import Final, NamedTuple

import httpx

# Message framing is written here, from the body that is really sent. An expectation would make
# the upstream wait for a body that we send at once, or us for a go-ahead that no limit covers.
_FRAMING: Final = frozenset({b"content-length", b"expect", b"transfer-encoding"})
# A token, as RFC 9110 section 5.6.2 has it.
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VISIBLE: Final = re.compile(rb"[\x21-\x7e]+")
_PORTS: Final = {b"http": 80, b"https": 443}
_HIGHEST_PORT: Final = 65_535
_WITH_A_BODY: Final = frozenset({"PATCH", "POST", "PUT"})

_PLAIN: Final = 0
_SKIPPED: Final = 1
_HOST: Final = 2
_CONNECTION: Final = 3


class Origin(NamedTuple):
    """Whom a connection leads to; calls to the same origin share connections.

    Attributes:
        tls: Whether TLS is spoken on it.
        host: Name or address, without brackets.
        port: TCP port.
    """

    tls: bool
    host: str
    port: int


class Target(NamedTuple):
    """What a URL means on the wire.

    Attributes:
        origin: Whom to connect to.
        authority: What `Host` says where the caller does not.
        path: The request target: path and query, escaped as they came.
    """

    origin: Origin
    authority: bytes
    path: bytes


class Head(NamedTuple):
    """The bytes before a request's body.

    Attributes:
        data: Start line, headers, and the blank line.
        keeps_alive: False if the caller asked for the connection to be closed.
    """

    data: bytes
    keeps_alive: bool


@functools.lru_cache(maxsize=1_024)
def target_of(scheme: bytes, authority: bytes, path: bytes) -> Target:
    """Return what a URL means on the wire; parsing costs more than a look-up.

    Raises:
        httpx.UnsupportedProtocol: Neither `http` nor `https`, or no host.
        httpx.LocalProtocolError: The path would break the start line.
    """
    name, bracket, rest = authority.rpartition(b"]")
    if bracket:
        name, port = name.removeprefix(b"["), rest.removeprefix(b":")
    else:
        name, _, port = authority.partition(b":")
    if scheme not in _PORTS or not name:
        message = "only http and https URLs with a host can be called"
        raise httpx.UnsupportedProtocol(message)
    number = int(port or _PORTS[scheme])
    if not _VISIBLE.fullmatch(path) or not _VISIBLE.fullmatch(authority) or number > _HIGHEST_PORT:
        message = "the address cannot be written as HTTP"
        raise httpx.LocalProtocolError(message)
    return Target(Origin(scheme == b"https", name.decode(), number), authority, path)


def head_of(request: httpx.Request, target: Target, size: int) -> Head:
    """Write the head of a request: the headers as the caller set them, and the framing.

    Args:
        request: Method and headers.
        target: What its URL means.
        size: The bytes of its body.

    Raises:
        httpx.LocalProtocolError: A line break, NUL, or bad name; the text shows none of it.
    """
    parts = [_start_line(request.method, target.path)]
    add = parts.append
    has_host, keeps_alive = False, True
    for name, value in request.headers.raw:
        start, role = _line_start(name)
        if role != _PLAIN:
            if role == _SKIPPED:
                continue
            if role == _HOST:
                has_host = True
            else:
                keeps_alive = b"close" not in value.lower()
        add(start)
        add(value)
    if not has_host:
        parts[1:1] = (b"\r\nHost: ", target.authority)
    if size or request.method in _WITH_A_BODY:
        add(b"\r\nContent-Length: ")
        add(b"%d" % size)
    lines = len(parts) // 2  # the breaks that are ours: one before each header
    add(b"\r\n\r\n")
    data = b"".join(parts)
    if data.count(b"\n") != lines + 2 or data.count(b"\r") != lines + 2 or b"\0" in data:
        message = "a header of the request is not valid HTTP"
        raise httpx.LocalProtocolError(message)
    return Head(data, keeps_alive)


@functools.lru_cache(maxsize=1_024)
def _start_line(method: str, path: bytes) -> bytes:
    name = method.encode()
    # Nothing would end a tunnel, and nothing above asks for one.
    if not _TOKEN.fullmatch(name) or name == b"CONNECT":
        message = "the method of the request is not valid HTTP"
        raise httpx.LocalProtocolError(message)
    return b"%s %s HTTP/1.1" % (name, path)


@functools.lru_cache(maxsize=512)
def _line_start(name: bytes) -> tuple[bytes, int]:
    """Return what stands before a header's value, and what is special about the header."""
    if not _TOKEN.fullmatch(name):
        message = "a header of the request is not valid HTTP"
        raise httpx.LocalProtocolError(message)
    folded = name.lower()
    role = _SKIPPED if folded in _FRAMING else _PLAIN
    if folded == b"host":
        role = _HOST
    elif folded == b"connection":
        role = _CONNECTION
    return b"\r\n%s: " % name, role
