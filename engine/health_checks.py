"""`HealthChecks`: asks one provider at intervals whether it is well, beside its requests."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from engine.errors import ConfigurationError
from engine.provider import BaseProvider
from engine.resilience.health import ProviderHealth
from engine.telemetry import error_type
from engine.worker_pool import cancelled_from_outside

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from engine.config import HealthCheckConfig

JITTER = 0.2
"""Part of the interval by which each pause is longer or shorter, so that the checks of many
gateways that were started together drift apart."""

TIMED_OUT = "timeout"
"""The word for a check that took too long."""


class HealthChecks:
    """The active checks of one provider; none without `health_check` in its configuration.

    A check is no attempt: it takes no place, no token of a rate limit and no retry, and is
    counted nowhere but in the provider's health. One runs at a time, in the actor's own
    group of tasks, so that checks end with the actor. They go on while the router drains:
    what is in flight then may still be sent elsewhere, and health says where to.

    Args:
        provider: Who is asked.
        health: Who is told.
        clock: The router's clock, seconds.
        rng: Source of the jitter.

    Raises:
        ConfigurationError: If checks are configured for a provider that cannot be checked.
    """

    def __init__(
        self,
        provider: BaseProvider,
        health: ProviderHealth,
        *,
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._provider = provider
        self._health = health
        self._config = provider.config.health_check
        self._clock = clock
        self._rng = rng
        if self._config is not None and type(provider).check_health is BaseProvider.check_health:
            msg = (
                f"provider {provider.name!r} of type {provider.config.type!r} cannot be checked: "
                "remove its health_check"
            )
            raise ConfigurationError(msg)

    def start(self, group: TaskGroup) -> None:
        """Begin to check in a group of tasks, whose cancellation ends it."""
        if self._config is not None:
            group.start_soon(self._run, self._config)

    async def _run(self, config: HealthCheckConfig) -> None:
        # Not at once: many providers, or replicas of the gateway, begin at the same moment.
        await anyio.sleep(config.interval * self._rng.random())
        while True:
            # Whoever is being stopped begins nothing new.
            await anyio.lowlevel.checkpoint_if_cancelled()
            started = self._clock()
            failure = await self._check(config)
            now = self._clock()
            self._health.note_check(failure is None, now, config.failures, why=failure)
            pause = config.interval * self._rng.uniform(1 - JITTER, 1 + JITTER)
            await anyio.sleep(max(0.0, started + pause - now))

    async def _check(self, config: HealthCheckConfig) -> str | None:
        """Check once: None if the provider is well, else a word of low cardinality."""
        failure: str | None = None
        with anyio.move_on_after(config.timeout) as scope:
            try:
                await self._provider.check_health(config.path)
            except anyio.get_cancelled_exc_class() as error:
                if scope.cancel_called or cancelled_from_outside():
                    raise
                # The adapter made it up, and so it ends no task of ours.
                failure = error_type(error)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - the border: an adapter may raise anything
                failure = error_type(error)
        # Also for an adapter that goes on when it is cancelled and comes back later.
        return TIMED_OUT if scope.cancel_called else failure
