"""What a llama.cpp server is told, checked before any native code runs."""

from __future__ import annotations

import os
import pathlib
from dataclasses import asdict, dataclass
from typing import Literal

from engine.errors import ConfigurationError

# Every GGUF file begins with these bytes (ggml's docs/gguf.md).
_GGUF_MAGIC = b"GGUF"
# More threads than this make small batches slower, not faster.
_MAX_DEFAULT_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaCppSettings:
    """What one llama.cpp server serves, and how. Equal settings may share a server.

    Attributes:
        model_path: The GGUF file.
        context_tokens: Context of one request, prompt and answer together, tokens.
        parallel: Requests that are computed at the same time; more wait in the server.
        threads: CPU threads; None for the CPUs this process may use, at most 16. Servers that
            work at the same time must divide the CPUs: llama.cpp's threads wait for each
            other by spinning, and two servers with two threads each on two CPUs were 10
            times slower than one.
        embeddings: Whether `/v1/embeddings` works, beside the other operations.
        pooling: How an embedding is made of the tokens' vectors; None for what the file
            says. A model made to chat says nothing: give `mean`.
        alias: Model name that the server answers with; None for the file's name.
        chat_template: Jinja chat template; None for the one in the file (or ChatML).
        stop: Texts that end an answer when the request names no `stop` of its own.
        max_output_tokens: Longest answer when the request says nothing, tokens; None for
            as much as the context holds.
        temperature: Used when the request says nothing; None for llama.cpp's own.
        repeat_penalty: Used when the request says nothing; None for llama.cpp's own.
        start_timeout: How long loading may take, seconds.
    """

    model_path: pathlib.Path
    context_tokens: int = 4096
    parallel: int = 2
    threads: int | None = None
    embeddings: bool = False
    pooling: Literal["mean", "cls", "last"] | None = None
    alias: str | None = None
    chat_template: str | None = None
    stop: tuple[str, ...] = ()
    max_output_tokens: int | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    start_timeout: float = 120.0

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ConfigurationError: If a number is outside its bounds.
        """
        _check_range("context_tokens", self.context_tokens, 1, 1 << 20)
        _check_range("parallel", self.parallel, 1, 256)
        if self.threads is not None:
            _check_range("threads", self.threads, 1, 512)
        if self.max_output_tokens is not None:
            _check_range("max_output_tokens", self.max_output_tokens, 1, 1 << 20)
        _check_range("start_timeout", self.start_timeout, 0.1, 3600)

    def for_child(self) -> dict[str, object]:
        """Return the settings as JSON values, with every default filled in."""
        threads = self.threads or min(_usable_cpus(), _MAX_DEFAULT_THREADS)
        return asdict(self) | {
            "model_path": str(self.model_path.absolute()),
            "alias": self.alias or self.model_path.stem,
            "threads": threads,
        }


def check_gguf_file(path: pathlib.Path) -> None:
    """Refuse what is certainly no model before native code sees it.

    Raises:
        ConfigurationError: If the file is missing, unreadable, or lacks the GGUF magic.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except FileNotFoundError:
        msg = f"the model file {path} does not exist: give the path of a GGUF file"
        raise ConfigurationError(msg) from None
    except OSError as error:
        msg = f"the model file {path} cannot be read ({error.strerror}): give a readable GGUF file"
        raise ConfigurationError(msg) from error
    if magic != _GGUF_MAGIC:
        msg = (
            f"{path} is not a GGUF file (it begins with {magic!r}): give a model in GGUF format, "
            "as llama.cpp's own tools write it"
        )
        raise ConfigurationError(msg)


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        msg = f"{name} is {value!r}: it must be from {low:g} to {high:g}"
        raise ConfigurationError(msg)
