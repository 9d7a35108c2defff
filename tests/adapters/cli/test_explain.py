"""`inference-gateway explain` and `reload`: what they print, and how they end."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anyio
import pytest
from click.testing import CliRunner, Result

from adapters.cli.explain import headline, step_rows
from adapters.cli.main import cli
from engine import GatewayError, Router

CONFIG = {
    "seed": 1,
    "providers": [
        {"name": "broken", "type": "mock", "weight": 1e9, "options": {"fault": "http_500"}},
        {"name": "well", "type": "mock"},
    ],
}
HELLO = {"model": "chat", "messages": [{"role": "user", "content": "canary"}]}


def story_of(config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The story of a request that a real router served."""

    async def ask() -> dict[str, Any]:
        async with Router.from_config(config or CONFIG, wall_clock=lambda: 1.7e9) as router:
            with contextlib.suppress(GatewayError):
                await router.complete(HELLO, request_id="the/id")
            story = router.explain("the/id")
        assert story is not None
        return story

    return anyio.run(ask)


class Canned:
    """A gateway that answers what it was told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"{}"
        self.asked: list[tuple[str, str, str | None]] = []
        canned = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key = self.headers.get("authorization")
                canned.asked.append((self.command, self.path, key))
                self.send_response(canned.status)
                self.send_header("content-length", str(len(canned.body)))
                self.end_headers()
                self.wfile.write(canned.body)

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, body: Any, status: int = 200) -> None:
        self.status, self.body = status, json.dumps(body).encode()

    def fail(self, status: int, code: str, message: str) -> None:
        self.answer({"error": {"message": message, "code": code}}, status)


@pytest.fixture
def gateway() -> Iterator[Canned]:
    """A canned gateway, running."""
    canned = Canned()
    thread = threading.Thread(target=canned.server.serve_forever, args=(0.01,))
    thread.start()
    yield canned
    canned.server.shutdown()
    thread.join(10)
    canned.server.server_close()


@pytest.fixture
def run(gateway: Canned) -> Callable[..., Result]:
    """Run a command against the canned gateway."""

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, [*arguments, "--url", gateway.url])

    return invoke


Run = Callable[..., Result]


def test_the_story_names_candidates_attempts_and_outcome(gateway: Canned, run: Run) -> None:
    """Everything that an operator asks at night stands in the answer."""
    story = story_of()
    gateway.answer(story)
    result = run("explain", "the/id")
    assert result.exit_code == 0
    assert gateway.asked == [("GET", "/admin/requests/the%2Fid", None)]
    for words in ("request the/id: chat, model chat", "began 2023-11-14T22:13:", "configuration 1",
                  "seed 1", "completed after", "served by well", "tokens:", "odds",
                  "not broken: tried", "transient (not_accepted)"):  # fmt: skip
        assert words in result.stdout, words


def test_no_prompt_is_in_a_story(gateway: Canned, run: Run) -> None:
    """The story is about the way, not about what was said."""
    gateway.answer(story_of())
    assert "canary" not in run("explain", "the/id").stdout
    assert "canary" not in run("explain", "the/id", "--json").stdout


def test_a_failed_story_names_its_error() -> None:
    """Nobody served it; the class of the last failure is told."""
    config = {**CONFIG, "providers": CONFIG["providers"][:1]}  # type: ignore[index]
    lines = list(headline(story_of(config)))
    assert "failed after" in lines[-1]
    assert "error transient" in lines[-1]


def test_each_step_is_a_row() -> None:
    """Picks have their time and odds, attempts what they came to."""
    rows = [row for step in story_of()["steps"] for row in step_rows(step)]
    assert {kind for _, kind, _, _ in rows} == {"pick", "attempts"}
    assert all(at.startswith("+") for at, kind, _, _ in rows if kind == "pick")


def test_without_an_id_the_latest_are_listed(gateway: Canned, run: Run) -> None:
    """One line each, and as many as asked for."""
    gateway.answer({"object": "list", "data": [story_of()]})
    result = run("explain", "--limit", "7")
    assert gateway.asked[0][1] == "/admin/requests?limit=7"
    assert "the/id  chat   completed  well" in result.stdout


def test_json_is_the_answer_itself(gateway: Canned, run: Run) -> None:
    """For machines nothing is left out."""
    gateway.answer(story_of())
    assert json.loads(run("explain", "the/id", "--json").stdout) == json.loads(gateway.body)


def test_the_key_comes_from_the_environment(
    gateway: Canned, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is sent as a bearer token and shown nowhere."""
    monkeypatch.setenv("ADMIN_KEY", "canary-key,older-key")
    gateway.fail(403, "forbidden", "this is for the operator only")
    result = run("explain", "x", "--admin-key-env", "ADMIN_KEY")
    assert gateway.asked[0][2] == "Bearer canary-key"
    assert result.exit_code == 1
    assert "canary-key" not in result.stdout + result.stderr
    assert "for the operator only" in result.stderr


def test_a_variable_without_a_key_is_a_mistake(run: Run) -> None:
    """Exit code 2, and the variable's name."""
    result = run("reload", "--admin-key-env", "NOT_SET_ANYWHERE")
    assert result.exit_code == 2
    assert "NOT_SET_ANYWHERE" in result.stderr


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, {"error": {"message": "nothing", "code": "not_found"}}, "server.admin_port"),
        (404, {"error": {"message": "unknown x", "code": "request_not_found"}}, "unknown x"),
        (500, {"detail": "?"}, "status 500"),
        (200, ["no", "object"], "is it a gateway?"),
        (200, {"steps": 3}, "another shape"),
        (200, {"steps": [{"step": "pick"}]}, "another shape"),
    ],
)
def test_an_answer_of_another_kind_is_1(
    status: int, body: Any, words: str, gateway: Canned, run: Run
) -> None:
    """Words and no traceback, whoever answers there."""
    gateway.answer(body, status)
    result = run("explain", "x")
    assert result.exit_code == 1
    assert words in result.stderr


def test_html_is_no_gateway(gateway: Canned, run: Run) -> None:
    """A proxy's page is told as such."""
    gateway.body = b"<html>"
    result = run("reload")
    assert (result.exit_code, "is it a gateway?" in result.stderr) == (1, True)


@pytest.mark.parametrize("url", ["nonsense", "ftp://host", "http://[", "http://host:port"])
def test_a_wrong_url_is_a_mistake(url: str) -> None:
    """Exit code 2."""
    result = CliRunner().invoke(cli, ["reload", "--url", url])
    assert result.exit_code == 2, result.stderr
    assert "--url" in result.stderr


def test_nobody_there_is_1(free_port: int) -> None:
    """The port is told, and what to do."""
    result = CliRunner().invoke(cli, ["explain", "--url", f"http://127.0.0.1:{free_port}"])
    assert result.exit_code == 1
    assert str(free_port) in result.stderr


def test_reload_prints_what_has_changed(gateway: Canned, run: Run) -> None:
    """A line for each change, and what waits for a restart."""
    entry = {
        "kind": "weight_changed", "name": "first", "field": "weight", "old": 3.0, "new": 2.0,
        "needs_restart": False, "replaces_actor": False,
    }  # fmt: skip
    gateway.answer({"changes": [entry], "waiting_for_restart": ["server.port"]})
    result = run("reload")
    assert result.exit_code == 0
    assert gateway.asked[0][:2] == ("POST", "/admin/reload")
    assert "provider first: weight 3 -> 2" in result.stdout
    assert "server.port" in result.stderr


def test_a_refused_reload_is_1_with_each_finding(gateway: Canned, run: Run) -> None:
    """The findings begin with file and line, one a line."""
    gateway.fail(422, "configuration_refused", "g.yaml:3: a\ng.yaml:9: b")
    result = run("reload")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["error: g.yaml:3: a", "error: g.yaml:9: b"]
