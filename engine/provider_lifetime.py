"""The providers of a router: where they come from, their start and their end."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import anyio

from engine.config import ProviderConfig
from engine.configuration_change import needs_new_actor
from engine.errors import ConfigurationError
from engine.factory import ProviderFactory
from engine.provider import BaseProvider
from engine.registry import ProviderRegistry

logger = logging.getLogger("engine.router")

CLOSE_GRACE = 5.0
"""Seconds that one provider may take to close before it is left behind."""

CLOSED_AT_ONCE = 16
"""Providers that are closed at the same time: one that hangs holds up few others."""


class ProviderPool:
    """Gives providers for configurations, and closes those it made itself.

    Providers that an application handed in stay its own: they are found by their name, and
    neither started nor closed here.

    Args:
        registry: The application's providers; None for none.
    """

    def __init__(self, registry: ProviderRegistry | None) -> None:
        self._registry = registry
        # By identity: an adapter may say that two of its objects are equal.
        self._own: dict[int, BaseProvider] = {}

    def provide(self, config: ProviderConfig) -> BaseProvider:
        """The application's provider of that name, or a new one.

        Raises:
            ConfigurationError: If the provider cannot be made as configured.
        """
        provider = self._handed_in(config.name)
        if provider is None:
            provider = ProviderFactory.create_provider(config)
            self._own[id(provider)] = provider
        return provider

    def renew(self, config: ProviderConfig) -> BaseProvider:
        """The same, for a configuration that is new or has changed.

        A provider of the application takes part with the configuration it was made with,
        so it must be the new one; only weight and enabled flag are the router's.

        Raises:
            ConfigurationError: If the provider cannot be made as configured, or is the
                application's and was made for another configuration.
        """
        provider = self._handed_in(config.name)
        if provider is not None and needs_new_actor(provider.config, config):
            raise ConfigurationError(
                f"provider {config.name!r} was handed in by the application, with other "
                "settings: register one that is made for the new settings, then reload"
            )
        return self.provide(config)

    def is_current(self, name: str, provider: BaseProvider) -> bool:
        """Whether the application has not registered another object in its place."""
        return self._handed_in(name) in (None, provider)

    async def start(self, providers: Iterable[BaseProvider]) -> None:
        """Start those of the providers that were made here.

        Raises:
            Exception: The first failure to start, as it came.
        """
        await start_providers(p for p in providers if id(p) in self._own)

    async def close(self, providers: Iterable[BaseProvider]) -> None:
        """Close those of the providers that were made here, and forget them."""
        own = [provider for p in providers if (provider := self._own.pop(id(p), None)) is not None]
        await close_providers(own)

    async def close_all(self) -> None:
        """Close everything that was made here."""
        await self.close(list(self._own.values()))

    def _handed_in(self, name: str) -> BaseProvider | None:
        if self._registry is None:
            return None
        try:
            return self._registry.get_provider(name)
        except KeyError:
            return None


async def start_providers(providers: Iterable[BaseProvider]) -> None:
    """Start all providers at the same time.

    Raises:
        Exception: The first failure to start, as it came.
    """
    # Most have nothing to start, and ten thousand tasks for that would cost a second.
    slow = [p for p in providers if type(p).start is not BaseProvider.start]
    failures: list[Exception] = []

    async def start(provider: BaseProvider) -> None:
        try:
            await provider.start()
        except Exception as error:  # noqa: BLE001 - raised below, without a group around it
            failures.append(error)

    async with anyio.create_task_group() as group:
        for provider in slow:
            group.start_soon(start, provider)
    if failures:
        raise failures[0]


async def close_providers(providers: Iterable[BaseProvider]) -> None:
    """Close all providers, also under cancellation; a failure is logged and passed over."""
    # Most have nothing to close.
    open_ones = [p for p in providers if type(p).aclose is not BaseProvider.aclose]
    waiting = iter(open_ones)
    with anyio.CancelScope(shield=True):
        async with anyio.create_task_group() as group:
            for _ in open_ones[:CLOSED_AT_ONCE]:
                group.start_soon(_close_each, waiting)


async def _close_each(waiting: Iterator[BaseProvider]) -> None:
    for provider in waiting:
        with anyio.move_on_after(CLOSE_GRACE):
            try:
                await provider.aclose()
            except Exception as error:  # noqa: BLE001 - one that cannot close must not keep the rest open
                logger.warning(
                    "provider %s failed to close: %s", provider.name, type(error).__name__
                )
