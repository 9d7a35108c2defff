"""What a caller may say about its request in header fields."""

from __future__ import annotations

import hashlib

import pytest

from adapters.frontdoor.call_settings import CallSettings, call_settings
from engine import InvalidRequestError
from engine.priority import Priority


def settings_of(*fields: tuple[bytes, bytes]) -> CallSettings:
    """The settings of a request with these header fields."""
    return call_settings({"headers": list(fields)}, dict(fields))


def test_a_caller_that_says_nothing_gets_the_defaults() -> None:
    """No deadline of its own, critical, and no key."""
    found = settings_of((b"content-type", b"application/json"))
    assert (found.timeout, found.priority) == (None, Priority.CRITICAL)
    assert (found.idempotency_key, found.idempotency_scope) == (None, "")


@pytest.mark.parametrize("given", [b"sheddable", b"Sheddable", b"SHEDDABLE"])
def test_a_priority_is_a_word(given: bytes) -> None:
    """In any case of its letters."""
    assert settings_of((b"x-gateway-priority", given)).priority is Priority.SHEDDABLE


@pytest.mark.parametrize("given", [b"", b"urgent", b"0", b"critical plus", b"\xff", b"1" * 9000])
def test_an_unknown_priority_is_a_mistake(given: bytes) -> None:
    """It is named with what is known, and the text holds nothing of what came."""
    with pytest.raises(InvalidRequestError, match="critical, sheddable_plus, sheddable") as caught:
        settings_of((b"x-gateway-priority", given))
    assert caught.value.param == "x-gateway-priority"
    assert len(caught.value.message) < 200


def test_a_header_can_only_lower_the_priority() -> None:
    """The highest class is the operator's to give: the error says so."""
    with pytest.raises(InvalidRequestError, match="only lower") as caught:
        settings_of((b"x-gateway-priority", b"critical_plus"))
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")


@pytest.mark.parametrize("given", [b"2500", b"2500.0"])
def test_a_timeout_is_milliseconds(given: bytes) -> None:
    """The engine gets seconds."""
    assert settings_of((b"x-request-timeout-ms", given)).timeout == 2.5


@pytest.mark.parametrize("given", [b"", b"0", b"-1", b"nan", b"1e3", b"5s", b"9" * 13, b"\xb2"])
def test_a_timeout_that_is_none_is_a_mistake(given: bytes) -> None:
    """Only a positive decimal number is a time."""
    with pytest.raises(InvalidRequestError, match="milliseconds"):
        settings_of((b"x-request-timeout-ms", given))


@pytest.mark.parametrize(
    "field", [(b"authorization", b"Bearer secret-key"), (b"x-api-key", b"secret-key")]
)
def test_a_key_belongs_to_the_api_key_it_came_with(field: tuple[bytes, bytes]) -> None:
    """The scope is a digest, the same for both ways to send a key, and the key is not shown."""
    found = settings_of((b"idempotency-key", b"k-1"), field)
    assert found.idempotency_key == "k-1"
    assert found.idempotency_scope == hashlib.sha256(b"secret-key").hexdigest()
    assert "secret" not in repr(found)


def test_a_key_without_an_api_key_belongs_to_everybody() -> None:
    """Where no keys are asked for there is one scope."""
    assert settings_of((b"idempotency-key", b"k-1")).idempotency_scope == ""
