"""Starting and stopping telemetry; nothing of it happens when a module is imported."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from adapters.observability.library_logs import LibraryLogHandler
from engine.config import TelemetryConfig
from engine.errors import ConfigurationError

SHUTDOWN = 2.0
"""Seconds that a collector is given at the end, whatever it does."""


class Stoppable(Protocol):
    """A provider of the OpenTelemetry SDK, as far as it matters here."""

    def shutdown(self) -> None:
        """Export what is left; may take long."""


class Writer(Protocol):
    """Something that writes in a thread of its own."""

    def finish(self, timeout: float) -> bool:
        """Write what waits, at most `timeout` seconds; whether all was written."""
        ...


class Observability:
    """What `start_observability` started.

    Args:
        providers: Providers of the OpenTelemetry SDK, to be stopped at the end.
        writers: What writes for them, to be finished after that.
    """

    def __init__(self, providers: list[Stoppable], writers: list[Writer]) -> None:
        self._providers = providers
        self._writers = writers
        self._done = False

    def shutdown(self, timeout: float = SHUTDOWN) -> bool:
        """Send what is left and stop; at most `timeout` seconds, whatever the collector does.

        Blocks that long: call it when the event loop has ended, or from a thread.

        Returns:
            Whether everything ended in time. What hangs is left in daemon threads, which
            end with the process.
        """
        if self._done:
            return True
        self._done = True
        deadline = time.perf_counter() + timeout
        in_time = _run_all([provider.shutdown for provider in self._providers], timeout)
        for writer in self._writers:
            if isinstance(writer, logging.Handler):
                logging.getLogger().removeHandler(writer)
            in_time &= writer.finish(max(0.1, deadline - time.perf_counter()))
        return in_time


def _run_all(calls: list[Callable[[], None]], timeout: float) -> bool:
    """Run each call in a daemon thread; whether all ended within `timeout` seconds."""
    threads = [threading.Thread(target=call, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    deadline = time.perf_counter() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.perf_counter()))
    return not any(thread.is_alive() for thread in threads)


def start_observability(config: TelemetryConfig) -> Observability:
    """Install the OpenTelemetry SDK as configured, and keep library warnings off the loop.

    With `exporter: none` no SDK is loaded, and the engine's spans cost nothing. Call it
    once per process, after any fork, and `shutdown` what it returns.

    Raises:
        ConfigurationError: If the `OTEL_*` variables or the endpoint cannot be used.
    """
    writers: list[Writer] = []
    if config.logs != "none":
        handler = LibraryLogHandler(config.logs)
        logging.getLogger().addHandler(handler)
        writers.append(handler)
    if config.exporter == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Observability([], writers)
    # The SDK takes a quarter of a second to import; who exports nothing does not pay it.
    from adapters.observability.exporters import install_exporters  # noqa: PLC0415

    try:
        providers, more_writers = install_exporters(config)
    except ValueError as error:
        Observability([], writers).shutdown()
        if isinstance(error, ConfigurationError):
            raise
        msg = f"telemetry cannot start: {error}; see the OTEL_* variables"
        raise ConfigurationError(msg) from error
    return Observability(providers, [*more_writers, *writers])
