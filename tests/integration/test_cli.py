"""The command as a process: exit codes, signals, streams, and no traceback for a mistake."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

COMMAND = [sys.executable, "-c", "from adapters.cli.main import main; main()"]
STARTED_WITHIN = 60.0
"""Seconds: generous, for a machine that does other things too."""

MOCKS = """\
telemetry: {logs: json}
providers:
  - {name: first, type: mock, weight: 3}
  - {name: second, type: mock}
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


class Gateway:
    """A gateway in a process of its own, on a port that the system chose."""

    def __init__(self, *arguments: str, stdout: int = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=stdout, stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if line.startswith("try:"):
                self._started.set()
        self._started.set()

    @property
    def url(self) -> str:
        assert self._started.wait(STARTED_WITHIN), self.said
        found = re.search(r"listening on (http://\S+)", "\n".join(self.said))
        assert found, self.said
        return found[1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


Start = Callable[..., Gateway]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `serve` or `demo`; ended with the test."""
    gateways: list[Gateway] = []

    def make(*arguments: str, stdout: int = subprocess.PIPE) -> Gateway:
        gateways.append(Gateway(*arguments, stdout=stdout))
        return gateways[-1]

    yield make
    for gateway in gateways:
        gateway.close()


@pytest.fixture
def config(tmp_path: Path) -> str:
    """A file with two mocks and JSON logs."""
    path = tmp_path / "gateway.yaml"
    path.write_text(MOCKS, encoding="utf-8")
    return str(path)


def ask_over_http(url: str) -> httpx.Response:
    body = {"model": "any", "messages": [{"role": "user", "content": "secret-canary"}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=30)


def test_serve_without_a_file_serves_two_mocks(start: Start) -> None:
    """No file and no key: the gateway answers, and ends cleanly on SIGTERM."""
    gateway = start("serve", "--port", "0")
    response = ask_over_http(gateway.url)
    assert response.status_code == 200
    assert response.headers["x-gateway-provider"] in ("mock-a", "mock-b")
    assert gateway.stop() == 0
    assert "Traceback" not in "\n".join(gateway.said)


def test_the_printed_curl_line_works(start: Start) -> None:
    """What is said at the start can be pasted."""
    gateway = start("serve", "--port", "0")
    assert gateway.url
    line = next(line for line in gateway.said if line.startswith("try: "))
    command = shlex.split(line.removeprefix("try: "))
    done = subprocess.run([*command, "-s"], capture_output=True, timeout=30, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["choices"]


def test_a_request_is_one_json_line_on_stdout(start: Start, config: str) -> None:
    """The log has the request's facts and neither prompt nor anything else on stdout."""
    gateway = start("serve", config, "--port", "0")
    identity = ask_over_http(gateway.url).headers["x-request-id"]
    assert gateway.stop() == 0
    assert gateway.process.stdout is not None
    written = gateway.process.stdout.read()
    (line,) = written.splitlines()
    record = json.loads(line)
    assert record["request_id"] == identity
    assert (record["status"], record["outcome"]) == (200, "completed")
    assert record["provider"] in ("first", "second")
    assert "canary" not in written + "\n".join(gateway.said)


def test_a_stdout_that_nobody_reads_does_not_stop_the_gateway(start: Start, config: str) -> None:
    """Requests are answered and the end comes, although every log line is stuck."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4_096)
        os.set_blocking(writer, True)
        gateway = start("serve", config, "--port", "0", stdout=writer)
        for _ in range(20):
            assert ask_over_http(gateway.url).status_code == 200
        assert gateway.stop() == 0
    finally:
        os.close(reader)
        os.close(writer)


def test_ctrl_c_ends_serve_cleanly(start: Start) -> None:
    """SIGINT drains like SIGTERM."""
    gateway = start("serve", "--port", "0")
    assert gateway.url
    assert gateway.stop(signal.SIGINT) == 0
    assert "Traceback" not in "\n".join(gateway.said)


def test_a_busy_port_is_one_line_and_exit_code_2(start: Start) -> None:
    """The second gateway says that the port is taken and what to do."""
    gateway = start("serve", "--port", "0")
    port = gateway.url.rpartition(":")[2]
    done = run("serve", "--port", port)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: port {port} on 127.0.0.1 is already in use")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_ask_goes_through_a_running_gateway(how: str, start: Start, config: str) -> None:
    """The answer is on stdout, through the gateway's own API."""
    gateway = start("serve", config, "--port", "0")
    done = run("ask", "hello", "--url", gateway.url, how)
    assert done.returncode == 0, done.stderr
    assert "no model was asked" in done.stdout
    assert "mock-model" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("providers: [", "not YAML"),
        ("providers: [{name: a, type: vllm}]", "needs a base_url"),
        ("providers: [{name: a, type: opnai}]", "did you mean 'openai'?"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_wrong_file_ends_with_lines_and_no_traceback(
    command: str, text: str, expected: str, tmp_path: Path
) -> None:
    """Exit code 2, each line with file and line number."""
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    done = run(command, str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert all(line.startswith(f"{path}:1: ") for line in done.stderr.splitlines())


def test_a_model_that_cannot_be_loaded_ends_serve_with_words(tmp_path: Path) -> None:
    """A provider that cannot start is a mistake of the configuration: exit code 2."""
    path = tmp_path / "gateway.yaml"
    model = tmp_path / "nothing.gguf"
    path.write_text(
        f"providers: [{{name: a, type: llamacpp, options: {{model: '{model}'}}}}]", "utf-8"
    )
    done = run("serve", str(path), "--port", "0")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "does not exist" in done.stderr


def test_ctrl_c_during_ask_ends_with_130(tmp_path: Path) -> None:
    """An answer that does not come can be given up without a traceback."""
    path = tmp_path / "slow.yaml"
    path.write_text(
        "providers: [{name: slow, type: mock, timeout: 600, timeouts: {first_event: 600}, "
        "options: {text: 'one two three four five six', tokens_per_second: 0.2}}]",
        "utf-8",
    )
    process = subprocess.Popen(
        [*COMMAND, "ask", "hi", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        # The first word is there, so that it is in the middle of the answer.
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in said


def test_output_into_a_closed_pipe_is_no_traceback() -> None:
    """`inference-gateway schema | head -1` ends quietly."""
    line = f"{shlex.join([*COMMAND, 'schema'])} | head -1"
    done = subprocess.run(
        ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_help_does_not_import_what_it_does_not_need() -> None:
    """Help is quick because no server, client, model or table library is loaded for it."""
    code = (
        "import sys\n"
        "from adapters.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'engine', 'httpx', 'starlette', 'hypercorn', 'aiohttp', 'pydantic', 'rich',"
        " 'yaml', 'opentelemetry.sdk'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_collector_that_hangs_does_not_delay_the_end(start: Start, tmp_path: Path) -> None:
    """The gateway ends although its spans cannot be delivered."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        path = tmp_path / "gateway.yaml"
        telemetry = f"telemetry: {{exporter: otlp, endpoint: 'http://127.0.0.1:{port}'}}\n"
        path.write_text(telemetry + MOCKS.partition("\n")[2], "utf-8")
        gateway = start("serve", str(path), "--port", "0")
        assert ask_over_http(gateway.url).status_code == 200
        begun = time.perf_counter()
        assert gateway.stop() == 0
        assert time.perf_counter() - begun < 20


def test_the_demo_answers_with_the_real_model() -> None:
    """One command: the real model is served, asked over HTTP, and named; then it ends."""
    done = run("demo", "--once", "--port", "0")
    assert done.returncode == 0, done.stderr
    assert "Q: What is the capital of France?" in done.stdout
    assert "Paris" in done.stdout
    assert re.search(r"from provider gemma-[ab], attempts: \d", done.stdout)
    assert "try: curl http://127.0.0.1:" in done.stderr


def test_the_demo_without_its_extra_says_what_to_install() -> None:
    """A missing package is told in one line, with the command that brings it."""
    # None in the table of modules is how Python itself notes that one is not there.
    code = (
        "import sys; sys.modules['xllamacpp'] = None\n"
        "from adapters.cli.main import main; main(['demo', '--once', '--port', '0'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "pip install 'sre-inference-gateway[local]'" in done.stderr
