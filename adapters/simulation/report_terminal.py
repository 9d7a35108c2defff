"""A simulation's result as rows of text, one column a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapters.simulation.result import Result

Rows = list[tuple[str, ...]]

_LATENCIES = (("p50", "p50"), ("p95", "p95"), ("p99", "p99"), ("max", "longest"))


def summary_rows(results: Sequence[Result]) -> Rows:
    """What came of the requests: a name, and a value for each run."""
    summaries = [result.summary for result in results]

    def row(name: str, *values: str) -> tuple[str, ...]:
        return (name, *values)

    rows = [
        row("requests", *(f"{s['requests']:,}" for s in summaries)),
        *(
            row(word, *(_part(s["outcomes"][word], s["requests"]) for s in summaries))
            for word in summaries[0]["outcomes"]
        ),
        row("goodput", *(f"{s['goodput_per_second']:,.1f} per s" for s in summaries)),
        *(
            row(f"latency {words}", *(_seconds(s["latency"][key]) for s in summaries))
            for key, words in _LATENCIES
        ),
        row("first event p95", *(_seconds(s["first_event"]["p95"]) for s in summaries)),
        row("attempts per request", *(f"{s['attempts']['per_request']:.3f}" for s in summaries)),
        row("shed, by reason", *(_counts(s["shed"]) for s in summaries)),
        row("failed, by class", *(_counts(s["errors"]) for s in summaries)),
        row("promises broken", *(_broken(result) for result in results)),
    ]
    if any(s["turned_away"] for s in summaries):
        rows.insert(1, row("came after the drain", *(str(s["turned_away"]) for s in summaries)))
    if any(s["changes_refused"] for s in summaries):
        rows.append(
            row("changes refused", *("\n".join(s["changes_refused"]) or "-" for s in summaries))
        )
    return rows


def provider_rows(results: Sequence[Result]) -> Rows:
    """Each provider of each run: calls, their share, most at a time, and time out of use."""
    rows: Rows = []
    for result in results:
        for name, provider in result.summary["providers"].items():
            rows.append(
                (
                    result.name,
                    name,
                    f"{provider['attempts']:,}",
                    f"{provider['share']:.1%}",
                    str(provider["peak_in_flight"]),
                    str(provider["times_out"]),
                    _out(provider["seconds_out"]),
                )
            )
    return rows


PROVIDER_COLUMNS = ("run", "provider", "calls", "share", "most open", "times out", "seconds out")


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.2%})" if whole else "0"


def _seconds(value: float) -> str:
    return f"{value * 1000:,.0f} ms" if value < 1 else f"{value:,.2f} s"


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return "\n".join(f"{word} {count:,}" for word, count in ordered) or "-"


def _out(seconds: dict[str, Any]) -> str:
    return "\n".join(f"{reason} {value:g}" for reason, value in seconds.items()) or "-"


def _broken(result: Result) -> str:
    return f"{result.broken_count} in {result.summary['checks']:,} checks"
