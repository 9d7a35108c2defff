"""The gateway in a process of its own, whose configuration file and end the benchmark decides."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
import yaml

from benchmarks.caller import fetch
from benchmarks.children import START_SECONDS, ChildError, child_process, last_words

_PATIENCE = 20.0
"""Seconds in which a status must be as wanted, on a machine that does other things too."""

_LISTENS = re.compile(rb"^(listening|admin) on http://\S+:(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds once all garbage is gone.

    Attributes:
        resident_mib: Memory in RAM, MiB.
        heap_mib: Memory in use of the C library's heap, where larger pieces and those of
            extensions lie, MiB; 0 where the C library does not tell.
        blocks: Small pieces of memory that the interpreter has handed out.
        objects: Objects with references to others, without those from before the first request.
        tasks: Tasks of the event loop.
        threads: Threads that Python knows.
        descriptors: Open files, sockets and pipes.
    """

    resident_mib: float
    heap_mib: float
    blocks: int
    objects: int
    tasks: int
    threads: int
    descriptors: int


class LiveGateway:
    """A gateway that serves.

    Args:
        process: Its process.
        path: Its configuration file.
        ports: Where it listens: for requests, and for the operator.
    """

    def __init__(self, process: subprocess.Popen[str], path: Path, ports: tuple[int, int]) -> None:
        self.port, self.admin_port = ports
        self.pid = process.pid
        self._process = process
        self._path = path

    def write(self, config: dict[str, Any]) -> None:
        """Replace the configuration file in one step; applied when it is asked to."""
        beside = self._path.with_suffix(".new")
        beside.write_text(yaml.safe_dump(_with_server(config)), encoding="utf-8")
        beside.rename(self._path)

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def status(self) -> dict[str, Any]:
        """What it tells about itself.

        Raises:
            ChildError: If it does not.
        """
        answer = await fetch(self.admin_port, "/status")
        if answer.status != 200:
            raise ChildError("the gateway does not tell its status")
        status: dict[str, Any] = answer.json()
        return status

    async def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the status is as wanted, and give it.

        Raises:
            ChildError: If it never is.
        """
        with anyio.move_on_after(_PATIENCE):
            while True:
                status = await self.status()
                if holds(status):
                    return status
                await anyio.sleep(0.02)
        raise ChildError(f"the gateway's status is not as it should be after {_PATIENCE:g} s")

    async def held(self) -> Held:
        """What it holds just now; it stands still while it counts, for some tens of ms.

        Raises:
            ChildError: If it does not tell.
        """
        assert self._process.stdout is not None
        self.send(signal.SIGUSR1)
        line = ""
        with anyio.move_on_after(_PATIENCE):
            # Abandoned, the thread ends with the process whose words it waits for.
            line = await anyio.to_thread.run_sync(
                self._process.stdout.readline, abandon_on_cancel=True
            )
        if not line:
            raise ChildError("the gateway does not tell what it holds")
        return Held(**json.loads(line))

    async def ends(self, within: float) -> int | None:
        """Wait for its end; its exit code, or None if it still runs."""
        with anyio.move_on_after(within):
            while self._process.poll() is None:  # noqa: ASYNC110 - a process has no event
                await anyio.sleep(0.02)
        return self._process.poll()


@contextmanager
def live_gateway(config: dict[str, Any]) -> Iterator[LiveGateway]:
    """Run a gateway with a configuration; its ports and telemetry are set here.

    Raises:
        ChildError: If it does not serve within `START_SECONDS`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gateway.yaml")
        path.write_text(yaml.safe_dump(_with_server(config)), encoding="utf-8")
        arguments = ["benchmarks.gateway_process", str(path)]
        with child_process(arguments, None, stdout=subprocess.PIPE) as (child, errors):
            yield LiveGateway(child, path, _ports(child, errors))


def _with_server(config: dict[str, Any]) -> dict[str, Any]:
    server = {"port": 0, "admin_port": 0, **config.get("server", {})}
    return {"telemetry": {"exporter": "none", "logs": "none"}, **config, "server": server}


def _ports(child: subprocess.Popen[str], errors: IO[bytes]) -> tuple[int, int]:
    """The ports that the gateway chose, as it tells on stderr once it serves."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        # Not by `seek`: the process writes at the same place in the file that we would move.
        said = os.pread(errors.fileno(), 10_000, 0)
        found = {word: int(port) for word, port in _LISTENS.findall(said)}
        if len(found) == 2:
            return found[b"listening"], found[b"admin"]
        if child.poll() is not None:
            raise ChildError(f"the gateway did not start: {last_words(errors)}")
        time.sleep(0.05)
    raise ChildError(f"the gateway is not ready after {START_SECONDS:g} s: {last_words(errors)}")
