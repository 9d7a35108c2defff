"""The slope of what a process holds is told with how sure it is."""

from __future__ import annotations

import random

import pytest

from benchmarks.trend import Trend


def test_a_straight_line_is_found_exactly() -> None:
    """A MiB a minute is sixty an hour, without any doubt."""
    trend = Trend.of([(60.0 * number, 50.0 + number) for number in range(10)])
    assert trend.per_hour == pytest.approx(60)
    assert trend.error == pytest.approx(0, abs=1e-6)


def test_noise_without_growth_lies_within_its_error() -> None:
    """Three standard errors hold the truth, which is no growth."""
    rng = random.Random(1)
    trend = Trend.of([(float(second), 50 + rng.gauss(0, 0.1)) for second in range(200)])
    assert abs(trend.per_hour) < 3 * trend.error


def test_a_slow_leak_stands_out_of_the_noise() -> None:
    """A MiB in ten minutes is seen although each sample is off by a tenth of it."""
    rng = random.Random(2)
    samples = [(second, second / 600 + rng.gauss(0, 0.1)) for second in range(0, 600, 4)]
    trend = Trend.of(samples)
    assert trend.per_hour == pytest.approx(6, abs=3 * trend.error)
    assert trend.per_hour > 5 * trend.error


def test_too_few_samples_have_no_trend() -> None:
    """A line goes through any two points, and says nothing."""
    with pytest.raises(ValueError, match="three samples"):
        Trend.of([(0.0, 1.0), (1.0, 2.0)])
    with pytest.raises(ValueError, match="different instants"):
        Trend.of([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)])


def test_a_trend_is_written_with_its_error() -> None:
    """The sign of the growth is always there."""
    assert str(Trend(1.234, 0.5)) == "+1.23 ± 0.50"
    assert str(Trend(-12_345.6, 789.0)) == "-12,346 ± 789"
