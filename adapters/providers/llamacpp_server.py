"""Starts and stops llama.cpp servers for GGUF files, with the package `xllamacpp`.

Each server runs in a child process of its own. In the gateway's process it cannot live:
measured with xllamacpp 2026.10, its constructor keeps Python's global lock for the whole
load (3 s for a 240 MB model, in which every event loop of the process stands still), and
its destructor keeps that lock until the last open stream or half-sent request is gone,
which freezes the process for good if that stream's reader lives in it. A child costs 0.1 s
at start and about 30 MB; it can be stopped at any time, and a crash of native code ends
the child only. Several children that serve one file share its pages (the file is mapped).

The child ends when the gateway does, however it ends: it watches its standard input.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from typing import IO, Self

import anyio
from anyio import to_thread

from adapters.providers.llamacpp_settings import LlamaCppSettings, check_gguf_file
from engine.errors import ConfigurationError

_PACKAGE = "xllamacpp"
_CHILD_PROGRAM = pathlib.Path(__file__).with_name("llamacpp_child.py")
# SIGTERM ends the child at once; the wait is for a kernel that frees gigabytes. Seconds.
_TERMINATE_GRACE = 5.0
# How much of the child's log goes into an error message. Bytes.
_LAST_WORDS = 600
# The child needs no secret, so it gets no environment but what native libraries read.
_ENVIRONMENT_NAMES = frozenset(
    {
        "HOME",
        "LANG",
        "LC_ALL",
        "PATH",
        "PYTHONHOME",
        "PYTHONPATH",
        "SYSTEMROOT",
        "TEMP",
        "TMP",
    }
    | {"TMPDIR", "VIRTUAL_ENV"}
)
_ENVIRONMENT_PREFIXES = (
    *(
        "CUDA_",
        "DYLD_",
        "GGML_",
        "HIP_",
        "HSA_",
        "LD_",
        "METAL_",
        "NVIDIA_",
        "OMP_",
        "ROCR_",
    ),
    "VK_",
)


class LlamaCppServer:
    """One llama.cpp server in a child process, listening on a free port of the loopback.

    Thread-safe. `start` and `stop` block; from a task use `start_in_thread` and
    `stop_in_thread`.
    """

    def __init__(self, settings: LlamaCppSettings) -> None:
        """Keep the settings; nothing is started, read or checked yet."""
        self.settings = settings
        self._launching = threading.Lock()  # held while a child loads
        self._state = threading.Lock()  # guards the fields below; never held while waiting
        self._process: subprocess.Popen[bytes] | None = None
        self._base_url: str | None = None
        self._stopped = False

    def __repr__(self) -> str:
        """Show what is served, where."""
        where = self._base_url if self.is_running else "not running"
        return f"<LlamaCppServer {self.settings.model_path.name} {where}>"

    @property
    def is_running(self) -> bool:
        """Whether the server is ready and its process lives; a system call of about 1 µs."""
        process = self._process
        return self._base_url is not None and process is not None and process.poll() is None

    @property
    def base_url(self) -> str:
        """Where the OpenAI-compatible API is, with its `/v1`.

        It changes when a server that died is started again.

        Raises:
            anyio.ClosedResourceError: If the server has not been started, or was stopped.
        """
        if self._base_url is None:
            raise anyio.ClosedResourceError
        return self._base_url

    @property
    def pid(self) -> int | None:
        """Process id of the child, or None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Load the model and wait until the server answers. Does nothing if it runs.

        A server whose process died is started again. Several threads may call this at
        once: one starts, the others wait.

        Raises:
            ConfigurationError: If `xllamacpp` is missing, the file is no model that
                llama.cpp can load, or loading took longer than `start_timeout`.
            anyio.ClosedResourceError: If `stop` was called, before or meanwhile.
        """
        with self._launching:
            with self._state:
                if self._stopped:
                    raise anyio.ClosedResourceError
                if self.is_running:
                    return
            package_folder = _find_package()
            check_gguf_file(self.settings.model_path)
            with tempfile.TemporaryFile() as log:
                self._launch(package_folder, log)

    def stop(self) -> None:
        """End the server at once, answers in flight included; the port is free afterwards.

        Idempotent. A `start` that is under way in another thread gives up. A stopped
        server cannot be started again.
        """
        with self._state:
            self._stopped = True
            process, self._process, self._base_url = self._process, None, None
        if process is not None:
            _end(process)

    async def start_in_thread(self) -> None:
        """`start` for a task: cancelling it returns at once, and `stop` ends the child.

        Raises:
            ConfigurationError: As `start`.
            anyio.ClosedResourceError: As `start`.
        """
        await to_thread.run_sync(self.start, abandon_on_cancel=True)

    async def stop_in_thread(self) -> None:
        """`stop` for a task; it is carried out even if the task is being cancelled."""
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self.stop)

    def __enter__(self) -> Self:
        """Start the server; see `start` for what is raised."""
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the server."""
        self.stop()

    def _launch(self, package_folder: str, log: IO[bytes]) -> None:
        process = self._spawn(log)
        answer = _exchange(
            process,
            self.settings.for_child() | {"package_folder": package_folder},
            self.settings.start_timeout,
        )
        with self._state:
            if not self._stopped and "address" in answer:
                self._base_url = f"{answer['address']}/v1"
                return
            stopped, self._process = self._stopped, None
        _end(process)
        if stopped:
            raise anyio.ClosedResourceError
        raise ConfigurationError(self._failure(answer, process.returncode, log))

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        with self._state:
            if self._stopped:
                raise anyio.ClosedResourceError
            if self._process is not None:  # it died; its pipes must not leak
                _end(self._process)
            self._base_url = None
            # -P: the folder of the program holds modules with names of the standard library.
            # A session of its own: Ctrl-C in a terminal must reach the gateway only, which
            # then drains while the model still answers.
            self._process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                [sys.executable, "-P", str(_CHILD_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_child_environment(),
                start_new_session=True,
            )
            return self._process

    def _failure(self, answer: dict[str, str], code: int | None, log: IO[bytes]) -> str:
        model = self.settings.model_path
        if "timeout" in answer:
            return (
                f"llama.cpp did not load {model} within {self.settings.start_timeout:g} s: "
                "raise `start_timeout` or take a smaller model"
            )
        reason = answer.get("error", f"the process ended with exit code {code}")
        words = _last_words(log)
        return (
            f"llama.cpp cannot serve {model} ({reason}{'; ' if words else ''}{words}): take a "
            "GGUF file that this version of llama.cpp knows, or less `context_tokens`"
        )


def _find_package() -> str:
    """Return the folder that holds `xllamacpp`, without importing its 100 MB of code."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        msg = (
            "the provider type llamacpp needs the package xllamacpp: "
            "pip install 'sre-inference-gateway[local]'"
        )
        raise ConfigurationError(msg)
    return str(pathlib.Path(spec.origin).parent.parent)


def _exchange(
    process: subprocess.Popen[bytes], settings: dict[str, object], timeout: float
) -> dict[str, str]:
    """Send the settings and wait for the one line of answer; empty if the child ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    expired = threading.Event()

    def give_up() -> None:
        expired.set()
        process.kill()  # which ends the read below

    timer = threading.Timer(timeout, give_up)
    timer.daemon = True
    timer.start()
    try:
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except (
        OSError,
        ValueError,
    ):  # the child, or our end of its pipe, was closed by `stop`
        line = b""
    finally:
        timer.cancel()
        timer.join()
    if expired.is_set():
        return {"timeout": "yes"}
    answer: dict[str, str] = json.loads(line) if line.endswith(b"\n") else {}
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child and reap it; closes our ends of its pipes."""
    process.terminate()
    try:
        process.wait(_TERMINATE_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # settings that the child did not read
                continue


def _last_words(log: IO[bytes]) -> str:
    """Return the end of the child's log on one line."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _LAST_WORDS))
    return " | ".join(log.read().decode("utf-8", "replace").strip().splitlines()[-3:])


def _child_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.upper() in _ENVIRONMENT_NAMES or name.upper().startswith(_ENVIRONMENT_PREFIXES)
    }
