"""`ConfigurationReload`: reads the configuration file again and puts it into service.

Whoever asks for it (SIGHUP, the admin route, the watch on the file) gets the same: the whole
file is read and checked before anything changes, and with any mistake in it nothing changes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread

from adapters.configuration.findings import ConfigurationFileError
from adapters.configuration.loader import load_config
from engine.config import GatewayConfig
from engine.configuration_change import ChangeEntry, ConfigurationChange, configuration_change
from engine.errors import ConfigurationError, GatewayError, RejectedError

logger = logging.getLogger(__name__)

LONGEST_LINE = 16
"""Reloads that may wait for their turn; one more is refused."""

SHOWN_FINDINGS = 10
"""Findings of a refused file that the status tells; the log has all of them."""


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload did.

    Attributes:
        change: What differs from the configuration that served before.
        waiting: What differs from the configuration that the process was started with, and
            is applied by a restart only.
    """

    change: ConfigurationChange
    waiting: tuple[ChangeEntry, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            **self.change.as_dict(),
            "needs_restart": bool(self.waiting),
            "waiting_for_restart": [entry.field for entry in self.waiting],
        }


def _as_it_is(config: GatewayConfig) -> GatewayConfig:
    return config


class ConfigurationReload:
    """Applies one file, one reload at a time.

    Args:
        path: The file.
        started_with: What the process was started with.
        apply: Puts a configuration into service, as a whole or not at all.
        adjust: Changes a configuration as the command line did at the start.
        clock: Monotonic seconds.
        load: Reads and checks a file; runs in a thread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        started_with: GatewayConfig,
        apply: Callable[[GatewayConfig], Awaitable[ConfigurationChange]],
        adjust: Callable[[GatewayConfig], GatewayConfig] = _as_it_is,
        clock: Callable[[], float] = anyio.current_time,
        load: Callable[[str | os.PathLike[str]], GatewayConfig] = load_config,
    ) -> None:
        self.path = path
        self._started_with = started_with
        self._apply = apply
        self._adjust = adjust
        self._clock = clock
        self._load = load
        self._lock = anyio.Lock()
        self._refused: tuple[str, float] | None = None
        self._waiting: tuple[ChangeEntry, ...] = ()

    @property
    def error(self) -> str | None:
        """When and why the file was refused; None if it serves."""
        if self._refused is None:
            return None
        reason, at = self._refused
        return f"{max(0.0, self._clock() - at):.0f} s ago: {reason}"

    @property
    def waiting(self) -> tuple[str, ...]:
        """Settings of the file that only a restart applies, in words."""
        return tuple(str(entry) for entry in self._waiting)

    async def reload(self, cause: str) -> ReloadReport:
        """Read the file and put it into service.

        Args:
            cause: Who asked for it, for the log.

        Raises:
            ConfigurationError: If the file cannot be used, with all that is wrong with it
                (`ConfigurationFileError`), or a provider cannot start. The old
                configuration serves on.
            RejectedError: If too many reloads wait already, or the gateway is shutting down.
        """
        if self._lock.statistics().tasks_waiting >= LONGEST_LINE:
            msg = f"{LONGEST_LINE} reloads wait already: ask again later"
            raise RejectedError(msg, reason="reloads_queued")
        async with self._lock:
            try:
                # In a thread: a large file takes a while, and a file system may hang.
                loaded = await anyio.to_thread.run_sync(
                    self._load, self.path, abandon_on_cancel=True
                )
                config = self._adjust(loaded)
                change = await self._apply(config)
            except ConfigurationError as error:
                self._refuse(error, cause)
                raise
            self._refused = None
            self._waiting = configuration_change(self._started_with, config).needs_restart
            self._log(cause, change)
            return ReloadReport(change, self._waiting)

    async def try_reload(self, cause: str) -> None:
        """The same for those who cannot be told: failures are logged and in `error`."""
        try:
            await self.reload(cause)
        except ConfigurationError:
            # Logged and kept by `reload`.
            return
        except GatewayError as error:
            logger.warning("%s: nothing reloaded: %s", cause, error.message)
        except Exception as error:
            # The border: a mistake of ours must not end a gateway that serves.
            logger.exception("%s: the reload failed", cause)
            self._refused = f"internal error: {type(error).__name__}", self._clock()

    def _refuse(self, error: ConfigurationError, cause: str) -> None:
        found = [str(each) for each in error.findings] if (
            isinstance(error, ConfigurationFileError)
        ) else [error.message]  # fmt: skip
        logger.error("%s: %s refused, the old configuration serves on", cause, self.path)
        for line in found:
            logger.error("%s", line)
        more = len(found) - SHOWN_FINDINGS
        shown = [*found[:SHOWN_FINDINGS], f"and {more} more"] if more > 0 else found
        self._refused = "; ".join(shown), self._clock()

    def _log(self, cause: str, change: ConfigurationChange) -> None:
        if not change:
            logger.info("%s: %s read, nothing changes", cause, self.path)
        for entry in change.entries:
            if not entry.needs_restart:
                logger.info("%s: %s", cause, entry)
        for entry in self._waiting:
            logger.warning("%s: %s", cause, entry)
