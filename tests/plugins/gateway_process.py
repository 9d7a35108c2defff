"""The gateway as a process of its own, for what only a process can suffer."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

STARTED_WITHIN = 60.0
"""Seconds: generous, for a machine that does other things too."""

SERVE = "from adapters.cli.main import main; main()"


class Answer:
    """What came back for one request.

    Attributes:
        status: HTTP status; 0 if the connection broke or was refused.
        body: The body.
        headers: Header fields, names in lower case.
        seconds: How long it took.
    """

    def __init__(self, status: int, body: str, headers: dict[str, str], seconds: float) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.seconds = seconds

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class GatewayProcess:
    """`inference-gateway serve` on a port that the system chose; ended with its scope.

    Args:
        directory: Where the configuration file is written.
        config: The configuration, plain data.
        program: Python that is run instead of the command; it must end by running it.
        stdout: Where the request log goes.
        environment: Further environment variables.
    """

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        *,
        program: str = SERVE,
        stdout: int = subprocess.DEVNULL,
        **environment: str,
    ) -> None:
        self.said: list[str] = []
        path = directory / "gateway.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        self.file = path
        self._started = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", str(path), "--port", "0"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if line.startswith("try:"):
                self._started.set()
        self._started.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens; waits until it does."""
        assert self._started.wait(STARTED_WITHIN), self.said
        found = re.search(r"listening on (http://\S+)", "\n".join(self.said))
        assert found, self.said
        parts = urlsplit(found[1])
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def ask(self, path: str = "/v1/chat/completions", **body: Any) -> Answer:
        """Make one request on a connection of its own: GET without a body."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        begun = time.perf_counter()
        try:
            if path.startswith("/v1/"):
                connection.request("POST", path, chat(**body), {"content-type": "application/json"})
            else:
                connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return Answer(0, repr(error), {}, time.perf_counter() - begun)
        finally:
            connection.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, text, headers, time.perf_counter() - begun)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 30) -> int:
        """Wait for the end; the exit code."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code

    def stop(self, seconds: float = 30) -> int:
        """End it with SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)


def chat(**fields: Any) -> str:
    """The body of a chat completion."""
    return json.dumps({
        "model": "any", "messages": [{"role": "user", "content": "canary-prompt-5f21"}], **fields,
    })  # fmt: skip


class Callers:
    """Callers in threads of their own, who ask again and again until told to stop.

    Args:
        gateway: Whom they ask.
        count: How many they are.
        body: Further fields of what they ask.

    Attributes:
        answers: What they got, in the order of its arrival.
    """

    def __init__(self, gateway: GatewayProcess, count: int, **body: Any) -> None:
        self.answers: list[Answer] = []
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(gateway, body), daemon=True)
            for _ in range(count)
        ]

    def _ask(self, gateway: GatewayProcess, body: dict[str, Any]) -> None:
        while not self._over.is_set():
            answer = gateway.ask(**body)
            self.answers.append(answer)
            if answer.status == 0:
                # Nobody there any more.
                return

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def wait_for(self, count: int) -> None:
        """Wait until so many answers have come."""
        end = time.perf_counter() + 30
        while len(self.answers) < count:
            assert time.perf_counter() < end, f"{len(self.answers)} answers only"
            time.sleep(0.01)
