"""`inference-gateway serve` in a process of its own, and clients that count what they get."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

import anyio
import anyio.abc
import httpx
import yaml

COMMAND = [sys.executable, "-c", "from adapters.cli.main import main; main()", "serve"]
STARTED_WITHIN = 60.0
"""Seconds: generous, for a machine that does other things too."""


class ServingProcess:
    """A gateway with a configuration file that the test rewrites.

    Args:
        path: The file.
        config: What to write into it at first.
    """

    def __init__(self, path: Any, config: dict[str, Any]) -> None:
        self.path = path
        self.write(config)
        self.process = subprocess.Popen(
            [*COMMAND, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
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

    def write(self, config: dict[str, Any] | str) -> None:
        """Replace the file, as an editor or a deployment does: in one step."""
        text = config if isinstance(config, str) else yaml.safe_dump(config)
        beside = self.path.with_suffix(".new")
        beside.write_text(text, encoding="utf-8")
        beside.rename(self.path)

    def _address(self, word: str) -> str:
        assert self._started.wait(STARTED_WITHIN), self.said
        found = re.search(rf"^{word} on (http://\S+)", "\n".join(self.said), re.MULTILINE)
        assert found, self.said
        return found[1]

    @property
    def url(self) -> str:
        """Where requests go."""
        return self._address("listening")

    @property
    def port(self) -> int:
        """The port of it."""
        return int(self.url.rpartition(":")[2])

    @property
    def admin(self) -> str:
        """Where the operator goes."""
        return self._address("admin")

    def send(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def ends(self, within: float) -> int:
        """Wait for the exit code."""
        code = self.process.wait(within)
        self._reader.join(10)
        return code

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()

    async def status(self) -> dict[str, Any]:
        """What the gateway tells about itself."""
        async with httpx.AsyncClient(trust_env=False, verify=False) as client:
            answer = await client.get(f"{self.admin}/status", timeout=10)
        result: dict[str, Any] = answer.json()
        return result

    async def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = 15) -> None:
        """Wait until the status is as wanted."""
        with anyio.fail_after(seconds):
            while not holds(await self.status()):  # noqa: ASYNC110 - looks from outside
                await anyio.sleep(0.02)


def chat(*, stream: bool = False, model: str = "any") -> bytes:
    """A chat completion as bytes."""
    body = json.dumps(
        {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hello"}]}
    ).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )


@dataclass
class Tally:
    """What clients got.

    Attributes:
        statuses: Answers by status.
        lost: Requests that were sent and got no whole answer, by what was missing.
        streams: Ends of streams: `done`, `error` or `cut`.
        answered_at: When the latest answer came.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    answered_at: float = 0.0


class Client:
    """A client on one kept connection, which opens another when it is told to close.

    It does not repeat: a request that is sent and not answered is lost.
    """

    def __init__(self, port: int, tally: Tally) -> None:
        self._port = port
        self._tally = tally
        self._stream: anyio.abc.SocketStream | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.close()

    async def ask(self, request: bytes) -> bool:
        """Send one request and read its answer; False if nobody listens any more."""
        if self._stream is None:
            try:
                self._stream = await anyio.connect_tcp("127.0.0.1", self._port)
            except OSError:
                return False
        received = b""
        try:
            await self._stream.send(request)
            while not _whole(received):
                received += await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            self._tally.lost["cut" if received else "unanswered"] += 1
            await self.close()
            return True
        head = received.partition(b"\r\n\r\n")[0].lower()
        self._tally.statuses[int(head.split()[1])] += 1
        self._tally.answered_at = time.monotonic()
        if b"text/event-stream" in head:
            self._count_stream(received)
        if b"connection: close" in head:
            await self.close()
        return True

    def _count_stream(self, received: bytes) -> None:
        done, error = b"data: [DONE]" in received, received.count(b'data: {"error"')
        end = "done" if done and not error else "error" if error == 1 and not done else "cut"
        self._tally.streams[end] += 1

    async def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None


def _whole(received: bytes) -> bool:
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return False
    length = re.search(rb"content-length: (\d+)", head.lower())
    if length is not None:
        return len(body) >= int(length[1])
    return body.endswith(b"0\r\n\r\n")


def terminate(gateway: ServingProcess) -> None:
    """Ask it to end."""
    gateway.send(signal.SIGTERM)
