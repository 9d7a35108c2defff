"""`Reloader`: owns the current generation, and puts the next one in its place."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import anyio
import anyio.lowlevel

from engine.actor import ProviderActor
from engine.config import GatewayConfig, ProviderConfig
from engine.configuration_change import (
    ConfigurationChange,
    configuration_change,
    needs_new_actor,
)
from engine.errors import ConfigurationError, GatewayError, RouterClosedError
from engine.generation import Generation, make_generation
from engine.provider import BaseProvider
from engine.provider_lifetime import ProviderPool
from engine.retirement import Retirement
from engine.status import ActorState
from engine.supervisor import Supervisor

logger = logging.getLogger("engine.router")

START_LIMIT = 300.0
"""Seconds that new providers may take to start; a local model of 100 GB loads in less."""

LONGEST_LINE = 1_000
"""Changes that may wait for their turn; one more is refused."""

ROOM_GRACE = 10.0
"""Seconds beyond the drain limit that a change waits for earlier ones to be over."""


class Reloader:
    """Applies configurations, one at a time and in the order in which they were asked for.

    All that can fail is done first, beside the generation that serves: checking, making and
    starting providers, running their actors. Then one assignment puts the new generation in
    its place, with no wait before it is complete. Actors of providers that changed in
    nothing but weight and enabled flag are part of both.

    Args:
        first: The generation to begin with; its actors serve already.
        pool: Gives the providers.
        make_actor: Makes an actor for a provider.
        supervisor: Runs the actors.
        retirement: Lets those that leave finish.
        on_change: Told of each new generation at the instant in which it takes over; must
            not wait and must not fail.
        clock: The router's clock.
        rng: Source of the balancers' choices.

    Attributes:
        current: The generation that new requests are accepted with.
        reloads: Configurations that were applied after the first.
        closing: Whether the router closes, so that nothing more is applied.
    """

    def __init__(
        self,
        first: Generation,
        *,
        pool: ProviderPool,
        make_actor: Callable[[BaseProvider, GatewayConfig], ProviderActor],
        supervisor: Supervisor,
        retirement: Retirement,
        on_change: Callable[[Generation], None],
        clock: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.current = first
        self.reloads = 0
        self.closing = False
        self._pool = pool
        self._make_actor = make_actor
        self._supervisor = supervisor
        self._retirement = retirement
        self._on_change = on_change
        self._clock = clock
        self._rng = rng
        self._lock = anyio.Lock()
        self._under_way: anyio.CancelScope | None = None
        self._refused: tuple[str, float] | None = None

    def error(self, now: float) -> str | None:
        """Why and when the last change was refused; None if it was applied."""
        if self._refused is None:
            return None
        reason, at = self._refused
        return f"{max(0.0, now - at):.0f} s ago: {reason}"

    async def apply(self, make: Callable[[GatewayConfig], GatewayConfig]) -> ConfigurationChange:
        """Put another configuration in the place of the current one.

        Args:
            make: Makes it out of the one that serves when it is this change's turn.

        Raises:
            ConfigurationError: If it cannot serve; the current one goes on untouched.
            RouterClosedError: If the router is closing.
        """
        if self._lock.statistics().tasks_waiting >= LONGEST_LINE:
            raise ConfigurationError(f"{LONGEST_LINE} changes wait already: try again later")
        async with self._lock:
            self._refuse_if_closing()
            change: ConfigurationChange | None = None
            try:
                with anyio.CancelScope() as self._under_way:
                    change = await self._apply(make(self.current.config))
            except ConfigurationError as error:
                self._refused = error.message, self._clock()
                logger.warning("configuration refused, the old one serves: %s", error.message)
                raise
            finally:
                self._under_way = None
            if change is None:
                raise self._closed()
            self._refused = None
            self.reloads += 1
            return change

    def close(self) -> None:
        """Apply nothing more, for good; a change that is under way is given up."""
        self.closing = True
        if self._under_way is not None:
            self._under_way.cancel()

    @staticmethod
    def _closed() -> RouterClosedError:
        return RouterClosedError("the router is closing: its configuration stays as it is")

    def _refuse_if_closing(self) -> None:
        if self.closing:
            raise self._closed()

    async def _apply(self, config: GatewayConfig) -> ConfigurationChange:
        old = self.current
        if config == old.config:
            return ConfigurationChange()
        kept, missing = self._sort(config)
        if len(kept) < len(old.living):
            await self._wait_for_room(config)
        added = await self._begin(config, missing)
        try:
            self._refuse_if_closing()
            actors = {**kept, **added}
            new = make_generation(old.number + 1, config, actors, self._rng, previous=old)
        except BaseException:
            await self._give_up(added.values())
            raise
        # From here on nothing waits and nothing fails.
        self.current = new
        self._on_change(new)
        left = [actor for name, actor in old.living.items() if kept.get(name) is not actor]
        self._retirement.add(left, successor=new.number, limit=config.server.drain)
        return configuration_change(old.config, config)

    def _sort(self, config: GatewayConfig) -> tuple[dict[str, ProviderActor], list[ProviderConfig]]:
        """The actors that can stay, and the providers that need a new one."""
        before = {provider.name: provider for provider in self.current.config.providers}
        living = self.current.living
        kept: dict[str, ProviderActor] = {}
        missing: list[ProviderConfig] = []
        for provider in config.providers:
            name = provider.name
            actor = living.get(name)
            if (
                actor is not None
                and not needs_new_actor(before[name], provider)
                and self._pool.is_current(name, actor.provider)
            ):
                kept[name] = actor
            elif provider.enabled:
                missing.append(provider)
        return kept, missing

    async def _wait_for_room(self, config: GatewayConfig) -> None:
        limit = max(config.server.drain, self.current.config.server.drain) + ROOM_GRACE
        if not await self._retirement.wait_for_room(limit):
            raise ConfigurationError(
                "too many earlier changes still have requests to finish: try again later"
            )

    async def _begin(
        self, config: GatewayConfig, missing: Sequence[ProviderConfig]
    ) -> Mapping[str, ProviderActor]:
        """Make the new providers and run their actors; all of them, or none."""
        providers: list[BaseProvider] = []
        actors: dict[str, ProviderActor] = {}
        try:
            for each in missing:
                providers.append(self._provide(each))  # noqa: PERF401 - kept if the next fails
            await self._start(providers)
            for each, provider in zip(missing, providers, strict=True):
                actors[each.name] = self._make_actor(provider, config)
            for actor in actors.values():
                self._supervisor.add(actor)
            while any(actor.state is ActorState.STARTING for actor in actors.values()):
                await anyio.lowlevel.checkpoint()
        except BaseException:
            await self._give_up(actors.values(), providers)
            raise
        return actors

    def _provide(self, config: ProviderConfig) -> BaseProvider:
        try:
            return self._pool.renew(config)
        except ConfigurationError:
            raise
        except Exception as error:
            # The border: a provider's constructor may raise anything, with any text.
            msg = f"provider {config.name!r} cannot be made: {type(error).__name__}"
            raise ConfigurationError(msg) from error

    async def _start(self, providers: Sequence[BaseProvider]) -> None:
        try:
            with anyio.fail_after(START_LIMIT):
                await self._pool.start(providers)
        except TimeoutError:
            msg = f"the new providers did not start within {START_LIMIT:g} s"
            raise ConfigurationError(msg) from None
        except ConfigurationError:
            raise
        except GatewayError as error:
            raise ConfigurationError(error.message) from error
        except Exception as error:
            # The border: a provider's start may raise anything, with any text.
            msg = f"a new provider failed to start: {type(error).__name__}"
            raise ConfigurationError(msg) from error

    async def _give_up(
        self, actors: Iterable[ProviderActor], providers: Sequence[BaseProvider] = ()
    ) -> None:
        """End what was begun for a generation that will not be; also under cancellation."""
        with anyio.CancelScope(shield=True):
            begun = list(actors)
            for actor in begun:
                await self._supervisor.retire(actor)
            await self._pool.close(providers or [actor.provider for actor in begun])
