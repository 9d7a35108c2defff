"""The program that `LlamaCppServer` runs: one llama.cpp server, in a process of its own.

It reads its settings as one line of JSON from standard input, loads the model, answers
one line of JSON on standard output (`{"address": ...}` or `{"error": ...}`), and serves
until standard input ends, which it does when the gateway stops it or dies.

It imports the standard library and `xllamacpp` only, so that it starts in under 0.1 s.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

# llama.cpp logs errors only; at 2 it would add warnings that nobody can act on.
_LOG_ERRORS_ONLY = 1
# Reads or writes of one connection that stand still for longer are given up. Seconds.
_SOCKET_TIMEOUT = 600
# A request that waits for a slot occupies an HTTP thread; these stay free for probes.
_SPARE_HTTP_THREADS = 16


def apply_settings(parameters: Any, settings: dict[str, Any], xllamacpp: Any) -> None:
    """Translate the gateway's settings into llama.cpp's `common_params`.

    Args:
        parameters: A new `xllamacpp.CommonParams`; changed in place.
        settings: The fields of `LlamaCppSettings`, with `threads` filled in.
        xllamacpp: The package, for its enumerations.
    """
    parameters.model.path = settings["model_path"]
    parameters.model_alias = {settings["alias"]}
    parameters.n_parallel = settings["parallel"]
    # llama.cpp divides its context among the slots; the setting is what one request gets.
    parameters.n_ctx = settings["context_tokens"] * settings["parallel"]
    parameters.cpuparams.n_threads = settings["threads"]
    parameters.cpuparams_batch.n_threads = settings["threads"]
    parameters.embedding = settings["embeddings"]
    if settings["embeddings"]:
        # A text is embedded in one physical batch, whose default of 512 tokens would refuse
        # inputs that the context holds.
        parameters.n_batch = parameters.n_ubatch = max(512, settings["context_tokens"])
    if settings["pooling"] is not None:
        name = f"LLAMA_POOLING_TYPE_{settings['pooling'].upper()}"
        parameters.pooling_type = xllamacpp.llama_pooling_type[name]
    if settings["chat_template"] is not None:
        parameters.chat_template = settings["chat_template"]
    parameters.antiprompt = settings["stop"]
    if settings["max_output_tokens"] is not None:
        parameters.n_predict = settings["max_output_tokens"]
    if settings["temperature"] is not None:
        parameters.sampling.temp = settings["temperature"]
    if settings["repeat_penalty"] is not None:
        parameters.sampling.penalty_repeat = settings["repeat_penalty"]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0  # the system picks a free port at bind: nobody can take it in between
    parameters.n_threads_http = settings["parallel"] + _SPARE_HTTP_THREADS
    parameters.timeout_read = _SOCKET_TIMEOUT
    parameters.timeout_write = _SOCKET_TIMEOUT
    parameters.cache_ram_mib = 0  # else llama.cpp keeps up to 8 GiB of old prompts
    parameters.endpoint_slots = False  # it shows other callers' prompts
    parameters.cors_origins = "http://127.0.0.1"  # the default lets any web page in
    parameters.ui = False
    parameters.offline = True
    parameters.verbosity = _LOG_ERRORS_ONLY


def start_server(settings: dict[str, Any]) -> tuple[object, dict[str, str]]:
    """Load the model and listen.

    Returns:
        The server, which lives as long as it is referenced (None if it could not start),
        and the answer for the parent.
    """
    try:
        xllamacpp = importlib.import_module("xllamacpp")
        parameters = xllamacpp.CommonParams()
        apply_settings(parameters, settings, xllamacpp)
        server = xllamacpp.Server(parameters)
    except Exception as error:  # noqa: BLE001 - border: native code raises what it likes
        return None, {"error": f"{type(error).__name__}: {error}"}
    return server, {"address": server.listening_address}


def main() -> None:
    """Serve until standard input ends."""
    settings = json.loads(sys.stdin.buffer.readline())
    # The answer's channel is kept apart: native code may print to standard output.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.append(settings["package_folder"])
    server, answer = start_server(settings)
    # From here on the log could only speak of requests, and those are nobody's business.
    silence = os.open(os.devnull, os.O_WRONLY)
    if server is not None:
        os.dup2(silence, 1)
        os.dup2(silence, 2)
    answers.write(json.dumps(answer) + "\n")
    answers.close()
    if server is not None:
        sys.stdin.buffer.read()
    # The server's destructor waits for its open streams, for ever if their clients stay.
    os._exit(0)


if __name__ == "__main__":
    main()
