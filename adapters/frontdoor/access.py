"""Who may ask for what: API keys, the admin key, and the loopback interface.

Keys are compared as bytes, by their SHA-256 digests and over all of them, so that neither
the time taken nor an exception tells anything about a key.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from adapters.frontdoor.request_errors import ForbiddenError, UnauthorizedError
from engine.config import ServerConfig
from engine.errors import ConfigurationError

MAX_KEY_BYTES = 1024
"""Longest key that is looked at; anything longer is no key of ours."""

_BEARER = b"bearer "
_KEY_FIELDS = (b"authorization", b"x-api-key")
# A proxy on this machine connects from the loopback interface on behalf of strangers.
_FORWARDED_FIELDS = (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip")


_FOREIGN_FIELDS = (*_FORWARDED_FIELDS, b"origin", b"sec-fetch-site")
"""A page in a browser on this machine is a stranger, too; browsers send these with it."""

_NEEDS_KEY = "send the admin key as 'Authorization: Bearer KEY'"
_NEEDS_MACHINE = "ask from the gateway's own machine, by a loopback address and with no browser"


class Access(StrEnum):
    """What a route asks of its caller. Every route says one of these; there is no default.

    Attributes:
        OPEN: Nothing.
        KEY: An API key, if there are any.
        OPERATOR: The admin key, or a connection from this machine; for reading only.
        ADMIN: The admin key. Where there is none, a connection from this machine to the
            admin listener.
    """

    OPEN = "open"
    KEY = "key"
    OPERATOR = "operator"
    ADMIN = "admin"


class Keyring:
    """The accepted keys, kept only as digests.

    Args:
        keys: The keys themselves; not kept.
    """

    __slots__ = ("_digests",)

    def __init__(self, keys: list[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    def accepts(self, presented: bytes | None) -> bool:
        """Whether this is one of the keys; takes the same work for any answer."""
        key = b"" if presented is None or len(presented) > MAX_KEY_BYTES else presented
        digest = hashlib.sha256(key).digest()
        found = False
        for known in self._digests:
            found |= hmac.compare_digest(known, digest)
        return found

    def shares(self, other: Keyring) -> bool:
        """Whether a key is in both."""
        return not set(self._digests).isdisjoint(other._digests)

    def __repr__(self) -> str:
        return f"Keyring({len(self._digests)} keys)"


class AccessControl:
    """Decides on the matched route's own requirement, never on the path's text.

    Args:
        config: Names the environment variables that hold the keys.
        environment: The process's environment; read here and never again.
        admin_listener: Whether it guards the listener that only admin routes are on.

    Raises:
        ConfigurationError: If a named variable is missing or empty, or holds something
            that no client could send; or if one key is both a caller's and the operator's.
    """

    def __init__(
        self,
        config: ServerConfig,
        environment: Mapping[str, str],
        *,
        admin_listener: bool = False,
    ) -> None:
        self._admin_listener = admin_listener
        self._keys = _keyring(config.api_keys_env, environment, "server.api_keys_env")
        self._admin = _keyring(config.admin_key_env, environment, "server.admin_key_env")
        if self._admin is not None and self._keys is not None and self._admin.shares(self._keys):
            msg = (
                "a key of server.api_keys_env is also one of server.admin_key_env, which would "
                "make its callers operators: give the operator a key of its own"
            )
            raise ConfigurationError(msg)

    def check(
        self, access: Access, *, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]
    ) -> None:
        """Let a request pass, or not.

        Args:
            access: What the matched route asks for.
            scope: The request's ASGI scope.
            headers: Its header fields, names in lower case.

        Raises:
            UnauthorizedError: If a key is needed, and none or a wrong one came.
            ForbiddenError: If this is for the operator only.
        """
        if access is Access.KEY:
            if self._keys is not None and not self._keys.accepts(presented_key(scope, headers)):
                raise UnauthorizedError
        elif access is Access.OPERATOR and not self._is_operator(scope, headers):
            raise ForbiddenError
        elif access is Access.ADMIN and not self._is_admin(scope, headers):
            raise ForbiddenError(_NEEDS_KEY if self._admin is not None else _NEEDS_MACHINE)

    def _is_admin(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bool:
        if self._admin is not None:
            return self._admin.accepts(presented_key(scope, headers))
        return (
            self._admin_listener
            and is_loopback(scope.get("client"))
            and not any(name in headers for name in _FOREIGN_FIELDS)
            and _names_this_machine(headers.get(b"host", b""))
        )

    def _is_operator(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bool:
        if self._admin is not None and self._admin.accepts(presented_key(scope, headers)):
            return True
        return is_loopback(scope.get("client")) and not any(
            name in headers for name in _FORWARDED_FIELDS
        )


def _keyring(variable: str | None, environment: Mapping[str, str], setting: str) -> Keyring | None:
    if variable is None:
        return None
    keys = [key.strip() for key in environment.get(variable, "").split(",") if key.strip()]
    if not keys:
        msg = (
            f"{setting} names the environment variable {variable}, which is not set or empty: "
            "set it to the accepted keys, separated by commas, or remove the setting"
        )
        raise ConfigurationError(msg)
    for number, key in enumerate(keys, 1):
        if not key.isascii() or not key.isprintable() or " " in key or len(key) > MAX_KEY_BYTES:
            msg = (
                f"key {number} in the environment variable {variable} cannot be sent in a header: "
                f"keys are printable ASCII without blanks, at most {MAX_KEY_BYTES} bytes"
            )
            raise ConfigurationError(msg)
    return Keyring(keys)


def presented_key(scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that came: of `Authorization: Bearer`, else of `x-api-key`."""
    fields = scope["headers"]
    if len(fields) != len(headers):
        # Some field stands twice. Which of two keys counts must not be a matter of taste.
        names = [name for name, _ in fields]
        if any(names.count(name) > 1 for name in _KEY_FIELDS):
            return None
    bearer = headers.get(b"authorization")
    if bearer is not None and bearer[:7].lower() == _BEARER:
        return bearer[7:].strip()
    return headers.get(b"x-api-key")


def is_loopback(client: tuple[str, int] | list[Any] | None) -> bool:
    """Whether an ASGI `client` is on this machine; False when it is not known."""
    if not client:
        return False
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _names_this_machine(host: bytes) -> bool:
    """Whether a `Host` field is a loopback address or `localhost`, with or without a port.

    A name that somebody else owns can be made to lead here while a browser looks at it
    (DNS rebinding); the browser still sends that name.
    """
    text = host.decode("latin-1").lower()
    name = text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]
    return name == "localhost" or is_loopback((name, 0))
