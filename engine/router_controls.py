"""`RouterControls`: what can be changed on a router while it serves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.config import GatewayConfig
from engine.configuration_change import ConfigurationChange
from engine.configuration_edit import (
    checked_configuration,
    known_provider,
    with_enabled,
    with_weight,
)

if TYPE_CHECKING:
    from engine.actor import ProviderActor
    from engine.reloader import Reloader


class RouterControls(ABC):
    """Reloads, weights, switches and ejections, all by the same rules."""

    @abstractmethod
    def _reloader(self) -> Reloader:
        """The holder of the current generation.

        Raises:
            RouterClosedError: If the router was not entered.
        """

    async def reload(self, config: GatewayConfig | Mapping[str, Any]) -> ConfigurationChange:
        """Serve by another configuration from now on, as a whole or not at all.

        New providers are made and started first; then all changes at one instant. Requests
        that were accepted before end as they began. Providers that changed in nothing but
        weight and `enabled` keep their queue and their state; those that changed otherwise
        or are gone finish what they have, for `server.drain` seconds at most, and close.

        Reloads happen one at a time, in the order of their calls. A provider that the
        application handed in is looked up again by its name, and never closed: for changed
        settings, the application must register one that is made for them.

        Returns:
            What has changed, with what only a restart applies.

        Raises:
            ConfigurationError: If the configuration is wrong or a provider cannot start;
                nothing has changed. `status().reload_error` tells it, too.
            RouterClosedError: If the router was not entered, or is closing.
        """
        return await self._reloader().apply(lambda _: checked_configuration(config))

    async def set_weight(
        self, provider: str, weight: float, *, model: str | None = None
    ) -> ConfigurationChange:
        """Give a provider another weight, as a reload would.

        Args:
            provider: Its name.
            weight: Its share, relative to the others; 0 for none.
            model: Sets the weight of this model's targets at the provider; None sets the
                provider's own, which counts wherever a target has none.

        Raises:
            ConfigurationError: If a name is unknown, or nothing could be served then.
            RouterClosedError: If the router was not entered, or is closing.
        """
        return await self._reloader().apply(
            lambda config: with_weight(config, provider, weight, model=model)
        )

    async def set_enabled(self, provider: str, enabled: bool) -> ConfigurationChange:
        """Switch a provider off, which finishes what it has, or on again.

        Raises:
            ConfigurationError: If the name is unknown, nothing could be served then, or the
                provider cannot start.
            RouterClosedError: If the router was not entered, or is closing.
        """
        return await self._reloader().apply(lambda config: with_enabled(config, provider, enabled))

    def eject(self, provider: str, seconds: float | None = None) -> None:
        """Take a provider out of rotation for some seconds; None until `restore`.

        Raises:
            ConfigurationError: If no provider that runs has that name.
            RouterClosedError: If the router was not entered.
        """
        self._actor(provider).eject(seconds)

    def restore(self, provider: str) -> None:
        """Put a provider back into rotation, whatever took it out.

        Raises:
            ConfigurationError: If no provider that runs has that name.
            RouterClosedError: If the router was not entered.
        """
        self._actor(provider).restore()

    def _actor(self, provider: str) -> ProviderActor:
        actors = self._reloader().current.living
        known_provider(provider, actors)
        return actors[provider]
