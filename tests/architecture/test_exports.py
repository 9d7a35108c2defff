"""The public API is one sorted list."""

import types

import engine


def test_exports_are_sorted() -> None:
    """`__all__` can be read like an index."""
    assert engine.__all__ == sorted(engine.__all__)


def test_exports_are_what_can_be_imported() -> None:
    """Every public name is in `__all__`, and the other way round."""
    public = {
        name
        for name, value in vars(engine).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(engine.__all__)


def test_exports_are_documented() -> None:
    """Each public class says what it is for."""
    for name in engine.__all__:
        value = getattr(engine, name)
        assert value.__doc__, name
