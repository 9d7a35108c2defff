"""What all tests share: event loops, virtual time, and the check that nothing is left behind."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import sniffio
import trio.lowlevel
import trio.testing
import uvloop
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


def pytest_sessionstart() -> None:
    """Let libuv open the pipe that all its loops share, or the first test would be blamed."""
    uvloop.new_event_loop().close()


def _descriptors() -> Counter[str]:
    """What this process holds open: sockets, pipes, files, event queues."""
    found: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{entry}")] += 1
        except OSError:
            # The descriptor of the listing itself.
            continue
    return found


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon and thread.is_alive()}


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves descriptors open, or threads that keep the process alive.

    The event loop's own descriptors come with anyio's test runner, so the comparison is
    made outside of it; tasks are looked at inside, by `pytest_pyfunc_call`.
    """
    if request.node.get_closest_marker("shares_a_server"):
        yield
        return
    descriptors, threads = _descriptors(), _threads()
    yield
    end = time.perf_counter() + 2
    while True:
        leaked = _descriptors() - descriptors
        stray = _threads() - threads
        if not leaked and not stray:
            return
        if time.perf_counter() > end:
            break
        gc.collect()
        time.sleep(0.02)
    pytest.fail(f"left behind: {dict(leaked)}, threads {sorted(t.name for t in stray)}")


def _living_tasks() -> int:
    """Tasks of the running event loop."""
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_statistics().tasks_living
    return len(asyncio.all_tasks())


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Fail an async test that leaves tasks behind on its event loop."""
    test = pyfuncitem.obj
    if inspect.iscoroutinefunction(test):

        @functools.wraps(test)
        async def without_leaks(*arguments: Any, **named: Any) -> None:
            before = _living_tasks()
            await test(*arguments, **named)
            with anyio.move_on_after(2):
                while _living_tasks() > before:  # noqa: ASYNC110 - nobody tells of a task's end
                    await anyio.sleep(0.005)
            left = _living_tasks() - before
            assert left <= 0, f"left behind: {left} tasks"

        pyfuncitem.obj = without_leaks
    yield
