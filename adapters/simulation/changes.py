"""`Operator`: changes a running router at the instants of a scenario, as people do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from adapters.simulation.scenario import ChangeConfig
from adapters.simulation.scripted_provider import ScriptedProvider
from adapters.simulation.terms import Terms, as_made
from adapters.simulation.upstream import Upstream
from engine.config import GatewayConfig, ProviderConfig
from engine.errors import GatewayError
from engine.registry import ProviderRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapters.simulation.callers import Callers
    from adapters.simulation.invariants import Referee
    from adapters.simulation.virtual_loop import VirtualLoop
    from engine.router import Router


class Operator:
    """Applies the changes of a scenario through the router's public methods.

    Args:
        router: What is changed.
        registry: Where the router looks for its providers.
        upstreams: By name; a reload may add some.
        make_upstream: Makes one for a provider that was not there before.
        configs: What the files of the scenario's reloads hold.
        callers: Told when the door closes.
        referee: Told what is promised from then on.
        loop: Where time comes from.

    Attributes:
        refused: Changes that the router refused, in words.
    """

    def __init__(
        self,
        router: Router,
        registry: ProviderRegistry,
        *,
        upstreams: dict[str, Upstream],
        make_upstream: Callable[[str], Upstream],
        configs: Mapping[int, GatewayConfig],
        callers: Callers,
        referee: Referee,
        loop: VirtualLoop,
    ) -> None:
        self._router = router
        self._registry = registry
        self._upstreams = upstreams
        self._make_upstream = make_upstream
        self._configs = configs
        self._callers = callers
        self._referee = referee
        self._loop = loop
        self._origin = loop.time()
        self.refused: list[str] = []

    async def carry_out(self, number: int, change: ChangeConfig) -> None:
        """Wait until the change's instant and make it.

        Args:
            number: Its place in the scenario.
            change: What is changed.
        """
        await self._loop.pause(max(0.0, self._origin + change.at - self._loop.time()))
        try:
            await self._make(number, change)
        except GatewayError as error:
            self.refused.append(f"{change.what[0]} at {change.at:g} s: {error.message}")

    async def _make(self, number: int, change: ChangeConfig) -> None:
        router = self._router
        if (weight := change.set_weight) is not None:
            await router.set_weight(weight.provider, weight.weight)
        elif (flag := change.set_enabled) is not None:
            await router.set_enabled(flag.provider, flag.enabled)
        elif change.eject is not None:
            router.eject(change.eject)
        elif change.restore is not None:
            router.restore(change.restore)
        elif change.reload is not None:
            await self._reload(self._configs[number])
        elif change.behaviour is not None:
            self._upstreams[change.behaviour.provider].behave(change.behaviour.behaviour)
        else:
            assert change.drain is not None
            self._callers.door_closed = True
            await router.drain(change.drain)

    async def _reload(self, config: GatewayConfig) -> None:
        replaced = [old for new in config.providers if (old := self._renew(new)) is not None]
        self._referee.reload_begins(Terms.of(config))
        applied = False
        try:
            await self._router.reload(config)
            applied = True
        finally:
            self._referee.reload_ends(applied=applied)
            if not applied:
                for provider in replaced:
                    self._registry.unregister_provider(provider.name)
                    self._registry.register_provider(provider.name, provider)

    def _renew(self, config: ProviderConfig) -> ScriptedProvider | None:
        """Register a provider for the new settings; returns the one that it replaces."""
        name = config.name
        old: ScriptedProvider | None = None
        if name in self._registry:
            known = self._registry.get_provider(name)
            assert isinstance(known, ScriptedProvider)
            if as_made(known.config) == as_made(config):
                return None
            old = known
            self._registry.unregister_provider(name)
        if name not in self._upstreams:
            self._upstreams[name] = self._make_upstream(name)
        self._registry.register_provider(name, ScriptedProvider(config, self._upstreams[name]))
        return old
