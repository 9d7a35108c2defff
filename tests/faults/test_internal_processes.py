"""What happens to the process: signals, no descriptors left, logs and collectors that hang."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_calls import CANARY_PROMPT
from fault_table import Row, shows
from gateway_process import SERVE, Answer, Callers, GatewayProcess, chat


def mock(name: str = "a", **options: Any) -> dict[str, Any]:
    """A mock provider."""
    return {"name": name, "type": "mock", "options": options}


def config(*providers: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A configuration over these; without a log unless it asks for one."""
    return {"providers": list(providers), "telemetry": {"logs": "none"}, **settings}


def is_served_or_told(answer: Answer) -> bool:
    """Whether it was answered, or refused in words, or found nobody to connect to."""
    if answer.status == 503:
        return "server_draining" in answer.body and "retry-after" in answer.headers
    return answer.status == 200 or "ConnectionRefused" in answer.body


@shows(Row(
    "N20", "SIGTERM under load", "the answer; after the drain has begun 503 `server_draining`, "
    "`Retry-After: 1`", "nothing", "the answer", "a success",
    "Readiness turns red first; what is in flight is finished for `server.drain` seconds.",
))  # fmt: skip
def test_n20_sigterm_under_load(tmp_path: Path) -> None:
    """N20: whoever was let in gets an answer, streams their end, and the exit code is 0."""
    providers = config(mock(latency=0.15, reply_tokens=10, tokens_per_second=20))
    with GatewayProcess(tmp_path, providers) as gateway:
        with Callers(gateway, 6) as callers, Callers(gateway, 6, stream=True) as readers:
            callers.wait_for(12)
            readers.wait_for(6)
            gateway.signal(signal.SIGTERM)
            assert gateway.wait() == 0
    answers = callers.answers + readers.answers
    assert [a.body for a in answers if not is_served_or_told(a)] == []
    for answer in readers.answers:
        if answer.status == 200:
            assert answer.body.endswith("data: [DONE]\n\n")
    assert sum(answer.status == 200 for answer in answers) >= 18 + 6


@shows(Row(
    "N21", "a second SIGTERM or SIGINT", "503 `server_draining`, or an error event",
    "nothing", "maybe", "not at all", "The end comes at once, with 128 and the signal's number "
    "as exit code.",
))  # fmt: skip
def test_n21_second_signal(tmp_path: Path) -> None:
    """N21: the second signal cuts what would have taken a minute."""
    with GatewayProcess(tmp_path, config(mock(latency=60))) as gateway:
        with waiting(gateway) as answers:
            gateway.signal(signal.SIGTERM)
            time.sleep(0.3)
            assert gateway.process.poll() is None
            begun = time.perf_counter()
            gateway.signal(signal.SIGINT)
            assert gateway.wait(20) == 128 + signal.SIGINT
            assert time.perf_counter() - begun < 8
    assert answers[0].status in {0, 503}


@contextlib.contextmanager
def waiting(gateway: GatewayProcess) -> Iterator[list[Answer]]:
    """While one request is under way; its answer is in the list afterwards."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(gateway.ask()), daemon=True)
    thread.start()
    end = time.perf_counter() + 20
    while gateway.ask("/status").json["ledger"]["in_flight"] < 1:
        assert time.perf_counter() < end
        time.sleep(0.01)
    yield answers
    thread.join(30)


@shows(Row(
    "N22", "one of several processes is killed", "a broken connection; those of other processes "
    "nothing", "nothing", "maybe", "not at all", "What it had taken in is lost with it: nothing "
    "is kept on disk.",
))  # fmt: skip
def test_n22_sigkill_of_one_process(tmp_path: Path) -> None:
    """N22: the callers of the killed process see a reset, and those of the other see nothing."""
    (tmp_path / "other").mkdir()
    slow = config(mock(latency=0.1))
    with (
        GatewayProcess(tmp_path, slow) as killed,
        GatewayProcess(tmp_path / "other", slow) as lives,
    ):
        with Callers(killed, 3) as unlucky, Callers(lives, 3) as lucky:
            unlucky.wait_for(6)
            lucky.wait_for(6)
            killed.signal(signal.SIGKILL)
            assert killed.wait() == -signal.SIGKILL
            lucky.wait_for(len(lucky.answers) + 6)
        assert {answer.status for answer in lucky.answers} == {200}
        assert [answer.status for answer in unlucky.answers[-3:]] == [0, 0, 0]
        assert {answer.status for answer in unlucky.answers[:-3]} == {200}
        # The port is free again at once, for whoever is started in its place.
        with socket.create_server(killed.address):
            pass
        assert lives.stop() == 0


@shows(Row(
    "N23", "SIGSTOP, and SIGCONT some seconds later", "504 `deadline_exceeded` where the deadline "
    "has passed, else the answer", "nothing", "maybe, if a call was under way", "not at all",
    "What has expired meanwhile is dropped without a call; limits hold afterwards.",
))  # fmt: skip
def test_n23_stopped_and_continued(tmp_path: Path) -> None:
    """N23: what has expired is answered so, the rest is served, one at a time as before."""
    one_place = mock(latency=0.2) | {"limits": {"concurrency": 1, "queue": 50}}
    models = [
        {"name": name, "targets": [{"provider": "a"}], "total": total}
        for name, total in (("short", 2), ("long", 30))
    ]
    answers: dict[str, list[Answer]] = {"short": [], "long": []}
    with GatewayProcess(tmp_path, config(one_place, models=models)) as gateway:
        assert gateway.ask(model="long").status == 200
        threads = [
            threading.Thread(target=lambda m=m: answers[m].append(gateway.ask(model=m)))
            for m in ["short", "long"] * 8
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        gateway.signal(signal.SIGSTOP)
        time.sleep(3)
        gateway.signal(signal.SIGCONT)
        for thread in threads:
            thread.join(30)
        assert {answer.status for answer in answers["long"]} == {200}
        assert {answer.status for answer in answers["short"]} <= {200, 503, 504}
        late = [a for a in answers["short"] if a.status == 504]
        assert len(late) >= 3
        assert {a.json["error"]["code"] for a in late} == {"deadline_exceeded"}
        status = gateway.ask("/status").json
        assert status["ledger"]["in_flight"] == 0
        assert gateway.stop() == 0


FEW_DESCRIPTORS = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
{SERVE}
"""


@shows(Row(
    "N18", "no file descriptor is left", "the answer on connections that are open; new ones wait "
    "or are closed", "nothing", "nothing", "not at all",
    "Nothing spins, and new connections are served as soon as some have closed.",
))  # fmt: skip
def test_n18_no_descriptors_left(tmp_path: Path) -> None:
    """N18: open connections are served, the loop rests, and the rest is served later."""
    with GatewayProcess(tmp_path, config(mock()), program=FEW_DESCRIPTORS) as gateway:
        first = http.client.HTTPConnection(*gateway.address, timeout=30)
        assert post(first) == 200
        with contextlib.ExitStack() as idle:
            for _ in range(60):
                idle.enter_context(socket.create_connection(gateway.address, timeout=10))
            time.sleep(0.3)
            process = psutil.Process(gateway.process.pid)
            assert process.num_fds() >= 40
            before = process.cpu_times()
            time.sleep(1.5)
            after = process.cpu_times()
            spent = after.user + after.system - before.user - before.system
            assert spent < 0.75
            assert post(first) == 200
        first.close()
        end = time.perf_counter() + 20
        while gateway.ask().status != 200:
            assert time.perf_counter() < end
            time.sleep(0.05)
        assert gateway.stop() == 0


def post(connection: http.client.HTTPConnection) -> int:
    """Ask on a connection that stays open; the status."""
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", chat(), headers)
    response = connection.getresponse()
    response.read()
    return response.status


@contextlib.contextmanager
def stdout_like(kind: str) -> Iterator[int]:
    """A file descriptor that takes no lines: full, without a reader, or on a full disk."""
    if kind == "full disk":
        descriptor = os.open("/dev/full", os.O_WRONLY)
        yield descriptor
        os.close(descriptor)
        return
    reader, writer = os.pipe()
    if kind == "blocked":
        os.set_blocking(writer, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"x" * 4_096)
        os.set_blocking(writer, True)
    else:
        os.close(reader)
    yield writer
    os.close(writer)
    if kind == "blocked":
        os.close(reader)


@pytest.mark.parametrize("kind", ["blocked", "no reader", "full disk"])
@shows(Row(
    "N17", "the log's disk is full, its pipe blocked, or stdout closed", "the answer",
    "not needed", "the answer", "a success", "At most 10,000 lines wait; what is lost is counted, "
    "and told when lines are taken again.",
))  # fmt: skip
def test_n17_log_that_takes_nothing(tmp_path: Path, kind: str) -> None:
    """N17: requests are answered and the end comes, wherever the lines go."""
    settings = config(mock()) | {"telemetry": {"logs": "json"}}
    with stdout_like(kind) as stdout, GatewayProcess(tmp_path, settings, stdout=stdout) as gateway:
        with Callers(gateway, 4) as callers:
            callers.wait_for(100)
        assert {answer.status for answer in callers.answers} == {200}
        assert gateway.stop(20) == 0
    assert CANARY_PROMPT not in "\n".join(gateway.said)


class Collector:
    """A port where a collector of telemetry is said to be: refuses, or hangs.

    Args:
        kind: Which of these.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._open: list[socket.socket] = []
        if kind == "refused":
            self._socket.close()
        else:
            threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)

    def close(self) -> None:
        """Let go of everything."""
        with contextlib.suppress(OSError):
            # Wakes who accepts, too.
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for connection in self._open:
            connection.close()


@pytest.mark.parametrize("kind", ["refused", "hangs"])
@shows(
    Row("N15", "the collector of telemetry is down, hangs, is slow or refuses", "the answer",
        "not needed", "the answer", "a success",
        "Spans are sent by a thread from a queue of 2,048; what does not fit is dropped."),
    Row("N16", "the collector hangs as the process ends", "nothing", "nothing", "nothing",
        "not at all", "It is given 2 s."),
)  # fmt: skip
def test_n15_n16_collector_that_fails(tmp_path: Path, kind: str) -> None:
    """N15, N16: requests are answered as ever, and the end waits 2 s for it, not longer."""
    collector = Collector(kind)
    telemetry = {"logs": "none", "exporter": "otlp", "endpoint": collector.url}
    try:
        with GatewayProcess(
            tmp_path,
            config(mock()) | {"telemetry": telemetry},
            OTEL_BSP_SCHEDULE_DELAY="50",
            OTEL_BSP_MAX_QUEUE_SIZE="64",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="32",
        ) as gateway:
            with Callers(gateway, 4) as callers:
                callers.wait_for(120)
            assert {answer.status for answer in callers.answers} == {200}
            quick = sorted(answer.seconds for answer in callers.answers)
            # A collector's time-out is 2 s: nobody waits for it.
            assert quick[len(quick) * 9 // 10] < 1
            begun = time.perf_counter()
            assert gateway.stop(30) == 0
            assert time.perf_counter() - begun < 8
        assert collector.connections > 0 or kind == "refused"
        assert CANARY_PROMPT not in "\n".join(gateway.said)
    finally:
        collector.close()
