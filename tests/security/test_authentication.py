"""Rules S16 to S21: who is let in, and that the answer tells nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from typing import Any

import pytest
from security_lab import HELLO, Bench, on_bench

from adapters.frontdoor.access import Access, AccessControl, Keyring
from adapters.frontdoor.app import create_app
from adapters.frontdoor.request_errors import ForbiddenError, UnauthorizedError
from adapters.frontdoor.routes import GatewayRoute
from engine import ConfigurationError, GatewayConfig, ServerConfig

LONG = "k" * 64
KEYS = f"{LONG}-one,{LONG}-two,short"
ADMIN = "the-admin-key"
GUARDED = {"server": {"api_keys_env": "KEYS"}}
ENVIRONMENT = {"KEYS": KEYS, "ADMIN": ADMIN}


def with_key(key: bytes, field: bytes = b"authorization: Bearer ") -> bytes:
    """A request for the list of models, in raw bytes, with a key."""
    return b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n%b%b\r\n\r\n" % (
        field,
        key,
    )


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def accepts(*keys: str, presented: bytes) -> bool:
    return Keyring(list(keys)).accepts(presented)


async def test_s16_any_bytes_as_a_key_are_401_and_never_500() -> None:
    """Keys are compared as bytes: what is no text is no key, and no failure of ours."""
    rng = random.Random(16)
    noise = [
        bytes(rng.randrange(0x80, 0x100) for _ in range(rng.randrange(1, 40))) for _ in range(30)
    ]
    odd = [b"\xff", "ключ".encode(), b"\xc3\x28", b"short\xa0", b"", b"=" * 900, b"\xed\xa0\x80"]

    async def use(bench: Bench) -> None:
        assert status_of(await bench.raw(with_key(b"short"))) == 200
        for key in noise + odd:
            for field in (b"authorization: Bearer ", b"x-api-key: ", b"authorization: "):
                answer = await bench.raw(with_key(key, field))
                assert status_of(answer) == 401, (key, field)

    await on_bench(use, more=GUARDED, environment=ENVIRONMENT)


def test_s16_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of one length go to `hmac.compare_digest`, as often as there are keys."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    ring = Keyring(["first", "second", "third"])
    for presented in (b"first", b"third", b"none", None, b"\xff" * 5_000):
        compared.clear()
        ring.accepts(presented)
        assert len(compared) == 3
        assert {len(part) for pair in compared for part in pair} == {32}


def test_s17_no_part_of_a_key_stands_for_the_whole() -> None:
    """Keys with a common beginning of 64 characters are different keys."""
    one, two = f"{LONG}-one", f"{LONG}-two"
    assert accepts(one, presented=one.encode())
    assert not accepts(one, presented=two.encode())
    assert not accepts(one, presented=one[:-1].encode())
    assert not accepts(one, presented=f"{one}x".encode())


def test_s18_the_digest_of_a_key_is_no_key() -> None:
    """What is kept in memory opens nothing, in any spelling."""
    digest = hashlib.sha256(b"short").digest()
    for spelled in (digest, digest.hex().encode(), base64.b64encode(digest), repr(digest).encode()):
        assert not accepts("short", presented=spelled)


def test_s18_a_keyring_keeps_digests_only() -> None:
    """Neither the object nor its repr holds a key."""
    ring = Keyring(["a-very-secret-key"])
    held = repr([getattr(ring, name) for name in ring.__slots__])
    assert "a-very-secret-key" not in held + repr(ring)


def test_s19_no_api_key_opens_what_is_the_operators() -> None:
    """Four requirements in a row; a caller's key opens the second and nothing above it."""
    config = ServerConfig(api_keys_env="KEYS", admin_key_env="ADMIN")
    control = AccessControl(config, ENVIRONMENT)
    for key, opens in ((b"", 1), (b"short", 2), (ADMIN.encode(), 4)):
        fields = [(b"authorization", b"Bearer " + key)]
        scope: dict[str, Any] = {"headers": fields, "client": ("192.0.2.7", 1)}
        levels = [Access.OPEN, Access.KEY, Access.OPERATOR, Access.ADMIN]
        if opens == 4:
            # The operator's key is no caller's key: it asks no model.
            levels.remove(Access.KEY)
        opened = [level for level in levels if lets_in(control, level, scope)]
        assert opened == levels[: min(opens, len(levels))]


def lets_in(control: AccessControl, level: Access, scope: dict[str, Any]) -> bool:
    try:
        control.check(level, scope=scope, headers=dict(scope["headers"]))
    except (UnauthorizedError, ForbiddenError):
        return False
    return True


def test_s20_there_are_no_admin_routes_unless_asked_for() -> None:
    """The default configuration has none, and no second listener."""
    app = create_app(GatewayConfig.model_validate({"providers": [{"name": "m", "type": "mock"}]}))
    paths = [route.path for route in app.routes if isinstance(route, GatewayRoute)]
    assert paths
    assert not [path for path in paths if "admin" in path]
    assert app.admin is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "gateway.example"])
def test_s20_an_admin_listener_for_others_needs_a_key(host: str) -> None:
    """Without a key it is bound to the loopback interface and to nothing else."""
    with pytest.raises(ValueError, match="admin_key_env"):
        ServerConfig(admin_port=9_000, admin_host=host)
    assert ServerConfig(admin_port=9_000).admin_host == "127.0.0.1"


def test_s20_the_admin_key_is_another_credential() -> None:
    """One key for both would make every caller an operator, so it is refused."""
    config = ServerConfig(api_keys_env="KEYS", admin_key_env="ADMIN")
    with pytest.raises(ConfigurationError, match="admin_key_env") as caught:
        AccessControl(config, {"KEYS": "one,both", "ADMIN": "both"})
    assert "both" not in str(caught.value)


async def test_s21_all_refused_keys_get_the_same_answer() -> None:
    """Nothing, a wrong key, a key too long, no text, two keys: one body, one set of headers."""
    presented = [
        b"x: y",
        b"authorization: Bearer wrong",
        b"authorization: Bearer " + LONG.encode(),
        b"authorization: Bearer " + b"x" * 4_000,
        b"authorization: Bearer \xff\xfe",
        b"authorization: Basic c2hvcnQ=",
        b"x-api-key: " + ADMIN.encode(),
    ]

    async def use(bench: Bench) -> None:
        found = set()
        for line in presented:
            answer = await bench.raw(with_key(line, b""))
            head, _, body = answer.partition(b"\r\n\r\n")
            kept = [
                line
                for line in head.split(b"\r\n")
                if not line.startswith((b"x-request-id", b"date"))
            ]
            found.add((tuple(kept), body))
        assert len(found) == 1
        assert found.pop()[0][0].startswith(b"HTTP/1.1 401")

    await on_bench(use, more=GUARDED, environment=ENVIRONMENT)


async def test_s21_a_refused_caller_reaches_no_provider() -> None:
    """Every route that asks something refuses before it reads a body or asks anybody."""

    async def use(bench: Bench) -> None:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            answer = await bench.http("POST", path, json=HELLO)
            assert answer.status_code == 401
        assert (await bench.http("GET", "/v1/models/any")).status_code == 401
        assert not bench.upstream.peers

    await on_bench(use, more=GUARDED, environment=ENVIRONMENT)
