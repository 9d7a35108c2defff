"""The processes of a benchmark: started, pinned to a core, and ended whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import yaml

from benchmarks.load import LoadPlan, LoadResult

START_SECONDS = 30.0
END_SECONDS = 5.0
_ROOT = Path(__file__).resolve().parent.parent


class ChildError(Exception):
    """A process of the benchmark did not do what it was started for."""


def can_pin() -> bool:
    """Whether this system can keep a process on one core."""
    return hasattr(os, "sched_setaffinity")


@dataclass(frozen=True, slots=True)
class Serving:
    """A process that serves.

    Attributes:
        pid: Its process id.
        port: Its port on the loopback interface.
    """

    pid: int
    port: int


@contextmanager
def upstream_process(core: int) -> Iterator[Serving]:
    """Run the upstream.

    Raises:
        ChildError: If it does not start.
    """
    with _telling_its_port("upstream", core) as serving:
        yield serving


@contextmanager
def hypercorn_process(core: int) -> Iterator[Serving]:
    """Run Hypercorn with an app that only answers.

    Raises:
        ChildError: If it does not start.
    """
    with _telling_its_port("bare_server", core) as serving:
        yield serving


@contextmanager
def gateway_process(core: int, upstream_port: int) -> Iterator[Serving]:
    """Run the gateway with one provider, the upstream.

    Raises:
        ChildError: If it does not serve within `START_SECONDS`.
    """
    port = _free_port()
    provider = {
        "name": "upstream",
        "type": "openai_compatible",
        "base_url": f"http://127.0.0.1:{upstream_port}/v1",
        "limits": {"concurrency": 1024, "queue": 1024},
    }
    config = {
        "server": {"host": "127.0.0.1", "port": port, "drain": 1.0},
        "telemetry": {"exporter": "none", "logs": "none"},
        "providers": [provider],
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "gateway.yaml")
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        arguments = ["benchmarks.gateway_process", str(path)]
        with child_process(arguments, core, stdout=subprocess.DEVNULL) as (child, errors):
            _wait_until_it_serves(child, port, errors)
            yield Serving(child.pid, port)


def generate_load(plan: LoadPlan, core: int) -> LoadResult:
    """Run the load generator to its end.

    Raises:
        ChildError: If it fails, or takes much longer than the plan allows.
    """
    arguments = ["benchmarks.load", json.dumps(asdict(plan))]
    with child_process(arguments, core, stdout=subprocess.PIPE) as (child, errors):
        try:
            output, _ = child.communicate(timeout=plan.limit + START_SECONDS)
        except subprocess.TimeoutExpired:
            raise ChildError("the load generator did not end in time") from None
        if child.returncode != 0:
            raise ChildError(f"the load generator failed: {last_words(errors)}")
        return LoadResult(**json.loads(output))


@contextmanager
def _telling_its_port(module: str, core: int) -> Iterator[Serving]:
    """Run a module of the benchmarks whose first line of output is its port."""
    with child_process([f"benchmarks.{module}"], core, stdout=subprocess.PIPE) as (child, errors):
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line.strip().isdigit():
            child.wait(END_SECONDS)
            raise ChildError(f"{module} did not start: {last_words(errors)}")
        yield Serving(child.pid, int(line))


@contextmanager
def child_process(
    module_and_arguments: list[str], core: int | None, *, stdout: int
) -> Iterator[tuple[subprocess.Popen[str], IO[bytes]]]:
    """Start a module, and end it with the context: politely, then by force.

    Args:
        module_and_arguments: As after `python -m`.
        core: The core that it must stay on; None leaves that to the system.
        stdout: As `subprocess.Popen` takes it.
    """
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(  # noqa: S603 - our own modules
            [sys.executable, "-m", *module_and_arguments],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=errors,
            text=True,
            # Ctrl-C on the terminal is for the benchmark, which then ends its processes itself.
            start_new_session=True,
        )
        with child:
            try:
                if core is not None and can_pin():
                    # Before it has threads of its own, which will inherit it.
                    os.sched_setaffinity(child.pid, {core})
                yield child, errors
            finally:
                _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait_until_it_serves(child: subprocess.Popen[str], port: int, errors: IO[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if child.poll() is not None:
            raise ChildError(f"the gateway did not start: {last_words(errors)}")
        if _is_ready(port):
            return
        time.sleep(0.05)
    raise ChildError(f"the gateway is not ready after {START_SECONDS:g} s: {last_words(errors)}")


def _is_ready(port: int) -> bool:
    request = b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(request)
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def last_words(errors: IO[bytes]) -> str:
    """The last line that a process wrote to stderr."""
    errors.seek(0)
    lines = errors.read()[-10_000:].decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
