"""The public API is one sorted list."""

import ast
import importlib
import pathlib

import pytest

import engine


def test_exports_are_sorted() -> None:
    """`__all__` can be read like an index."""
    assert engine.__all__ == sorted(engine.__all__)


def test_exports_are_what_can_be_imported() -> None:
    """Every public name is in `__all__`, can be loaded, and is what the type checker sees."""
    tree = ast.parse(pathlib.Path(engine.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    checked = [
        alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if getattr(engine, alias.name).__module__.startswith("engine.")
        and hasattr(importlib.import_module(node.module or ""), alias.name)
    ]
    assert sorted(checked) == engine.__all__ == dir(engine)


def test_unknown_names_are_attribute_errors() -> None:
    """A name that does not exist is missed as in any other module."""
    with pytest.raises(AttributeError, match="no attribute 'Roouter'"):
        engine.Roouter  # type: ignore[attr-defined]  # noqa: B018


def test_exports_are_documented() -> None:
    """Each public class says what it is for."""
    for name in engine.__all__:
        value = getattr(engine, name)
        assert value.__doc__, name
