"""A serving process under load: its configuration is changed, and its end comes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from serving_process import Client, ServingProcess, Tally, chat, terminate

pytestmark = pytest.mark.anyio

RELOADS = 50
STEADY = {"options": {"latency": 0.005}}


@pytest.fixture
def anyio_backend() -> Any:
    """The clients run on one event loop; the gateway has its own."""
    return "asyncio", {"use_uvloop": True}


def provider(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "mock", **STEADY, **more}


def configuration(
    *providers: dict[str, Any], drain: float = 15, pre_stop: float = 0, watch: bool = False
) -> dict[str, Any]:
    server = {"port": 0, "admin_port": 0, "drain": drain, "pre_stop": pre_stop, "watch": watch}
    return {
        "server": server,
        "providers": list(providers) or [provider("first", weight=3), provider("second")],
    }


Start = Callable[..., ServingProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a gateway; ended with the test."""
    started: list[ServingProcess] = []

    def make(config: dict[str, Any]) -> ServingProcess:
        started.append(ServingProcess(tmp_path / "gateway.yaml", config))
        assert started[-1].url
        return started[-1]

    yield make
    for each in started:
        each.close()


class Load:
    """Clients that ask without a pause, until nobody listens or they are told to stop."""

    def __init__(self, gateway: ServingProcess) -> None:
        self.tally = Tally()
        self.stopped = False
        self._port = gateway.port

    async def ask_on(self, request: bytes) -> None:
        async with Client(self._port, self.tally) as client:
            while not self.stopped and await client.ask(request):
                pass

    async def ask_once(self, request: bytes) -> None:
        async with Client(self._port, self.tally) as client:
            assert await client.ask(request)

    def start(self, group: anyio.abc.TaskGroup, *, askers: int = 6, streams: int = 2) -> None:
        for _ in range(askers):
            group.start_soon(self.ask_on, chat())
        for _ in range(streams):
            group.start_soon(self.ask_on, chat(stream=True))

    async def until_answers(self, count: int) -> None:
        with anyio.fail_after(15):
            while sum(self.tally.statuses.values()) < count:  # noqa: ASYNC110 - looks from outside
                await anyio.sleep(0.01)


# ── reloads ──────────────────────────────────────────────────────────────────────


def versions() -> list[dict[str, Any]]:
    """Configurations that differ from each other in all that a reload may change."""
    slow = {"options": {"reply_tokens": 20, "tokens_per_second": 100}}
    first, second, third = (provider(name) for name in ("first", "second", "third"))
    return [
        configuration({**first, "weight": 1}, second),
        configuration({**first, "weight": 5}, second, third),
        configuration(second, {**third, **slow}),
        configuration({**first, "timeout": 20}, {**second, "enabled": False}, third),
        configuration({**first, **slow}, {**second, "weight": 0}),
        {**configuration(first, third), "balancer": "smooth_weighted"},
        configuration(first, {**second, "limits": {"concurrency": 8}}, drain=20),
    ]


async def test_50_reloads_under_load_lose_nothing(start: Start) -> None:
    """By SIGHUP and by the admin route in turn; streams run across them."""
    gateway = start(configuration())
    load, changes = Load(gateway), versions()
    async with (
        anyio.create_task_group() as group,
        httpx.AsyncClient(trust_env=False, verify=False, timeout=20) as admin,
    ):
        load.start(group)
        await load.until_answers(20)
        for number in range(RELOADS):
            gateway.write(changes[number % len(changes)])
            generation = number + 2
            if number % 2:
                answer = await admin.post(f"{gateway.admin}/admin/reload")
                assert answer.status_code == 200, answer.text
                assert answer.json()["generation"] == generation
            else:
                gateway.send(signal.SIGHUP)
                await gateway.until(lambda status, wanted=generation: (  # type: ignore[misc]
                    status["generation"] == wanted
                ))  # fmt: skip
        load.stopped = True
    status = await gateway.status()
    assert status["reload_error"] is None
    assert status["ledger"]["conservation_error"] == 0
    assert load.tally.lost == {}
    assert set(load.tally.statuses) == {200}
    assert set(load.tally.streams) == {"done"}
    assert sum(load.tally.statuses.values()) == status["ledger"]["accepted"]
    terminate(gateway)
    assert gateway.ends(15) == 0


@pytest.mark.parametrize(
    "bad",
    [
        "providers: [",
        "providers: []\n",
        "providers:\n  - {name: first, type: mock, wieght: 3}\n",
        "providers:\n  - {name: a, type: mock}\n  - {name: a, type: mock}\n",
        "providers:\n  - {name: a, type: mock, weight: 0}\n",
        "providers:\n  - {name: a, type: openai, api_key_env: NOT_SET_ANYWHERE}\n",
    ],
)
async def test_n11_a_bad_file_keeps_the_old_configuration(start: Start, bad: str) -> None:
    """The reason is in the log, a line each, and in the status, with file and line."""
    gateway = start(configuration())
    load = Load(gateway)
    async with anyio.create_task_group() as group:
        load.start(group, askers=2, streams=0)
        await load.until_answers(5)
        gateway.write(bad)
        gateway.send(signal.SIGHUP)
        await gateway.until(lambda status: status["reload_error"] is not None)
        status = await gateway.status()
        assert "gateway.yaml" in status["reload_error"]
        assert status["generation"] == 1
        await load.until_answers(sum(load.tally.statuses.values()) + 10)
        gateway.write(configuration(provider("first", weight=1)))
        gateway.send(signal.SIGHUP)
        await gateway.until(lambda status: status["generation"] == 2)
        load.stopped = True
    assert (await gateway.status())["reload_error"] is None
    assert (load.tally.lost, set(load.tally.statuses)) == ({}, {200})
    said = "\n".join(gateway.said)
    assert "the old configuration serves on" in said
    assert "Traceback" not in said


async def test_a_watched_file_is_applied_by_itself(start: Start) -> None:
    """`server.watch` needs nobody to ask."""
    gateway = start(configuration(watch=True))
    gateway.write(configuration(provider("other"), watch=True))
    await gateway.until(lambda status: status["actors"][0]["name"] == "other")


async def test_what_needs_a_restart_is_told(start: Start) -> None:
    """The rest of the file is applied, the port is not."""
    gateway = start(configuration())
    changed = configuration(provider("other"))
    changed["server"]["port"] = 1
    gateway.write(changed)
    gateway.send(signal.SIGHUP)
    await gateway.until(lambda status: bool(status["waiting_for_restart"]))
    status = await gateway.status()
    assert status["waiting_for_restart"] == ["~ server.port 0 -> 1 (needs a restart)"]
    assert [actor["name"] for actor in status["actors"]] == ["other"]
    async with httpx.AsyncClient(trust_env=False, verify=False) as client:
        assert (await client.get(f"{gateway.url}/readyz")).status_code == 200


async def test_a_storm_of_signals_is_a_few_reloads(start: Start) -> None:
    """Signals that come during a reload are one more, not a queue."""
    gateway = start(configuration())
    for number in range(100):
        gateway.write(configuration(provider("first", weight=number + 1)))
        gateway.send(signal.SIGHUP)
    await gateway.until(lambda status: status["actors"][0]["weight"] == 100)
    assert (await gateway.status())["generation"] <= 101


# ── the end ──────────────────────────────────────────────────────────────────────

SLOW = {"options": {"reply_tokens": 30, "tokens_per_second": 20}}


async def test_sigterm_under_load_loses_nothing(start: Start) -> None:
    """Readiness is red at once, everybody is served or told, and no stream is cut."""
    gateway = start(configuration(provider("first"), provider("second", **SLOW), pre_stop=3))
    load = Load(gateway)
    async with (
        anyio.create_task_group() as group,
        httpx.AsyncClient(trust_env=False, verify=False) as probe,
    ):
        load.start(group, askers=8, streams=8)
        await load.until_answers(50)
        terminate(gateway)
        await gateway.until(lambda status: bool(status["draining"]))
        assert (await probe.get(f"{gateway.url}/readyz")).status_code == 503
        assert (await probe.get(f"{gateway.url}/healthz")).status_code == 200
        await load.until_answers(sum(load.tally.statuses.values()) + 20)
        assert set(load.tally.statuses) == {200}
    assert load.tally.lost == {}
    assert set(load.tally.statuses) <= {200, 503}
    assert set(load.tally.streams) == {"done"}
    assert gateway.ends(20) == 0
    assert "Traceback" not in "\n".join(gateway.said)


async def test_at_the_drain_limit_streams_end_with_an_error(start: Start) -> None:
    """One error event and no end marker; who waits for a whole answer gets 503."""
    endless = provider("first", options={"reply_tokens": 10_000, "tokens_per_second": 20})
    gateway = start(configuration(endless, drain=1))
    load = Load(gateway)
    async with anyio.create_task_group() as group:
        for stream in (True, True, False):
            group.start_soon(load.ask_once, chat(stream=stream))
        await gateway.until(lambda status: status["actors"][0]["in_flight"] == 3)
        began = time.monotonic()
        terminate(gateway)
    assert load.tally.lost == {}
    assert load.tally.streams == {"error": 2}
    assert load.tally.statuses == {200: 2, 503: 1}
    assert gateway.ends(15) == 1
    assert 1 <= time.monotonic() - began < 10


async def test_a_reload_sets_the_drain_limit(start: Start) -> None:
    """`server.drain` is applied without a restart."""
    endless = provider("first", options={"reply_tokens": 10_000, "tokens_per_second": 20})
    gateway = start(configuration(endless, drain=600))
    load = Load(gateway)
    async with anyio.create_task_group() as group:
        group.start_soon(load.ask_once, chat(stream=True))
        await gateway.until(lambda status: status["actors"][0]["in_flight"] == 1)
        gateway.write(configuration(endless, drain=0.5))
        gateway.send(signal.SIGHUP)
        await gateway.until(lambda status: status["generation"] == 2)
        terminate(gateway)
    assert load.tally.streams == {"error": 1}
    assert gateway.ends(15) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_at_once(start: Start, number: signal.Signals) -> None:
    """128 and the number of the signal, as shells count."""
    endless = provider("first", options={"reply_tokens": 10_000, "tokens_per_second": 20})
    gateway = start(configuration(endless, drain=600))
    load = Load(gateway)
    async with anyio.create_task_group() as group:
        group.start_soon(load.ask_once, chat(stream=True))
        await gateway.until(lambda status: status["actors"][0]["in_flight"] == 1)
        terminate(gateway)
        await gateway.until(lambda status: bool(status["draining"]))
        gateway.send(number)
    assert gateway.ends(10) == 128 + number


async def test_sighup_during_the_drain_does_no_harm(start: Start) -> None:
    """It neither changes anything nor ends the process before its time."""
    gateway = start(configuration(provider("first", **SLOW)))
    load = Load(gateway)
    async with anyio.create_task_group() as group:
        group.start_soon(load.ask_once, chat(stream=True))
        await gateway.until(lambda status: status["actors"][0]["in_flight"] == 1)
        terminate(gateway)
        await gateway.until(lambda status: bool(status["draining"]))
        gateway.write(configuration(provider("other")))
        gateway.send(signal.SIGHUP)
        async with httpx.AsyncClient(trust_env=False, verify=False) as admin:
            answer = await admin.post(f"{gateway.admin}/admin/reload")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "router_closed")
        assert (await gateway.status())["generation"] == 1
    assert load.tally.streams == {"done": 1}
    assert gateway.ends(15) == 0


STUCK = textwrap.dedent(
    """
    import sys
    from adapters.frontdoor.listening_socket import open_listening_socket
    from adapters.frontdoor.server import run_server

    async def app(scope, receive, send):
        while scope["type"] == "http":
            pass

    listener = open_listening_socket("127.0.0.1", 0)
    port = listener.getsockname()[1]
    run_server(app, listener=listener, on_started=lambda: print(port, flush=True))
    """
)


def test_the_watchdog_ends_a_process_whose_event_loop_is_stuck() -> None:
    """No signal reaches such a loop; the process is gone all the same."""
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        address = "127.0.0.1", int(process.stdout.readline())
        with socket.create_connection(address, timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: gateway\r\n\r\n")
            client.settimeout(0.5)
            with pytest.raises(TimeoutError):
                client.recv(1)
            process.send_signal(signal.SIGTERM)
            # Two signals of a kind that nobody has taken yet are one.
            with pytest.raises(TimeoutError):
                client.recv(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 70
