"""Figures are summed up and written the same way everywhere."""

from __future__ import annotations

import json

import pytest

from benchmarks.spread import Spread, figure, percentile, rounds_of
from benchmarks.wire import (
    ANSWER,
    ANSWER_BYTES,
    CHUNKS,
    EVENTS,
    REQUEST_BYTES,
    request_body,
)


def test_spread_has_median_and_both_ends() -> None:
    """The median counts; the least and the greatest round stand beside it."""
    assert Spread.of([5, 1, 3, 2, 9]) == Spread(3, 1, 9)


def test_spread_of_nothing_is_refused() -> None:
    """No rounds, no result."""
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_spread_is_written_with_its_ends() -> None:
    """A reader sees how far the rounds lie apart."""
    assert str(Spread(0.00004, 0.00003, 0.00005).scaled(1e6)) == "40.0 (30.0 to 50.0)"
    assert Spread(4, 2, 8).per(2) == Spread(2, 1, 4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (1.234, "1.23"),
        (9.996, "10.0"),
        (45.67, "45.7"),
        (99.96, "100"),
        (1234.5, "1,234"),
    ],
)
def test_figure_has_three_digits(value: float, text: str) -> None:
    """More digits than are true are not shown."""
    assert figure(value) == text


def test_percentile_takes_the_nearest_rank() -> None:
    """Of a hundred values, one lies above the 99th percentile's rank or is it."""
    values = [float(number) for number in range(100)]
    assert percentile(values, 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([7.0], 0.99) == 7


def test_rounds_begin_with_one_that_does_not_count() -> None:
    """The first round warms up."""
    values = iter([100.0, 1.0, 2.0, 3.0])
    assert rounds_of(3, lambda: next(values)) == Spread(2, 1, 3)


def test_messages_have_the_sizes_that_are_told() -> None:
    """600 bytes of answer, 300 bytes of request, 22 events, all of them JSON."""
    assert len(ANSWER) == ANSWER_BYTES == 600
    assert json.loads(ANSWER)["choices"][0]["finish_reason"] == "stop"
    assert len(CHUNKS) == EVENTS == 22
    assert all(json.loads(chunk)["object"] == "chat.completion.chunk" for chunk in CHUNKS)
    for body in (
        request_body(),
        request_body(streamed=True),
        request_body(streamed=True, paced=True),
    ):
        assert len(body) == REQUEST_BYTES == 300
        assert json.loads(body)["messages"]
