"""The admin routes without a server: who may, what they do, and what they refuse."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from adapters.configuration import load_config
from adapters.configuration.reloading import ConfigurationReload
from adapters.frontdoor.access import Access
from adapters.frontdoor.admin_server import SETTINGS
from adapters.frontdoor.app import GatewayApp, create_app
from adapters.frontdoor.drain import Draining
from adapters.frontdoor.routes import GatewayRoute
from adapters.frontdoor.server import guarded
from engine import ConfigurationError, GatewayConfig, Router

KEY = "the-admin-key"
ENVIRONMENT = {"ADMIN": KEY, "KEYS": "a-caller's"}
WITH_KEY = {"authorization": f"Bearer {KEY}"}
PROVIDERS = [
    {"name": "first", "type": "mock", "weight": 3},
    {"name": "org/second one", "type": "mock"},
]
HELLO = {"model": "any", "messages": [{"role": "user", "content": "Hello"}]}


def make_app(router: Router | None = None, **server: Any) -> GatewayApp:
    config = GatewayConfig.model_validate({"providers": PROVIDERS, "server": server})
    return create_app(config, router=router, environment=ENVIRONMENT)


def guarded_admin(app: GatewayApp) -> Any:
    """The application of the admin listener, as its server runs it."""
    assert app.admin is not None
    return guarded(app.admin, settings=SETTINGS, draining=Draining())


def client_of(
    app: Any, *, client: str = "127.0.0.1", host: str = "127.0.0.1:9090", **options: Any
) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, client=(client, 5000))
    return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", **options)


def routes_of(routes: Any) -> dict[tuple[str, str], Access]:
    return {
        (method, route.path): handler.access
        for route in routes
        if isinstance(route, GatewayRoute)
        for method, handler in route.handlers.items()
        if method != "HEAD"
    }


async def ask_all(app: Any, **options: Any) -> dict[str, int]:
    """The status of each admin route for one caller."""
    found = {}
    async with client_of(app, **options) as http:
        for method, path, body in (
            ("GET", "/status", None),
            ("GET", "/admin/status", None),
            ("GET", "/admin/requests", None),
            ("POST", "/admin/providers/first/weight", {"weight": 2}),
            ("POST", "/admin/reload", None),
        ):
            answer = await http.request(method, path, json=body)
            found[f"{method} {path}"] = answer.status_code
    return found


# ── where they are, and for whom ─────────────────────────────────────────────────


def test_s20_admin_routes_are_off_by_default() -> None:
    """Without a key and without a listener of their own, there are none."""
    app = make_app()
    assert app.admin is None
    assert not [path for _, path in routes_of(app.routes) if path.startswith("/admin")]


def test_s7_every_admin_route_says_who_may_use_it() -> None:
    """With a key they are on the main listener, for nobody without it."""
    found = routes_of(make_app(admin_key_env="ADMIN").routes)
    admin = {route: access for route, access in found.items() if "/admin" in route[1]}
    assert admin == {
        ("GET", "/admin/status"): Access.ADMIN,
        ("POST", "/admin/reload"): Access.ADMIN,
        ("POST", "/admin/providers/{id:path}"): Access.ADMIN,
        ("GET", "/admin/requests"): Access.ADMIN,
        ("GET", "/admin/requests/{id:path}"): Access.ADMIN,
    }


def test_s20_with_a_listener_of_its_own_the_main_one_has_none() -> None:
    """Neither the admin routes nor `/status` are where requests come in."""
    app = make_app(admin_port=0, admin_key_env="ADMIN")
    assert not [path for _, path in routes_of(app.routes) if "admin" in path or "status" in path]
    found = routes_of(app.admin.routes)  # type: ignore[union-attr]
    assert found == {
        ("GET", "/status"): Access.OPERATOR,
        ("GET", "/admin/status"): Access.OPERATOR,
        ("GET", "/admin/requests"): Access.OPERATOR,
        ("GET", "/admin/requests/{id:path}"): Access.OPERATOR,
        ("POST", "/admin/reload"): Access.ADMIN,
        ("POST", "/admin/providers/{id:path}"): Access.ADMIN,
        ("GET", "/healthz"): Access.OPEN,
        ("GET", "/readyz"): Access.OPEN,
    }


@pytest.mark.parametrize(
    ("caller", "reads", "writes"),
    [
        ({}, 200, 403),
        ({"client": "192.0.2.1"}, 403, 403),
        ({"headers": {"authorization": "Bearer wrong"}}, 200, 403),
        ({"headers": {"authorization": "Bearer a-caller's"}}, 200, 403),
        ({"headers": WITH_KEY}, 200, 200),
        ({"headers": WITH_KEY, "client": "192.0.2.1"}, 200, 200),
        ({"headers": {"x-api-key": KEY}, "client": "192.0.2.1"}, 200, 200),
    ],
)
async def test_s19_with_a_key_writing_needs_it_everywhere(
    caller: dict[str, Any], reads: int, writes: int
) -> None:
    """On the admin listener this machine may read without it; it may change nothing."""
    app = make_app(admin_port=0, admin_key_env="ADMIN", api_keys_env="KEYS")
    async with app.engine:
        found = await ask_all(guarded_admin(app), **caller)
    reload = writes if writes == 403 else 409
    assert list(found.values()) == [reads, reads, reads, writes, reload]


@pytest.mark.parametrize(
    ("caller", "status", "admin"),
    [
        ({}, 200, 403),
        ({"headers": {"authorization": "Bearer a-caller's"}}, 200, 403),
        ({"client": "192.0.2.1"}, 403, 403),
        ({"headers": WITH_KEY, "client": "192.0.2.1"}, 200, 200),
    ],
)
async def test_on_the_main_listener_admin_is_for_the_key_only(
    caller: dict[str, Any], status: int, admin: int
) -> None:
    """Only `/status` may still be read from this machine."""
    app = make_app(admin_key_env="ADMIN", api_keys_env="KEYS")
    async with app.engine:
        found = await ask_all(app, **caller)
    assert list(found.values())[:4] == [status, admin, admin, admin]


@pytest.mark.parametrize(
    ("caller", "allowed"),
    [
        ({}, True),
        ({"host": "localhost:9090"}, True),
        ({"host": "[::1]:9090"}, True),
        ({"client": "192.0.2.1"}, False),
        ({"headers": {"x-forwarded-for": "192.0.2.1"}}, False),
        ({"headers": {"origin": "http://127.0.0.1:9090"}}, False),
        ({"headers": {"sec-fetch-site": "cross-site"}}, False),
        ({"host": "rebound.example"}, False),
        ({"host": "127.0.0.1.example"}, False),
    ],
)
async def test_s20_without_a_key_only_this_machine_may_write(
    caller: dict[str, Any], allowed: bool
) -> None:
    """Not through a proxy, not from a browser's page, not by a name that was made to lead here."""
    app = make_app(admin_port=0)
    async with app.engine:
        found = await ask_all(guarded_admin(app), **caller)
    assert found["POST /admin/providers/first/weight"] == (200 if allowed else 403)


async def test_s18_the_keys_digest_is_no_key() -> None:
    """What the process keeps of the key opens nothing."""
    app = make_app(admin_port=0, admin_key_env="ADMIN")
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    async with app.engine:
        found = await ask_all(
            guarded_admin(app), headers={"authorization": f"Bearer {digest}"}, client="192.0.2.1"
        )
    assert set(found.values()) == {403}


def test_an_admin_listener_for_strangers_needs_a_key() -> None:
    """An open port without a credential is refused when the file is read."""
    with pytest.raises(ConfigurationError, match="admin_key_env"):
        Router.from_config(
            {"providers": PROVIDERS, "server": {"admin_port": 1, "admin_host": "0.0.0.0"}}
        )
    with pytest.raises(ConfigurationError, match="differ"):
        Router.from_config({"providers": PROVIDERS, "server": {"port": 1, "admin_port": 1}})


async def test_s42_health_says_no_more_than_it_is() -> None:
    """Liveness and readiness name nobody, on either listener."""
    app = make_app(admin_port=0)
    async with app.engine:
        for each in (app, guarded_admin(app)):
            async with client_of(each, client="192.0.2.1") as http:
                assert (await http.get("/healthz")).json() == {"status": "ok"}
                assert (await http.get("/readyz")).json() == {"status": "ready"}


# ── what they do ─────────────────────────────────────────────────────────────────


async def test_weight_and_enabled_are_set_alone() -> None:
    """The answer says what has changed, and the engine serves by it."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        answer = await http.post("/admin/providers/first/weight", json={"weight": 0.5})
        assert answer.json()["changes"][0]["new"] == 0.5
        assert answer.json()["provider"]["weight"] == 0.5
        answer = await http.post("/admin/providers/first/enabled", json={"enabled": False})
        assert (answer.status_code, answer.json()["generation"]) == (200, 3)
        first = app.engine.config.providers[0]
        assert (first.weight, first.enabled) == (0.5, False)


async def test_a_name_with_a_slash_is_encoded() -> None:
    """Slash and blank of a provider's name travel as `%2F` and `%20`."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        path = "/admin/providers/org%2Fsecond%20one/weight"
        answer = await http.post(path, json={"weight": 9})
        assert answer.status_code == 200, answer.text
        assert app.engine.config.providers[1].weight == 9


async def test_eject_and_restore() -> None:
    """Out for a time, out for good, and back again; the body may be left out."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        answer = await http.post("/admin/providers/first/eject", json={"seconds": 60})
        assert 50 < answer.json()["provider"]["health"]["seconds_left"] <= 60
        answer = await http.post("/admin/providers/first/eject")
        assert answer.json()["provider"]["health"]["state"] == "ejected_by_hand"
        answer = await http.post("/admin/providers/first/restore")
        assert answer.json()["provider"]["health"]["state"] != "ejected_by_hand"


async def test_requests_can_be_listed_and_explained() -> None:
    """The newest first; one by its id, whatever the caller has put into it."""
    app = make_app(admin_port=0)
    async with app.engine:
        for number in range(3):
            await app.engine.complete(HELLO, request_id=f"a/b {number}")
        async with client_of(guarded_admin(app)) as http:
            listed = (await http.get("/admin/requests?limit=2")).json()["data"]
            assert [story["request_id"] for story in listed] == ["a/b 2", "a/b 1"]
            story = (await http.get("/admin/requests/a%2Fb%201")).json()
            assert (story["request_id"], story["outcome"]) == ("a/b 1", "completed")
            missing = await http.get("/admin/requests/none")
            assert (missing.status_code, missing.json()["error"]["code"]) == (
                404,
                "request_not_found",
            )


async def test_status_is_the_same_at_both_paths() -> None:
    """`/admin/status` is `/status`."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        assert (await http.get("/status")).json() == (await http.get("/admin/status")).json()


async def test_reload_applies_the_file_and_tells_a_refusal(tmp_path: Path) -> None:
    """200 with the changes, or 422 with each finding; the status keeps the reason."""
    file = anyio.Path(tmp_path / "gateway.yaml")
    text = "server: {admin_port: 0}\nproviders:\n  - {name: first, type: mock, weight: 3}\n"
    await file.write_text(text)
    config = load_config(str(file))
    async with Router(config) as router:
        reloading = ConfigurationReload(str(file), started_with=config, apply=router.reload)
        app = create_app(config, router=router, environment={}, reloading=reloading)
        async with client_of(guarded_admin(app)) as http:
            await file.write_text(text.replace("weight: 3", "weight: 2"))
            answer = await http.post("/admin/reload")
            assert answer.json()["generation"] == 2
            assert answer.json()["changes"][0]["field"] == "weight"
            await file.write_text(text.replace("weight", "wait"))
            answer = await http.post("/admin/reload")
            assert answer.status_code == 422
            assert "gateway.yaml:3" in answer.json()["error"]["message"]
            assert answer.json()["error"]["code"] == "configuration_refused"
            status = (await http.get("/status")).json()
            assert "gateway.yaml:3" in status["reload_error"]
            assert status["generation"] == 2


async def test_reload_without_a_file_is_a_conflict() -> None:
    """An application that made its configuration itself reloads by `router.reload`."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        answer = await http.post("/admin/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            409,
            "no_configuration_file",
        )


# ── what they refuse ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("providers/third/weight", '{"weight": 1}', 404, "provider_not_found"),
        ("providers/first/colour", '{"weight": 1}', 404, "not_found"),
        ("providers/weight", '{"weight": 1}', 404, "not_found"),
        ("providers/first/weight", "", 400, "invalid_value"),
        ("providers/first/weight", "{}", 400, "invalid_value"),
        ("providers/first/weight", "[1]", 400, "invalid_json"),
        ("providers/first/weight", "{", 400, "invalid_json"),
        ("providers/first/weight", '{"weight": -1}', 400, "invalid_value"),
        ("providers/first/weight", '{"weight": "2"}', 400, "invalid_value"),
        ("providers/first/weight", '{"weight": true}', 400, "invalid_value"),
        ("providers/first/weight", '{"weight": 1e400}', 400, "invalid_json"),
        ("providers/first/weight", '{"weight": NaN}', 400, "invalid_json"),
        ("providers/first/weight", '{"weight": 1, "wait": 1}', 400, "invalid_value"),
        ("providers/first/weight", '{"weight": 1, "model": "x"}', 409, "configuration_refused"),
        ("providers/first/enabled", '{"enabled": 0}', 400, "invalid_value"),
        ("providers/first/eject", '{"seconds": 0}', 400, "invalid_value"),
        ("providers/first/eject", '{"seconds": 1e9}', 400, "invalid_value"),
        ("providers/first/restore", '{"now": true}', 400, "invalid_value"),
        ("reload", '{"path": "/etc/passwd"}', 400, "invalid_value"),
        ("providers/first/weight", " " * 70_000, 413, "body_too_large"),
    ],
)
async def test_a_bad_change_is_refused_and_changes_nothing(
    path: str, body: str, status: int, code: str
) -> None:
    """The error has the usual shape and names the field, and never shows what was sent."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        answer = await http.post(
            f"/admin/{path}", content=body, headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "passwd" not in answer.text
        assert app.engine.status().generation == 1


async def test_an_unknown_provider_is_told_the_known_ones() -> None:
    """A slip of the fingers is seen at once."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        answer = await http.post("/admin/providers/fisrt/restore")
        assert "first, org/second one" in answer.json()["error"]["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_only_json_is_read(kind: str) -> None:
    """What a page may send without asking first is not taken."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        answer = await http.post(
            "/admin/providers/first/weight",
            content=b'{"weight": 1}',
            headers={"content-type": kind},
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            415,
            "unsupported_media_type",
        )


async def test_the_last_provider_cannot_be_switched_off() -> None:
    """A change after which nothing could be served is a conflict, and nothing changes."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        off = {"enabled": False}
        assert (await http.post("/admin/providers/first/enabled", json=off)).status_code == 200
        path = "/admin/providers/org%2Fsecond%20one/enabled"
        answer = await http.post(path, json=off)
        assert answer.status_code == 409
        assert app.engine.config.providers[1].enabled


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "lim=1", "limit="])
async def test_a_bad_query_is_400(query: str) -> None:
    """Bounds, numbers and names are checked."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        answer = await http.get(f"/admin/requests?{query}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


async def test_other_methods_are_405() -> None:
    """Reading routes change nothing, changing routes show nothing."""
    app = make_app(admin_port=0)
    async with app.engine, client_of(guarded_admin(app)) as http:
        assert (await http.get("/admin/reload")).status_code == 405
        assert (await http.post("/admin/requests")).status_code == 405
        assert (await http.get("/admin/providers/first/weight")).status_code == 405
