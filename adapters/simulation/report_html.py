"""A simulation's result as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.simulation.plots import (
    Curve,
    band_plot,
    legend,
    line_plot,
    share_plot,
    thinned,
)
from adapters.simulation.report_terminal import PROVIDER_COLUMNS, provider_rows, summary_rows
from adapters.simulation.result import Result

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5d6877;--paper:#fff;--card:#f5f7fa;
--edge:#d8dee7;--bad:#c4322b;--c0:#2563c9;--c1:#d9730d;--c2:#1e8a5a;--c3:#b3369a;--c4:#8a6d00;
--c5:#0f8ea3;--c6:#d03b4e;--c7:#6a5acd}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa6b5;--paper:#12161c;
--card:#1b212a;--edge:#323b48;--bad:#ff7b72;--c0:#6ea8ff;--c1:#ffa657;--c2:#4fd08f;--c3:#f28bdd;
--c4:#e3c34a;--c5:#56d4e8;--c6:#ff8a96;--c7:#b3a6ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:75rem;background:var(--paper);color:var(--ink);
font:16px/1.45 system-ui,sans-serif}
h1{font-size:1.4rem;margin:.2rem 0}h2{font-size:1.05rem;margin:1.6rem 0 .5rem}
p{margin:.3rem 0;color:var(--soft)}
.grid{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr))}
figure{margin:0;padding:.6rem;background:var(--card);border:1px solid var(--edge);
border-radius:.5rem;min-width:0}
figcaption{font-weight:600;font-size:.92rem;margin-bottom:.3rem}
figcaption span{font-weight:400;color:var(--soft)}
svg{display:block;width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}
svg .grid{stroke:var(--edge);stroke-width:1}.track{fill:var(--edge);opacity:.5}
svg .out{fill:var(--bad)}svg .line{fill:none;stroke-width:1.6;stroke-linejoin:round}
svg .area{stroke:none;opacity:.75}
.legend{display:flex;flex-wrap:wrap;gap:.15rem .8rem;margin:.4rem 0 0;padding:0;list-style:none;
font-size:.82rem}
.legend i{display:inline-block;width:.75rem;height:.75rem;margin-right:.3rem;border-radius:.15rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;min-width:100%}
th,td{padding:.3rem .7rem .3rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--edge);white-space:pre-line}
td{font-variant-numeric:tabular-nums}.bad{color:var(--bad)}
""" + "".join(
    f"svg .line.c{i}{{stroke:var(--c{i})}}svg .area.c{i}{{fill:var(--c{i})}}"
    f".legend i.c{i}{{background:var(--c{i})}}"
    for i in range(8)
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One kind of plot.

    Attributes:
        title: What it shows.
        unit: Its unit, in words.
        curves: Takes the curves out of a run's series.
        kind: `lines`, `shares` or `bands`.
        suffix: Stands behind the numbers.
    """

    title: str
    unit: str
    curves: Callable[[dict[str, Any]], list[Curve]]
    kind: str = "lines"
    suffix: str = ""


def _over_time(*names: tuple[str, str]) -> Callable[[dict[str, Any]], list[Curve]]:
    """Counts of each step as rates."""

    def curves(series: dict[str, Any]) -> list[Curve]:
        step = series["step_seconds"]
        return [
            Curve(words, thinned([value / step for value in series[name]])) for name, words in names
        ]

    return curves


def _percentiles(series: dict[str, Any]) -> list[Curve]:
    return [Curve(name, thinned(series[name], highest=True)) for name in ("p50", "p95", "p99")]


def _attempts_per_request(series: dict[str, Any]) -> list[Curve]:
    attempts, asked = thinned(series["attempts"]), thinned(series["arrivals"])
    ratio = [made / came if came else 0.0 for made, came in zip(attempts, asked, strict=True)]
    return [Curve("attempts for each request", ratio)]


def _of_providers(key: str, *, highest: bool = False) -> Callable[[dict[str, Any]], list[Curve]]:
    def curves(series: dict[str, Any]) -> list[Curve]:
        return [
            Curve(name, thinned(provider[key], highest=highest))
            for name, provider in series["providers"].items()
        ]

    return curves


FIGURES = (
    Figure(
        "Requests and goodput",
        "per second",
        _over_time(
            ("arrivals", "arrivals"),
            ("completed", "completed"),
            ("failed", "failed"),
            ("rejected", "rejected"),
            ("truncated", "truncated"),
            ("cancelled", "cancelled"),
        ),
    ),
    Figure("Latency of completed requests", "seconds", _percentiles, suffix=" s"),
    Figure("Attempts per request", "upstream calls", _attempts_per_request),
    Figure("Shares of the calls", "by provider", _of_providers("attempts"), kind="shares"),
    Figure("Out of rotation", "ejected, closed or restarting", _of_providers("out"), kind="bands"),
    Figure("Queue depth", "requests in the mailbox", _of_providers("queue", highest=True)),
    Figure("In flight", "open calls", _of_providers("in_flight", highest=True)),
    Figure("Weight", "as configured", _of_providers("weight")),
)


def html_page(results: Sequence[Result], *, title: str) -> str:
    """The whole page.

    Args:
        results: One run, or two that are shown side by side.
        title: What stands at its top.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(_subtitle(results))}</p>",
        _broken(results),
        "<h2>Summary</h2>",
        _table(("", *(result.name for result in results)), summary_rows(results)),
        "<h2>Over time</h2>",
        '<div class="grid">',
        *(_figure(figure, results) for figure in FIGURES),
        "</div>",
        "<h2>Providers</h2>",
        _table(PROVIDER_COLUMNS, provider_rows(results)),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _subtitle(results: Sequence[Result]) -> str:
    first = results[0].summary
    return (
        f"{first['duration']:g} s of virtual time, seed {first['seed']}, "
        f"{first['requests']:,} requests. The same engine as in production; only the clock and "
        "the providers are simulated."
    )


def _broken(results: Sequence[Result]) -> str:
    lines = [f"{result.name}: {broken}" for result in results for broken in result.broken]
    if not lines:
        return "<p>Every promise was kept.</p>"
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<h2 class="bad">Broken promises</h2><ul class="bad">{items}</ul>'


def _figure(figure: Figure, results: Sequence[Result]) -> str:
    """The plots of all runs, with one scale, so that they can be compared."""
    drawn = [(result, figure.curves(result.series)) for result in results]
    top = max(
        (value for _, curves in drawn for curve in curves for value in curve.values), default=0.0
    )
    parts = []
    for result, curves in drawn:
        name = f" · {html.escape(result.name)}" if len(results) > 1 else ""
        parts.append(
            f"<figure><figcaption>{html.escape(figure.title)}{name} "
            f"<span>{html.escape(figure.unit)}</span></figcaption>"
            f"{_plot(figure, curves, _seconds(result), top)}"
            f"{'' if figure.kind == 'bands' else legend(curves)}</figure>"
        )
    return "\n".join(parts)


def _plot(figure: Figure, curves: list[Curve], seconds: float, top: float) -> str:
    if figure.kind == "shares":
        return share_plot(curves, seconds=seconds)
    if figure.kind == "bands":
        return band_plot(curves, seconds=seconds)
    return line_plot(curves, seconds=seconds, unit=figure.suffix, top=top)


def _seconds(result: Result) -> float:
    steps: int = len(result.series["arrivals"])
    step: float = result.series["step_seconds"]
    return steps * step


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'
