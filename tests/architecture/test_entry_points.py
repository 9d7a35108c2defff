"""Every provider type of this distribution can be loaded and is documented."""

from importlib.metadata import entry_points

import pytest

from engine import BaseProvider, Operation, ProviderFactory
from engine.config import ConfigurationModel
from engine.factory import ENTRY_POINT_GROUP

OURS = [
    entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.module.startswith("adapters.")
]


def test_the_types_of_the_design_are_there() -> None:
    """The types that the documentation names are installed."""
    names = {entry.name for entry in OURS}
    assert {"openai", "vllm", "openai_compatible", "mock", "llamacpp"} <= names
    assert names <= set(ProviderFactory.known_types())


@pytest.mark.parametrize("name", [entry.name for entry in OURS])
def test_type_can_be_loaded(name: str) -> None:
    """Each entry point leads to a documented provider with operations and options."""
    adapter_class = ProviderFactory.adapter_class(name)
    assert issubclass(adapter_class, BaseProvider)
    assert adapter_class.__doc__
    assert adapter_class.operations
    assert adapter_class.operations <= frozenset(Operation)
    assert issubclass(adapter_class.Options, ConfigurationModel)
