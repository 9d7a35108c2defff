"""`ProviderRegistry`: live providers by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from engine.errors import ConfigurationError
from engine.provider import BaseProvider


class ProviderRegistry:
    """Holds providers by name. Safe to use from any thread; order is that of registration."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._providers: dict[str, BaseProvider] = {}

    def register_provider(self, name: str, provider: BaseProvider) -> None:
        """Keep a provider under a name.

        Raises:
            ConfigurationError: If the name is taken by another provider.
        """
        with self._lock:
            if self._providers.setdefault(name, provider) is not provider:
                msg = f"a provider named {name!r} is registered already: names must differ"
                raise ConfigurationError(msg)

    def unregister_provider(self, name: str) -> BaseProvider:
        """Give a provider back and forget it; closing it is the caller's business.

        Raises:
            KeyError: If no provider has that name.
        """
        with self._lock:
            return self._providers.pop(name)

    def get_provider(self, name: str) -> BaseProvider:
        """The provider of that name.

        Raises:
            KeyError: If no provider has that name; the message lists the known ones.
        """
        try:
            return self._providers[name]
        except KeyError:
            known = ", ".join(self._providers) or "none"
            msg = f"no provider is registered as {name!r} (registered: {known})"
            raise KeyError(msg) from None

    def names(self) -> list[str]:
        """The names of all providers."""
        with self._lock:
            return list(self._providers)

    def __contains__(self, name: object) -> bool:
        return name in self._providers

    def __iter__(self) -> Iterator[BaseProvider]:
        with self._lock:
            return iter(list(self._providers.values()))

    def __len__(self) -> int:
        return len(self._providers)
