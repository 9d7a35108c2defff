"""The commands in this process: what they write, and how they end."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from adapters.cli.main import COMMANDS, cli
from adapters.cli.serving import announcement, with_address
from adapters.configuration import config_schema, load_built_in
from engine.config import GatewayConfig

MOCKS = """\
server: {port: 0}
providers:
  - {name: first, type: mock, weight: 3}
  - {name: second, type: mock}
"""

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run the command line with these arguments."""

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, list(arguments), prog_name="inference-gateway")

    return invoke


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Write a configuration file; gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "gateway.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


class TestHelp:
    """`--help` and `--version`."""

    def test_help_lists_every_command(self, run: Run) -> None:
        """Each command has its line."""
        result = run("--help")
        assert result.exit_code == 0
        for name, words in COMMANDS.items():
            assert name in result.output
            assert words.split()[0] in result.output

    @pytest.mark.parametrize("command", list(COMMANDS))
    def test_every_command_has_help(self, command: str, run: Run) -> None:
        """Each listed command exists and explains itself."""
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"Usage: inference-gateway {command}" in result.output

    def test_version_is_the_distributions(self, run: Run) -> None:
        """One line with name and version."""
        assert run("--version").output.startswith("inference-gateway 0.")

    def test_an_unknown_command_is_a_mistake(self, run: Run) -> None:
        """Words and exit code 2."""
        result = run("srve")
        assert result.exit_code == 2
        assert "srve" in result.stderr


class TestCheck:
    """`check`."""

    def test_a_right_file_is_counted(self, run: Run, file: Callable[[str], str]) -> None:
        """One line says that it is well and what is in it."""
        result = run("check", path := file(MOCKS))
        assert result.exit_code == 0
        assert (
            result.stdout == f"{path}: ok: 2 of 2 providers enabled, every model name is served\n"
        )

    def test_every_finding_is_a_line_on_stderr(self, run: Run, file: Callable[[str], str]) -> None:
        """File, line and field first, as editors expect; nothing on stdout."""
        path = file(MOCKS.replace("weight", "wieght") + "servr: {}\n")
        result = run("check", path)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert result.stderr.splitlines() == [
            f"{path}:3: providers[0].wieght: unknown key; did you mean 'weight'?",
            f"{path}:5: servr: unknown key; did you mean 'server'?",
        ]

    def test_a_missing_file_is_a_mistake(self, run: Run, tmp_path: Path) -> None:
        """No traceback for a misspelled path."""
        result = run("check", str(tmp_path / "nothing.yaml"))
        assert result.exit_code == 2
        assert "there is no such file" in result.stderr

    def test_probe_lists_the_models_of_each_provider(
        self, run: Run, file: Callable[[str], str]
    ) -> None:
        """A table with a row for each enabled provider."""
        result = run("check", "--probe", file(MOCKS))
        assert result.exit_code == 0, result.output
        rows = [line.split() for line in result.stdout.splitlines()[1:]]
        assert [row[:3] for row in rows] == [
            ["provider", "type", "answer"],
            ["first", "mock", "ok"],
            ["second", "mock", "ok"],
        ]
        assert "mock-model" in result.stdout

    def test_probe_fails_when_one_provider_does(
        self, run: Run, file: Callable[[str], str], free_port: int
    ) -> None:
        """The others are asked all the same; the exit code says that something is wrong."""
        dead = f"  - {{name: dead, type: vllm, base_url: 'http://127.0.0.1:{free_port}/v1'}}\n"
        result = run("check", "--probe", file(MOCKS + dead))
        assert result.exit_code == 1
        answers = {line.split()[0]: line.split()[2] for line in result.stdout.splitlines()[2:]}
        assert answers == {"first": "ok", "second": "ok", "dead": "failed"}

    def test_probe_gives_up_on_a_silent_provider(
        self, run: Run, file: Callable[[str], str]
    ) -> None:
        """Each is given its own `timeout`, and no more."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
            silent = f"  - {{name: silent, type: vllm, timeout: 0.2, base_url: '{url}'}}\n"
            result = run("check", "--probe", file(MOCKS + silent))
        assert result.exit_code == 1
        assert "no answer within 0.2 s" in result.stdout


def test_schema_is_json(run: Run) -> None:
    """What is printed is the schema, for editors to read."""
    result = run("schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == config_schema()


def test_providers_lists_types_needs_and_options(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every type with its class, what it needs, and its options with their defaults."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key does not hide the need")
    result = run("providers")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "a key in OPENAI_API_KEY" in rows["openai"]
    assert "OpenAIAdapter" in rows["openai"]
    assert "base_url" in rows["vllm"]
    assert "nothing" in rows["mock"]
    assert "error_rate=0.0" in rows["mock"]
    assert "model='demo'" in rows["llamacpp"]
    assert "base_url" not in rows["llamacpp"]


class TestAskInProcess:
    """`ask --config`."""

    @pytest.mark.parametrize("how", ["--stream", "--no-stream"])
    def test_the_answer_is_all_of_stdout(
        self, how: str, run: Run, file: Callable[[str], str]
    ) -> None:
        """The text goes to stdout for pipes; who answered goes to stderr."""
        text = "server: {}\nproviders: [{name: only, type: mock, options: {text: Hello there}}]\n"
        result = run("ask", "hi", "--config", file(text), how)
        assert result.exit_code == 0, result.output
        assert result.stdout == "Hello there\n"
        assert "from only" in result.stderr

    def test_a_failure_is_one_line(self, run: Run, file: Callable[[str], str]) -> None:
        """When every attempt failed, words and exit code 1."""
        text = "providers: [{name: only, type: mock, max_retries: 0, options: {fault: http_400}}]\n"
        result = run("ask", "hi", "--config", file(text))
        assert result.exit_code == 1
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1

    def test_an_unknown_model_is_told(self, run: Run, file: Callable[[str], str]) -> None:
        """A model that the file does not have."""
        models = "models: [{name: chat, targets: [{provider: first}]}]\n"
        result = run("ask", "hi", "--config", file(MOCKS + models), "--model", "caht")
        assert result.exit_code == 1
        assert "caht" in result.stderr

    def test_the_first_model_of_the_file_is_asked(
        self, run: Run, file: Callable[[str], str]
    ) -> None:
        """Without `--model`, what the file serves first."""
        models = "models: [{name: chat, targets: [{provider: first, model: upstream}]}]\n"
        result = run("ask", "hi", "--config", file(MOCKS + models))
        assert result.exit_code == 0, result.output
        assert result.stderr.startswith("(chat, from first")

    def test_a_wrong_file_is_told_as_by_check(self, run: Run, file: Callable[[str], str]) -> None:
        """The same lines and exit code."""
        result = run("ask", "hi", "--config", file("providers: []\n"))
        assert result.exit_code == 2
        assert "gateway.yaml:1: providers: must not be an empty list" in result.stderr

    def test_no_gateway_says_how_to_start_one(self, run: Run, free_port: int) -> None:
        """A refused connection is told with what to do."""
        result = run("ask", "hi", "--url", f"http://127.0.0.1:{free_port}")
        assert result.exit_code == 1
        assert "start one with `inference-gateway serve`" in result.stderr

    @pytest.mark.parametrize("url", ["nonsense", "ftp://h", "http://user:pw@h"])
    def test_a_wrong_url_is_a_mistake(self, url: str, run: Run) -> None:
        """Words and exit code 2."""
        result = run("ask", "hi", "--url", url)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: ")


class TestServeMistakes:
    """`serve` with something that cannot work."""

    @pytest.mark.parametrize("port", ["-1", "65536", "http"])
    def test_a_port_that_does_not_exist_is_a_mistake(self, port: str, run: Run) -> None:
        """Refused before anything starts."""
        assert run("serve", "--port", port).exit_code == 2

    def test_a_wrong_file_is_a_mistake(self, run: Run, file: Callable[[str], str]) -> None:
        """A wrong configuration never starts a half-working server."""
        result = run("serve", file("providers: [{name: a, type: opnai}]\n"))
        assert result.exit_code == 2
        assert "did you mean 'openai'?" in result.stderr

    def test_a_host_of_another_machine_is_a_mistake(self, run: Run) -> None:
        """Told with what to use instead."""
        result = run("serve", "--host", "192.0.2.1", "--port", "0")
        assert result.exit_code == 2
        assert "192.0.2.1 is not an address of this machine" in result.stderr

    def test_an_endpoint_that_is_no_url_is_a_mistake(
        self, run: Run, file: Callable[[str], str]
    ) -> None:
        """Telemetry that cannot work is told at the start."""
        result = run("serve", file(MOCKS + "telemetry: {exporter: otlp, endpoint: nowhere}\n"))
        assert result.exit_code == 2
        assert "telemetry.endpoint must be an HTTP URL" in result.stderr


class TestAnnouncement:
    """What is said at the start."""

    def test_it_says_where_what_and_how(self) -> None:
        """Address, providers, models, and a command to try."""
        lines = announcement(load_built_in(), "http://127.0.0.1:8080")
        assert lines[0] == "listening on http://127.0.0.1:8080"
        assert lines[1] == "providers: mock-a (mock, weight 3), mock-b (mock, weight 1)"
        assert lines[2] == "models: every name"
        assert lines[3].startswith("try: curl http://127.0.0.1:8080/v1/chat/completions")

    def test_many_providers_are_counted(self) -> None:
        """A thousand names do not fill the screen."""
        providers = [{"name": f"p{n}", "type": "mock"} for n in range(1_000)]
        config = GatewayConfig.model_validate({"providers": providers})
        assert announcement(config, "http://h")[1].endswith("and 990 more")

    def test_a_key_is_asked_for_and_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The command to try has a place for the key."""
        monkeypatch.setenv("GATEWAY_KEYS", "secret-canary")
        data: dict[str, Any] = {
            "providers": [{"name": "a", "type": "mock"}],
            "server": {"api_keys_env": "GATEWAY_KEYS"},
        }
        line = announcement(GatewayConfig.model_validate(data), "http://h")[3]
        assert "authorization: Bearer YOUR-KEY" in line
        assert "canary" not in line

    def test_the_command_line_wins_over_the_file(self) -> None:
        """Host and port given by hand; the rest stays."""
        config = load_built_in()
        moved = with_address(config, "0.0.0.0", 0)
        assert (moved.server.host, moved.server.port) == ("0.0.0.0", 0)
        assert with_address(config, None, None) == config
