"""What is shown of a simulation."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest

from adapters.simulation.histogram import GROWTH, Histogram
from adapters.simulation.invariants import Broken
from adapters.simulation.plots import POINTS, Curve, band_plot, line_plot, nice, thinned
from adapters.simulation.report_html import FIGURES, html_page
from adapters.simulation.report_terminal import PROVIDER_COLUMNS, provider_rows, summary_rows
from adapters.simulation.result import Result, to_json


@pytest.fixture
def result(run: Callable[..., Result]) -> Result:
    """A run with a bit of everything."""
    return run(
        phases=[{"rate": 20, "streamed": 0.5, "cancelled": 0.1}],
        faults=[{"kind": "refuse", "providers": "a", "at": 3, "until": 9}],
    )


def test_the_page_needs_nothing_from_elsewhere(result: Result) -> None:
    """No script, no link, no image, no font, no address at all."""
    page = html_page([result], title="A & B")
    assert not re.search(r"https?:|//|<script|<link|<img|@import|url\(", page)
    assert "<title>A &amp; B</title>" in page
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page


def test_every_plot_is_well_formed(result: Result) -> None:
    """Each figure has a drawing that is XML, with something drawn in it and a label."""
    drawings = re.findall(r"<svg.*?</svg>", html_page([result], title="t"), re.DOTALL)
    assert len(drawings) == len(FIGURES)
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.get("aria-label")
        assert len(root) > 5
        for line in root.iter("polyline"):
            for point in (line.get("points") or "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= 420
                assert 0 <= y <= 220


def test_two_runs_stand_side_by_side(result: Result) -> None:
    """Each figure is there twice, with one scale, and the table has a column more."""
    other = replace(result, name="the other one")
    page = html_page([result, other], title="t")
    assert page.count("<svg") == 2 * len(FIGURES)
    assert page.count("the other one") > len(FIGURES)


def test_broken_promises_are_at_the_top_of_the_page(result: Result) -> None:
    """Whoever opens the page sees them first; names in them cannot break it."""
    broken = replace(result, broken=(Broken("I1", 1.0, "<b>lost</b>"),), broken_count=1)
    page = html_page([broken], title="t")
    assert page.index("&lt;b&gt;lost") < page.index("<svg")


def test_json_holds_everything_and_no_wall_time(result: Result) -> None:
    """Summary, invariants and curves, one number for each step."""
    (run,) = json.loads(to_json([result]))["runs"]
    assert run["invariants"] == {"broken": 0, "first": []}
    assert run["requests"] == sum(run["outcomes"].values())
    series = run["series"]
    assert sum(series["arrivals"]) == run["requests"]
    assert len({len(series[name]) for name in ("arrivals", "completed", "p99", "in_flight")}) == 1
    for curves in series["providers"].values():
        assert {len(curve) for curve in curves.values()} == {len(series["arrivals"])}


def test_tables_have_a_cell_for_each_column(result: Result) -> None:
    """One column for the name, one for each run."""
    assert {len(row) for row in summary_rows([result, result])} == {3}
    assert {len(row) for row in provider_rows([result])} == {len(PROVIDER_COLUMNS)}


def test_a_histogram_is_right_within_its_growth() -> None:
    """Percentiles of ten thousand values are off by two per cent at most."""
    histogram = Histogram()
    for number in range(1, 10_001):
        histogram.add(number / 1000)
    for share in (0.01, 0.5, 0.95, 0.999):
        assert 1 / GROWTH <= histogram.percentile(share) / (10 * share) <= GROWTH
    assert histogram.summary()["max"] == 10
    assert Histogram().percentile(0.5) == 0


def test_a_histogram_takes_anything() -> None:
    """Nothing and a week are counted too, in the outermost buckets."""
    histogram = Histogram()
    histogram.add(0)
    histogram.add(7 * 86_400)
    assert histogram.percentile(0.1) <= 1e-5
    assert histogram.count == 2


def test_long_curves_are_thinned() -> None:
    """A day in seconds becomes a few hundred points; the highest value stays if wanted."""
    values = [0.0] * 86_400
    values[50_000] = 7.0
    assert len(thinned(values)) == POINTS
    assert max(thinned(values, highest=True)) == 7


def test_plots_of_nothing_are_plots() -> None:
    """No values, one value, all zero: still a drawing."""
    for values in ([], [1.0], [0.0, 0.0]):
        for drawn in (
            line_plot([Curve("x", values)], seconds=1),
            band_plot([Curve("x", values)], seconds=1),
        ):
            ET.fromstring(drawn)


@pytest.mark.parametrize(("value", "top"), [(0, 1), (0.9, 1), (1.2, 2), (23, 25), (700, 1000)])
def test_axes_end_at_round_numbers(value: float, top: float) -> None:
    """1, 2, 2.5 or 5 times a power of ten."""
    assert nice(value) == pytest.approx(top)
