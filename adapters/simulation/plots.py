"""Curves as SVG, drawn by hand: a page of them needs nothing from anywhere else."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 420, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 24
"""Sizes in the units of the drawing; at the width of a telephone a unit is a pixel, nearly."""

POINTS = 240
"""Points of a curve that are drawn: more than the eye, or the screen, tells apart."""

COLOURS = 8
BAND = 18


@dataclass(frozen=True, slots=True)
class Curve:
    """One named curve.

    Attributes:
        name: What stands in the legend.
        values: One for each step.
    """

    name: str
    values: Sequence[float]


def thinned(values: Sequence[float], *, highest: bool = False) -> list[float]:
    """At most `POINTS` values: the means of as many stretches, or their highest values."""
    if len(values) <= POINTS:
        return list(values)
    bounds = [round(index * len(values) / POINTS) for index in range(POINTS + 1)]
    stretches = [values[low:high] for low, high in pairwise(bounds)]
    if highest:
        return [max(stretch) for stretch in stretches]
    return [sum(stretch) / len(stretch) for stretch in stretches]


def line_plot(
    curves: Sequence[Curve], *, seconds: float, unit: str = "", top: float | None = None
) -> str:
    """Lines over time.

    Args:
        curves: What is drawn.
        seconds: What the whole width stands for.
        unit: Stands behind the numbers at the left.
        top: Value at the upper edge; None takes what is needed.
    """
    highest = top or max((max(c.values, default=0.0) for c in curves), default=0.0)
    highest = nice(highest)
    parts = [*_frame(seconds, highest, unit)]
    parts.extend(
        f'<polyline class="line c{index % COLOURS}" points="{_points(curve.values, highest)}"/>'
        for index, curve in enumerate(curves)
    )
    return _drawing(parts, ", ".join(curve.name for curve in curves))


def share_plot(curves: Sequence[Curve], *, seconds: float) -> str:
    """Parts of a whole over time, one on top of the other."""
    count = max((len(curve.values) for curve in curves), default=0)
    totals = [sum(curve.values[at] for curve in curves) for at in range(count)]
    parts = []
    below = [0.0] * count
    for index, curve in enumerate(curves):
        above = [
            base + (value / total if total else 0.0)
            for base, value, total in zip(below, curve.values, totals, strict=True)
        ]
        back = _points(below, 1.0).split(" ")[::-1]
        points = f"{_points(above, 1.0)} {' '.join(back)}"
        parts.append(f'<polygon class="area c{index % COLOURS}" points="{points}"/>')
        below = above
    parts.extend(_frame(seconds, 1.0, ""))
    return _drawing(parts, "shares of " + ", ".join(curve.name for curve in curves))


def band_plot(curves: Sequence[Curve], *, seconds: float) -> str:
    """When something was the case: a band for each curve, filled where it is above 0."""
    height = TOP + BOTTOM + BAND * len(curves)
    parts = []
    for index, curve in enumerate(curves):
        y = TOP + index * BAND
        parts.append(
            f'<rect class="track" x="{LEFT}" y="{y + 3}" width="{_plot_width()}" '
            f'height="{BAND - 6}"/><text x="{LEFT - 5}" y="{y + BAND - 5}" '
            f'text-anchor="end">{html.escape(curve.name[:7])}</text>'
        )
        for begin, end, value in _stretches(curve.values):
            x = LEFT + begin / len(curve.values) * _plot_width()
            width = max(1.0, (end - begin) / len(curve.values) * _plot_width())
            parts.append(
                f'<rect class="out" x="{x:.1f}" y="{y + 3}" width="{width:.1f}" '
                f'height="{BAND - 6}" opacity="{max(0.25, min(1.0, value)):.2f}"/>'
            )
    parts.extend(_time_axis(seconds, height))
    return _drawing(parts, "out of rotation: " + ", ".join(c.name for c in curves), height)


def legend(curves: Sequence[Curve]) -> str:
    """Names and colours of the curves."""
    items = "".join(
        f'<li><i class="c{index % COLOURS}"></i>{html.escape(curve.name)}</li>'
        for index, curve in enumerate(curves)
    )
    return f'<ul class="legend">{items}</ul>'


def nice(value: float) -> float:
    """The next round number: 1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * 0.999)


def _stretches(values: Sequence[float]) -> list[tuple[int, int, float]]:
    """Begin, end and mean of each stretch above 0."""
    found: list[tuple[int, int, float]] = []
    begin: int | None = None
    for index, value in enumerate([*values, 0.0]):
        if value > 0 and begin is None:
            begin = index
        elif value <= 0 and begin is not None:
            found.append((begin, index, sum(values[begin:index]) / (index - begin)))
            begin = None
    return found


def _plot_width() -> int:
    return WIDTH - LEFT - RIGHT


def _points(values: Sequence[float], highest: float) -> str:
    width, height = _plot_width(), HEIGHT - TOP - BOTTOM
    step = width / max(1, len(values) - 1)
    return " ".join(
        f"{LEFT + index * step:.1f},{TOP + height * (1 - min(1.0, value / highest)):.1f}"
        for index, value in enumerate(values)
    )


def _frame(seconds: float, highest: float, unit: str) -> list[str]:
    """Lines at quarters of the height, numbers at the left, and the time below."""
    height = HEIGHT - TOP - BOTTOM
    parts = []
    for quarter in range(5):
        y = TOP + height * (1 - quarter / 4)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">'
            f"{_number(highest * quarter / 4)}{unit}</text>"
        )
    return [*parts, *_time_axis(seconds, HEIGHT)]


def _time_axis(seconds: float, height: float) -> list[str]:
    parts = []
    for quarter in range(5):
        x = LEFT + _plot_width() * quarter / 4
        anchor = "end" if quarter == 4 else "start" if quarter == 0 else "middle"  # noqa: PLR2004
        parts.append(
            f'<text x="{x:.1f}" y="{height - 6}" text-anchor="{anchor}">'
            f"{_clock(seconds * quarter / 4)}</text>"
        )
    return parts


def _clock(seconds: float) -> str:
    if seconds < 120:  # noqa: PLR2004 - two minutes are told in seconds
        return f"{_number(seconds)} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _number(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:.3g}"  # noqa: PLR2004


def _drawing(parts: Sequence[str], label: str, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{html.escape(label)}">'
        f"{''.join(parts)}</svg>"
    )
