"""`Router`: the routing engine as its users see it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import anyio

from engine.acceptance import SYSTEM_RANDOM
from engine.config import GatewayConfig
from engine.configuration_edit import checked_configuration
from engine.errors import RouterClosedError
from engine.event_loop import native_clock
from engine.ledger import Ledger
from engine.model_catalogue import ModelCatalogue, ModelEntry
from engine.provider_lifetime import ProviderPool
from engine.registry import ProviderRegistry
from engine.request_run import RequestRun
from engine.router_controls import RouterControls
from engine.router_requests import RouterRequests
from engine.running_router import RunningRouter
from engine.status import RouterStatus
from engine.telemetry import Telemetry

if TYPE_CHECKING:
    from anyio.abc import TaskGroup
    from opentelemetry.trace import TracerProvider

    from engine.idempotency_store import IdempotencyStore
    from engine.reloader import Reloader
    from engine.request_record import RequestRecord
    from engine.router_requests import Accept

CLOSE_GRACE = 5.0
"""Seconds that callers have to take their answers when the router closes."""


class Router(RouterRequests, RouterControls):
    """Spreads requests over providers by weight and keeps serving when some fail.

    Use it as an async context manager: it owns every task and connection.

    ```python
    async with Router.from_config(config) as router:
        response = await router.complete({"model": "chat", "messages": [...]})
    ```

    Args:
        config: The configuration.
        registry: Providers by name; those it lacks are made by `ProviderFactory`. The
            router closes the ones it made, and no others.
        rng: Source of all random choices; None seeds one from `config.seed`.
        clock: Monotonic seconds; None takes the event loop's own clock.
        tracer_provider: Where spans go; None takes the process's provider.
        wall_clock: Seconds since 1970, for the dates in `explain`; None leaves them out.

    Raises:
        ConfigurationError: If a provider cannot be made as configured.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        registry: ProviderRegistry | None = None,
        rng: random.Random | None = None,
        clock: Callable[[], float] | None = None,
        tracer_provider: TracerProvider | None = None,
        wall_clock: Callable[[], float] | None = None,
    ) -> None:
        self._wall_clock = wall_clock
        self._config = config
        self._seed = config.seed if config.seed is not None else SYSTEM_RANDOM.getrandbits(64)
        self._rng = rng or random.Random(self._seed)
        self._draws_seed = rng is None and config.seed is None
        self._clock = clock
        self._telemetry = Telemetry(tracer_provider, propagate=config.telemetry.propagate)
        self._ledger = Ledger()
        self._pool = ProviderPool(registry)
        self._providers = {
            each.name: self._pool.provide(each) for each in config.providers if each.enabled
        }
        self._catalogue = ModelCatalogue(config, self._providers)
        self._running: RunningRouter | None = None
        self._group: TaskGroup | None = None
        self._entered = False
        self._accepting = False
        # One look-up instead of a question for each request: may it be accepted?
        self._accept: Accept = self._refuse

    @classmethod
    def from_config(cls, config: GatewayConfig | Mapping[str, Any], **options: Any) -> Self:
        """Make a router from a `GatewayConfig` or the same as a mapping.

        Args:
            config: The configuration.
            options: Further arguments of `Router`.

        Raises:
            ConfigurationError: If the configuration is wrong; says what and where.
        """
        return cls(checked_configuration(config), **options)

    # ── requests ─────────────────────────────────────────────────────────────────

    async def list_models(self) -> list[ModelEntry]:
        """The models that can be asked for, and who serves them.

        With configured models, those. Without, every provider is asked for its own; the
        answer is kept for a while, and a provider that cannot say is left out.
        """
        return await self._catalogue.list_models()

    def explain(self, request_id: str) -> dict[str, Any] | None:
        """The story of a request: choices, attempts, limits and outcome; None if unknown.

        The latest `history` requests are known, running ones included.
        """
        if self._running is None:
            return None
        record = self._running.history.find(request_id)
        return None if record is None else self._story(self._running, record)

    def recent_requests(self, count: int = 20) -> list[dict[str, Any]]:
        """The stories of the newest requests, the newest first."""
        if self._running is None:
            return []
        records = self._running.history.latest(count)
        return [self._story(self._running, record) for record in records]

    def _story(self, running: RunningRouter, record: RequestRecord) -> dict[str, Any]:
        wall = None if self._wall_clock is None else self._wall_clock()
        return record.as_dict(self._seed, running.now(), wall)

    def _idempotency(self) -> IdempotencyStore:
        if not self._accepting or self._running is None:
            self._refuse()
        return self._running.idempotency

    def _until(self, timeout: float | None) -> float | None:
        if timeout is None or self._running is None:
            return None
        return self._running.now() + timeout

    def _start_work(self, work: Callable[..., Any], *arguments: Any) -> None:
        assert self._group is not None
        self._group.start_soon(work, *arguments)

    def _refuse(self, *_: object) -> NoReturn:
        raise RouterClosedError(
            "the router is closing" if self._entered else "enter the router before using it"
        )

    # ── configuration ────────────────────────────────────────────────────────────

    @property
    def config(self) -> GatewayConfig:
        """The configuration that new requests are served by."""
        return self._config if self._running is None else self._running.reloader.current.config

    def _reloader(self) -> Reloader:
        if self._running is None:
            self._refuse()
        return self._running.reloader

    # ── state ────────────────────────────────────────────────────────────────────

    @property
    def ready(self) -> bool:
        """Whether requests can be served now."""
        return self._accepting and self._running is not None and self._running.can_serve

    def status(self) -> RouterStatus:
        """A snapshot of everything: requests in and out, and each actor's state."""
        if self._running is None:
            return RouterStatus(False, self._ledger.status(), (), self._seed)
        reloader, now = self._running.reloader, self._running.now()
        return RouterStatus(
            ready=self.ready,
            ledger=self._ledger.status(),
            actors=self._running.actor_statuses(now),
            seed=self._seed,
            generation=reloader.current.number,
            reloads=reloader.reloads,
            reload_error=reloader.error(now),
        )

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the configured models; empty when every name is served."""
        return tuple(model.name for model in self.config.models)

    # ── life ─────────────────────────────────────────────────────────────────────

    async def __aenter__(self) -> Self:
        if self._entered:
            msg = "a router can be entered once only: make another one"
            raise RuntimeError(msg)
        self._entered = True
        if self._draws_seed:
            # Again: processes forked since would otherwise all make the same choices.
            self._seed = SYSTEM_RANDOM.getrandbits(64)
            self._rng = random.Random(self._seed)
        try:
            running = RunningRouter(
                self._config,
                self._providers,
                pool=self._pool,
                catalogue=self._catalogue,
                ledger=self._ledger,
                telemetry=self._telemetry,
                clock=self._clock or native_clock(),
                rng=self._rng,
                start=self._start_work,
            )
            await self._pool.start(self._providers.values())
        except BaseException:
            await self._pool.close_all()
            raise
        self._running = running
        self._group = await anyio.create_task_group().__aenter__()
        self._group.start_soon(running.run)
        try:
            await running.started()
        except BaseException as error:
            # Cancelled while it is entered: nobody else would leave it.
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        self._accepting = True
        self._accept = running.acceptance.accept
        return self

    async def drain(self, seconds: float) -> bool:
        """Take no new requests, and wait until those in flight have ended.

        Returns:
            Whether all ended within `seconds`.
        """
        self._close_the_door()
        with anyio.move_on_after(seconds):
            await self._ledger.wait_empty()
        return self._ledger.in_flight == 0

    def _close_the_door(self) -> None:
        self._accepting = False
        self._accept = self._refuse
        if self._running is not None:
            self._running.reloader.close()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_the_door()
        assert self._group is not None
        assert self._running is not None
        # First the reason, then the cancellation: whoever is answered by it is told why.
        self._running.supervisor.stop()
        self._group.cancel_scope.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        finally:
            # Callers in other tasks have their answers; let them take them.
            with anyio.move_on_after(CLOSE_GRACE, shield=True):
                await self._ledger.wait_empty()
            # A stream that was read ahead to its end has no worker left to cut it.
            for run in self._ledger.entries():
                if isinstance(run, RequestRun):
                    run.cut("the gateway is closing")
            await self._pool.close_all()

    def __repr__(self) -> str:
        state = "open" if self._accepting else "closed"
        providers = sum(1 for provider in self.config.providers if provider.enabled)
        return f"Router({providers} providers, {self._ledger.in_flight} in flight, {state})"
