"""What goes into an upstream request beside its body, checked before it is sent."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from typing import Any, Final

import httpx

from engine.config import ProviderConfig, TimeoutsConfig
from engine.errors import ConfigurationError

_MAX_REQUEST_ID: Final = 128
# Tracing can add to these headers, not replace them.
_RESERVED: Final = frozenset(
    {"host", "authorization", "content-type", "content-length", "accept", "accept-encoding",
     "user-agent", "x-request-id", "connection", "transfer-encoding", "cookie"}
)  # fmt: skip
_NOT_PRINTABLE: Final = re.compile(r"[^\x21-\x7e]+")
_OCTET: Final = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# Host names and plain IPv4 addresses; what else there is is left to httpx.URL.
_BASE_URL: Final = re.compile(
    r"https?://(?:[a-z_][a-z0-9_\-]{0,62}(?:\.[a-z0-9_\-]{1,63}){0,20}"
    rf"|{_OCTET}(?:\.{_OCTET}){{3}})(?::(?P<port>\d{{1,5}}))?"
    r"(?:/[a-z0-9_.~!$&'()*+,;=:%/\-]*)?",
    re.IGNORECASE,
)
_PORTS: Final = range(1, 65_536)
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")


def read_key(config: ProviderConfig, *, default_env: str | None, required: bool) -> str | None:
    """Read a provider's key from the environment.

    Args:
        config: Names the provider, and maybe the variable.
        default_env: The variable if the configuration names none; None for no key.
        required: Whether the API is of no use without a key.

    Raises:
        ConfigurationError: If a key is needed and missing, or no header can carry it. The
            text names the variable and never holds the key.
    """
    variable = config.api_key_env or default_env
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key and (required or config.api_key_env):
        raise ConfigurationError(
            f"provider {config.name!r} of type {config.type!r} needs an API key: export "
            f"{variable}=... in the environment, or name another variable with api_key_env"
        )
    if _NOT_PRINTABLE.search(key):
        raise ConfigurationError(
            f"provider {config.name!r}: the API key in {variable} holds a blank or a character "
            "that no HTTP header can carry: set the variable to the key alone"
        )
    return key or None


def check_base_url(text: str) -> str:
    """Check a base URL and return it without the slash at its end.

    Raises:
        ValueError: If it is no plain http or https URL; the text says what is wrong and
            does not hold the URL, which may hold a password.
    """
    # httpx.URL takes 10 microseconds, a third of what creating a provider may cost.
    match = _BASE_URL.fullmatch(text)
    if match is None or int(match["port"] or 80) not in _PORTS:
        _check_slowly(text)
    return text.rstrip("/")


def _check_slowly(text: str) -> None:
    if _NOT_PRINTABLE.search(text):
        raise ValueError("must be printable ASCII without blanks")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if (
        url.scheme not in ("http", "https")
        or not url.host
        or (url.port is not None and url.port not in _PORTS)
    ):
        raise ValueError("must begin with http:// or https:// and name a host: https://host/v1")
    if "@" in text:
        raise ValueError("must not hold a user or password: put the key in the environment")
    if "?" in text or "#" in text:
        raise ValueError("must not have a query or a fragment")


@functools.cache
def user_agent() -> str:
    """How we name ourselves upstream."""
    try:
        version = importlib.metadata.version("sre-inference-gateway")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = "unknown"
    return f"sre-inference-gateway/{version}"


def transport_limits(timeouts: TimeoutsConfig) -> dict[str, Any]:
    """The request extensions that tell a transport how long each step may take."""
    # The engine keeps time by cancelling; `total` is only a second fence behind it.
    return {
        "timeout": {
            "connect": timeouts.connect,
            "read": timeouts.total,
            "write": timeouts.total,
            "pool": timeouts.connect,
        }
    }


def add_header(request: httpx.Request, name: bytes, value: str) -> None:
    """Add a header that the request does not have yet.

    Args:
        request: Where to add it.
        name: Its name in small letters.
        value: Plain ASCII.
    """
    # Setting it by httpx's public way searches and decodes all the others, five times the cost.
    request.headers._list.append((name, name, value.encode("ascii")))  # noqa: SLF001


def plain_id(request_id: str) -> str:
    """A request id as a header can carry it."""
    if request_id.isascii() and request_id.isprintable() and len(request_id) <= _MAX_REQUEST_ID:
        return request_id
    return _NOT_PRINTABLE.sub("-", request_id)[:_MAX_REQUEST_ID]


def is_trace_header(name: str, value: str) -> bool:
    """Whether a header of the tracing may be sent.

    One that is ours, or that HTTP cannot carry, is left out: tracing never fails a request.
    """
    return (
        _HEADER_NAME.fullmatch(name) is not None
        and name.lower() not in _RESERVED
        and value.isascii()
        and value.isprintable()
    )
