"""Live providers by name."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from scripted import ScriptedProvider

from engine import ConfigurationError, ProviderRegistry


def test_registered_provider_is_found_by_name() -> None:
    """Names lead to providers, in the order of registration."""
    registry = ProviderRegistry()
    first, second = ScriptedProvider("first"), ScriptedProvider("second")
    registry.register_provider("first", first)
    registry.register_provider("second", second)
    assert registry.get_provider("first") is first
    assert registry.names() == ["first", "second"]
    assert list(registry) == [first, second]
    assert "second" in registry
    assert len(registry) == 2


def test_a_taken_name_is_refused() -> None:
    """Another provider cannot take a name, the same one may be registered again."""
    registry = ProviderRegistry()
    provider = ScriptedProvider("a")
    registry.register_provider("a", provider)
    registry.register_provider("a", provider)
    with pytest.raises(ConfigurationError, match="'a' is registered already"):
        registry.register_provider("a", ScriptedProvider("a"))
    assert registry.get_provider("a") is provider


def test_unknown_name_lists_the_known_ones() -> None:
    """A missing provider is a `KeyError` that says which names there are."""
    registry = ProviderRegistry()
    with pytest.raises(KeyError, match="none"):
        registry.get_provider("a")
    registry.register_provider("b", ScriptedProvider("b"))
    with pytest.raises(KeyError, match="registered: b"):
        registry.get_provider("a")


def test_unregistered_provider_is_given_back() -> None:
    """Forgetting a provider returns it, once."""
    registry = ProviderRegistry()
    provider = ScriptedProvider("a")
    registry.register_provider("a", provider)
    assert registry.unregister_provider("a") is provider
    assert "a" not in registry
    with pytest.raises(KeyError):
        registry.unregister_provider("a")


def test_threads_cannot_take_the_same_name() -> None:
    """Of many threads that register one name, exactly one wins."""
    registry = ProviderRegistry()

    def register(number: int) -> bool:
        try:
            registry.register_provider("same", ScriptedProvider("same"))
        except ConfigurationError:
            return False
        registry.register_provider(f"own-{number}", ScriptedProvider("x"))
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(register, range(64)))
    assert won.count(True) == 1
    assert len(registry) == 2
