"""What all tests share: event loops, virtual time, and the check that nothing is left behind."""

from __future__ import annotations

import gc
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio.testing
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

ASYNCIO = pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio")
UVLOOP = pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop")
TRIO = pytest.param(("trio", {}), id="trio")


@pytest.fixture(params=[ASYNCIO, UVLOOP, TRIO])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Every event loop that the engine supports; a module may narrow it by its own fixture."""
    return request.param


@pytest.fixture
def rng() -> random.Random:
    """Chance that repeats."""
    return random.Random(20_240_229)


@pytest.fixture
def free_port() -> int:
    """A port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Finished spans of the provider that `tracer_provider` gives."""
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


@pytest.fixture
def tracer_provider(spans: InMemorySpanExporter) -> Iterator[TracerProvider]:
    """A tracer provider that records into `spans`."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider
    provider.shutdown()


@pytest.fixture
def virtual_time() -> Callable[..., None]:
    """Run a coroutine function on trio in virtual time: an hour passes at once."""

    def run(main: Callable[..., Any], *arguments: Any) -> None:
        trio.run(main, *arguments, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


def _open_sockets() -> set[str]:
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon and thread.is_alive()}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves sockets, or threads that keep the process alive, open.

    Tasks need no look of their own: anyio's task groups end theirs, and its test runner
    cancels and reports what is left on the loop. The event loop's own sockets come with
    the runner, so the comparison is made outside of it.
    """
    if request.node.get_closest_marker("shares_a_server"):
        yield
        return
    sockets, threads = _open_sockets(), _threads()
    yield
    end = time.perf_counter() + 2
    while True:
        leaked = _open_sockets() - sockets
        stray = _threads() - threads
        if not leaked and not stray:
            return
        if time.perf_counter() > end:
            break
        gc.collect()
        time.sleep(0.02)
    pytest.fail(f"left behind: {len(leaked)} sockets, threads {sorted(t.name for t in stray)}")
