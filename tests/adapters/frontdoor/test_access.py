"""API keys, the admin key, and the loopback interface."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.frontdoor.access import Access, AccessControl, Keyring, is_loopback
from adapters.frontdoor.request_errors import ForbiddenError, UnauthorizedError
from engine import ConfigurationError, ServerConfig

KEYS = {"KEYS": "key-one,key-two", "ADMIN": "the-admin"}


def scope_with(*headers: tuple[bytes, bytes], client: Any = ("127.0.0.1", 1)) -> dict[str, Any]:
    return {"headers": list(headers), "client": client}


def check(control: AccessControl, access: Access, scope: dict[str, Any]) -> None:
    control.check(access, scope=scope, headers=dict(scope["headers"]))


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ([(b"authorization", b"Bearer key-one")], True),
        ([(b"authorization", b"BEARER  key-two ")], True),
        ([(b"x-api-key", b"key-two")], True),
        ([(b"authorization", b"Basic x"), (b"x-api-key", b"key-one")], True),
        ([], False),
        ([(b"authorization", b"")], False),
        ([(b"authorization", b"Bearer ")], False),
        ([(b"authorization", b"key-one")], False),
        ([(b"authorization", b"Bearer key-one,key-two")], False),
        ([(b"authorization", b"Bearer k\xe9y")], False),
        ([(b"authorization", b"Bearer " + b"x" * 1_000_000)], False),
        ([(b"x-api-key", b"key-one"), (b"x-api-key", b"key-one")], False),
        ([(b"authorization", b"Bearer key-one"), (b"authorization", b"Bearer x")], False),
        ([(b"authorization", b"Bearer wrong"), (b"x-api-key", b"key-one")], False),
        ([(b"x-api-key", b"the-admin")], False),
    ],
)
def test_which_keys_are_accepted(headers: list[Any], accepted: bool) -> None:
    """Exact keys in one of two headers, each at most once; anything else is no key."""
    control = AccessControl(ServerConfig(api_keys_env="KEYS"), KEYS)
    scope = scope_with(*headers)
    if accepted:
        check(control, Access.KEY, scope)
        return
    with pytest.raises(UnauthorizedError):
        check(control, Access.KEY, scope)


@pytest.mark.parametrize(
    ("client", "headers", "accepted"),
    [
        (("127.0.0.1", 1), [], True),
        (("127.8.8.8", 1), [], True),
        (("::1", 1), [], True),
        (("::ffff:127.0.0.1", 1), [], True),
        (("127.0.0.1", 1), [(b"x-forwarded-for", b"192.0.2.1")], False),
        (("192.0.2.1", 1), [], False),
        (("localhost", 1), [], False),
        (None, [], False),
        (("192.0.2.1", 1), [(b"authorization", b"Bearer the-admin")], True),
        (("192.0.2.1", 1), [(b"x-api-key", b"the-admin")], True),
        (("192.0.2.1", 1), [(b"authorization", b"Bearer key-one")], False),
    ],
)
def test_who_is_the_operator(client: Any, headers: list[Any], accepted: bool) -> None:
    """The gateway's own machine, not through a proxy; or whoever has the admin key."""
    control = AccessControl(ServerConfig(api_keys_env="KEYS", admin_key_env="ADMIN"), KEYS)
    scope = scope_with(*headers, client=client)
    if accepted:
        check(control, Access.OPERATOR, scope)
        return
    with pytest.raises(ForbiddenError):
        check(control, Access.OPERATOR, scope)


def test_without_configured_keys_everybody_may_ask() -> None:
    """No `api_keys_env` means no keys; the operator's page still is not for strangers."""
    control = AccessControl(ServerConfig(), {})
    check(control, Access.KEY, scope_with(client=("192.0.2.1", 1)))
    with pytest.raises(ForbiddenError):
        check(control, Access.OPERATOR, scope_with(client=("192.0.2.1", 1)))


def test_a_keys_digest_is_no_key() -> None:
    """What the gateway keeps cannot be used to get in, and does not show itself."""
    keys = Keyring(["key-one"])
    assert keys.accepts(b"key-one")
    for digest in keys._digests:
        assert not keys.accepts(digest)
        assert not keys.accepts(digest.hex().encode())
    assert repr(keys) == "Keyring(1 keys)"


@pytest.mark.parametrize("value", [None, "", " , ,", "good,two words", "caf\u00e9", "x" * 2000])
def test_keys_that_cannot_work_are_refused_at_the_start(value: str | None) -> None:
    """A variable without a usable key is a mistake in the configuration that shows no key."""
    environment = {} if value is None else {"KEYS": value}
    with pytest.raises(ConfigurationError, match="KEYS") as caught:
        AccessControl(ServerConfig(api_keys_env="KEYS"), environment)
    assert "good" not in str(caught.value)
    assert "caf" not in str(caught.value)


def test_what_is_no_address_is_not_loopback() -> None:
    """A client that is not known is a stranger."""
    assert not is_loopback(None)
    assert not is_loopback(("", 0))
    assert not is_loopback(("testclient", 50000))
