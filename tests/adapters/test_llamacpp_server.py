"""Real llama.cpp servers, in child processes, with the tiny model of `tests/data`."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import psutil
import pytest

from adapters.providers import llamacpp_server
from adapters.providers.llamacpp_server import LlamaCppServer
from adapters.providers.llamacpp_settings import LlamaCppSettings
from adapters.providers.llamacpp_sharing import ServerPool, share_server
from engine.errors import ConfigurationError

TINY_MODEL = pathlib.Path(__file__).parents[1] / "data" / "tiny-chat.gguf"
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


def tiny(**changes: Any) -> LlamaCppSettings:
    return LlamaCppSettings(model_path=TINY_MODEL, threads=1, **changes)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields}


def post(server: LlamaCppServer, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{server.base_url}{path}", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    value: dict[str, Any] = answer.json()
    return value


def events(server: LlamaCppServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    address = f"{server.base_url}/chat/completions"
    with httpx.stream("POST", address, json={**body, "stream": True}, timeout=30) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.perf_counter() + 20
    while not condition():
        if time.perf_counter() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(scope="module")
def running() -> Iterator[LlamaCppServer]:
    with LlamaCppServer(tiny()) as server:
        yield server


def test_server_names_its_model(running: LlamaCppServer) -> None:
    """The list of models holds the one model, under the file's name."""
    models = httpx.get(f"{running.base_url}/models").json()["data"]
    assert [model["id"] for model in models] == ["tiny-chat"]


def test_server_answers_a_chat(running: LlamaCppServer) -> None:
    """A trained question gets its answer, a reason to stop and a token count."""
    answer = post(running, "/chat/completions", ask("What colour is the boat?", max_tokens=40))
    assert answer["choices"][0]["message"]["content"].startswith("The ")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] > 0


def test_server_streams_the_same_answer(running: LlamaCppServer) -> None:
    """The pieces of a stream add up to the answer that comes whole."""
    question = ask("What colour is the boat?", max_tokens=40)
    whole = post(running, "/chat/completions", question)["choices"][0]["message"]["content"]
    pieces = [
        event["choices"][0]["delta"].get("content") or "" for event in events(running, question)
    ]
    assert len(pieces) > 2
    assert "".join(pieces) == whole


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_server_calls_a_tool(running: LlamaCppServer, choice: str) -> None:
    """The model's tool-call text arrives as a real `tool_calls` entry."""
    question = ask("Weather in harbour?", tools=[WEATHER_TOOL], tool_choice=choice)
    answer = post(running, "/chat/completions", question)["choices"][0]
    [call] = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "harbour"}
    assert answer["finish_reason"] == "tool_calls"


def test_server_streams_a_tool_call(running: LlamaCppServer) -> None:
    """The pieces of streamed arguments add up to the JSON of the call."""
    question = ask("Weather in harbour?", tools=[WEATHER_TOOL])
    deltas = [event["choices"][0]["delta"] for event in events(running, question)]
    calls = [call["function"] for delta in deltas for call in delta.get("tool_calls", [])]
    assert calls[0]["name"] == "get_weather"
    assert json.loads("".join(call["arguments"] for call in calls)) == {"city": "harbour"}


def test_server_completes_text(running: LlamaCppServer) -> None:
    """The older completions operation works as well."""
    answer = post(running, "/completions", {"prompt": "Ada finds", "max_tokens": 8})
    assert answer["choices"][0]["text"]


def test_each_slot_has_the_whole_context() -> None:
    """A prompt of nearly `context_tokens` fits, however many slots there are."""
    with LlamaCppServer(tiny(context_tokens=512, parallel=4)) as server:
        answer = post(server, "/completions", {"prompt": [300] * 480, "max_tokens": 1})
        assert answer["usage"]["prompt_tokens"] == 480


def test_settings_reach_the_server() -> None:
    """Name, answer length and stop text are those of the settings."""
    settings = tiny(alias="small", max_output_tokens=5, stop=("near",))
    with LlamaCppServer(settings) as server:
        models = httpx.get(f"{server.base_url}/models").json()["data"]
        assert [model["id"] for model in models] == ["small"]
        cut = post(server, "/chat/completions", ask("Tell me a story.", stop=["@"]))
        assert cut["usage"]["completion_tokens"] == 5
        stopped = post(server, "/chat/completions", ask("Tell me a story.", max_tokens=100))
        assert "near" not in stopped["choices"][0]["message"]["content"]


def test_embeddings_work_when_asked_for() -> None:
    """With `embeddings` the server turns texts into vectors of one length."""
    with LlamaCppServer(tiny(embeddings=True, pooling="mean")) as server:
        answer = post(server, "/embeddings", {"input": ["the red boat", "a lamp"]})
        assert [len(entry["embedding"]) for entry in answer["data"]] == [128, 128]


def test_embeddings_may_be_as_long_as_the_context() -> None:
    """A text of more than llama.cpp's default batch is embedded."""
    settings = tiny(embeddings=True, pooling="mean", context_tokens=1024)
    with LlamaCppServer(settings) as server:
        answer = post(server, "/embeddings", {"input": [300] * 1000})
        assert answer["usage"]["prompt_tokens"] == 1000


def test_two_servers_run_at_once() -> None:
    """Stopping one server leaves the answers of another one alone."""
    with LlamaCppServer(tiny()) as first:
        second = LlamaCppServer(tiny())
        second.start()
        assert first.base_url != second.base_url
        second.stop()
        assert post(first, "/chat/completions", ask("Tell me a story.", max_tokens=5))


def test_stop_frees_the_port_despite_an_open_stream() -> None:
    """Stopping ends a stream in flight, visibly cut, and closes the port at once."""
    server = LlamaCppServer(tiny())
    server.start()
    url = httpx.URL(server.base_url)
    body = ask("Tell me a story.", stream=True, ignore_eos=True, max_tokens=3500)
    with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        next(lines)
        begin = time.perf_counter()
        server.stop()
        assert time.perf_counter() - begin < 5
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((url.host, url.port or 0), timeout=5)


def test_stop_is_final_and_may_be_repeated() -> None:
    """A second stop does nothing, and a stopped server does not start again."""
    server = LlamaCppServer(tiny())
    server.stop()
    server.stop()
    with pytest.raises(anyio.ClosedResourceError):
        server.start()


def test_server_that_died_starts_again() -> None:
    """After its process was killed, `start` brings the server back."""
    with LlamaCppServer(tiny()) as server:
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: not server.is_running)
        server.start()
        assert post(server, "/chat/completions", ask("Tell me a story.", max_tokens=5))


def test_child_writes_nothing_and_knows_no_secret(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A served request leaves no text on our output, and keys are not passed on."""
    monkeypatch.setenv("SOME_API_KEY", "sk-secret")
    with LlamaCppServer(tiny()) as server:
        post(server, "/chat/completions", ask("Tell me a story.", max_tokens=5))
        assert "SOME_API_KEY" not in psutil.Process(server.pid).environ()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is not a GGUF file"),
        (b"PK\x03\x04 a zip file", "is not a GGUF file"),
        (TINY_MODEL.read_bytes()[:400_000], "llama.cpp cannot serve"),
        (b"GGUF" + bytes(100), "llama.cpp cannot serve"),
    ],
    ids=["missing", "empty", "no magic", "cut", "hollow"],
)
def test_bad_file_is_refused(content: bytes | None, words: str, tmp_path: pathlib.Path) -> None:
    """A file that is no model raises an error that names it, and leaves no process."""
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    server = LlamaCppServer(LlamaCppSettings(model_path=path))
    with pytest.raises(ConfigurationError, match=words) as caught:
        server.start()
    assert str(path) in caught.value.message
    assert server.pid is None


def test_folder_is_refused(tmp_path: pathlib.Path) -> None:
    """A folder in place of a file is refused with the system's reason."""
    with pytest.raises(ConfigurationError, match="directory"):
        LlamaCppServer(LlamaCppSettings(model_path=tmp_path)).start()


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without xllamacpp the error says what to install."""
    monkeypatch.setattr(llamacpp_server, "_PACKAGE", "a_package_that_is_not_there")
    with pytest.raises(ConfigurationError, match=r"sre-inference-gateway\[local\]"):
        LlamaCppServer(tiny()).start()


def test_loading_has_a_time_limit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that never answers is ended after `start_timeout`."""
    program = tmp_path / "silent.py"
    program.write_text("import sys; sys.stdin.read()")
    monkeypatch.setattr(llamacpp_server, "_CHILD_PROGRAM", program)
    server = LlamaCppServer(tiny(start_timeout=0.3))
    with pytest.raises(ConfigurationError, match=r"within 0\.3 s"):
        server.start()
    assert server.pid is None


def test_crash_while_loading_is_reported(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that dies of a signal becomes an error with its last words."""
    program = tmp_path / "crashing.py"
    program.write_text("import os; os.write(2, b'GGML_ASSERT failed'); os.abort()")
    monkeypatch.setattr(llamacpp_server, "_CHILD_PROGRAM", program)
    with pytest.raises(ConfigurationError, match=r"exit code -6; GGML_ASSERT failed"):
        LlamaCppServer(tiny()).start()


async def test_cancelled_start_ends_with_stop(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that is cancelled while a model loads is free at once; `stop` ends the child."""
    program = tmp_path / "silent.py"
    program.write_text("import sys; sys.stdin.read()")
    monkeypatch.setattr(llamacpp_server, "_CHILD_PROGRAM", program)
    server = LlamaCppServer(tiny())
    with anyio.move_on_after(0.3) as scope:
        await server.start_in_thread()
    assert scope.cancelled_caught
    child = psutil.Process(server.pid)
    await server.stop_in_thread()
    assert not child.is_running()


async def test_loading_leaves_the_event_loop_alone() -> None:
    """Tasks run on while a model is loaded."""
    server = LlamaCppServer(tiny())
    turns = 0
    async with anyio.create_task_group() as tasks:

        async def count() -> None:
            nonlocal turns
            while not server.is_running:
                turns += 1
                await anyio.sleep(0.001)

        tasks.start_soon(count)
        await server.start_in_thread()
    await server.stop_in_thread()
    assert turns > 5


def test_child_ends_with_its_parent() -> None:
    """When our end of the child's input closes, as it does when we die, the child ends."""
    with LlamaCppServer(tiny()) as server:
        process = server._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0


def test_equal_settings_share_one_server() -> None:
    """Two leases of equal settings use one process, which the last release ends."""
    first, second, other = (
        share_server(tiny()),
        share_server(tiny()),
        share_server(tiny(parallel=1)),
    )
    first.start()
    second.start()
    assert first.base_url == second.base_url
    assert other.server is not first.server
    other.release()
    first.release()
    first.release()
    assert second.is_running
    second.release()
    assert first.server.pid is None


def test_released_lease_is_closed() -> None:
    """A lease that was given back neither starts a server nor tells its address."""
    lease = share_server(tiny())
    lease.release()
    with pytest.raises(anyio.ClosedResourceError):
        lease.start()
    with pytest.raises(anyio.ClosedResourceError):
        _ = lease.base_url
    assert not lease.is_running


def test_many_threads_start_one_process() -> None:
    """Leases started at the same time from many threads get the same server."""
    pool = ServerPool()
    leases = [pool.lease(tiny()) for _ in range(8)]
    threads = [threading.Thread(target=lease.start) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({lease.base_url for lease in leases}) == 1
    assert len({lease.server.pid for lease in leases}) == 1
    for lease in leases:
        lease.release()
    assert not leases[0].server.is_running


@pytest.mark.parametrize(
    "wrong",
    [{"context_tokens": 0}, {"parallel": 0}, {"threads": 0}, {"max_output_tokens": 0}],
    ids=str,
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, int]) -> None:
    """A number that cannot work is refused with the name of the setting."""
    [name] = wrong
    with pytest.raises(ConfigurationError, match=name):
        LlamaCppSettings(model_path=TINY_MODEL, **wrong)  # type: ignore[arg-type]
