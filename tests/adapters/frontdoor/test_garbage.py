"""Garbage collection of a serving process."""

from __future__ import annotations

import gc

import pytest

from adapters.frontdoor.garbage import ALLOCATIONS, tuned_for_serving


def test_tuning_is_undone_at_the_end() -> None:
    """What the start made is out of sight while serving, and everything is as before after it."""
    before = gc.get_threshold()
    with tuned_for_serving():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold() == (ALLOCATIONS, *before[1:])
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before


def test_cycles_are_still_collected_while_serving() -> None:
    """Only what was there before is passed over."""

    class Node:
        collected = False

        def __init__(self) -> None:
            self.other: Node | None = None

        def __del__(self) -> None:
            Node.collected = True

    with tuned_for_serving():
        one, two = Node(), Node()
        one.other, two.other = two, one
        del one, two
        gc.collect()
        assert Node.collected


def test_tuning_is_undone_after_a_failure() -> None:
    """Also a server that fails leaves the collector as it was."""
    before = gc.get_threshold()
    with pytest.raises(RuntimeError), tuned_for_serving():
        raise RuntimeError
    assert gc.get_threshold() == before
