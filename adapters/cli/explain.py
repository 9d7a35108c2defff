"""`inference-gateway explain`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click

from adapters.cli.admin_client import as_json, ask_admin, key_option, understood, url_option
from adapters.cli.terminal import for_terminal, print_table

MOST_REQUESTS = 1_000


@click.command()
@click.argument("request_id", metavar="[ID]", required=False)
@url_option
@key_option
@click.option("--json", "wants_json", is_flag=True, help="Write JSON, for machines.")
@click.option(
    "--limit",
    type=click.IntRange(1, MOST_REQUESTS),
    default=20,
    show_default=True,
    help="Requests that are listed without an ID.",
)
def command(
    *, request_id: str | None, url: str, admin_key_env: str | None, wants_json: bool, limit: int
) -> None:
    """Tell the story of the request ID: who could have served it, who did, and what failed.

    The id of a request is in the header x-request-id of its answer, and in the log. Without
    an ID the latest requests are listed.
    """
    if request_id is None:
        path = f"/admin/requests?limit={limit}"
    else:
        path = f"/admin/requests/{quote(request_id, safe='')}"
    found = ask_admin("GET", path, url=url, admin_key_env=admin_key_env)
    if wants_json:
        click.echo(as_json(found))
        return
    with understood():
        if request_id is None:
            columns = ("id", "model", "outcome", "provider", "attempts", "time")
            print_table(columns, [_row(story) for story in found["data"]])
            return
        lines = list(headline(found))
        rows = [row for step in found["steps"] for row in step_rows(step)]
    for line in lines:
        click.echo(for_terminal(line))
    print_table(("at", "step", "target", "what"), rows)


def _row(story: dict[str, Any]) -> tuple[str, ...]:
    cells = (
        story["request_id"],
        story["model"],
        story["outcome"] or "running",
        story["provider"] or "-",
        str(story["attempts"]),
        f"{story['seconds']:.3f} s",
    )
    return tuple(map(for_terminal, cells))


def headline(story: dict[str, Any]) -> Iterator[str]:
    """What was asked, and what came of it, in a few lines."""
    kind = f"{story['operation']}, streamed" if story["streamed"] else story["operation"]
    yield f"request {story['request_id']}: {kind}, model {story['model']}"
    words = [f"deadline after {story['deadline']:.3f} s", f"priority {story['priority']}"]
    if story["began"] is not None:
        began = datetime.fromtimestamp(story["began"], UTC)
        words.insert(0, f"began {began.isoformat(timespec='milliseconds')}")
    yield ", ".join(words)
    yield f"configuration {story['generation']}, seed {story['seed']}"
    words = [f"{story['outcome'] or 'running'} after {story['seconds']:.3f} s"]
    if story["provider"]:
        words.append(f"served by {story['provider']}")
    words.append(f"attempts: {story['attempts']}")
    if story["error"]:
        words.append(f"error {story['error']}")
    if story["fallbacks"]:
        words.append(f"fallbacks: {', '.join(story['fallbacks'])}")
    if (usage := story["usage"]) is not None:
        words.append(f"tokens: {usage['input']} in, {usage['output']} out")
    yield ", ".join(words)


def step_rows(step: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """One step of a story as rows: when, what kind, where, and what about it."""
    row = _pick_row(step) if step["step"] == "pick" else _attempts_row(step)
    at, kind, target, words = row
    yield at, kind, for_terminal(target), for_terminal("\n".join(words))


def _pick_row(pick: dict[str, Any]) -> tuple[str, str, str, list[str]]:
    odds = "" if pick["odds"] is None else f", odds {pick['odds']:.1%}"
    words = [f"{pick['balancer']}: {pick['resort']}{odds}"]
    others = [each for each in pick["candidates"] if each["target"] != pick["picked"]]
    for each in others:
        why = pick["passed_over"].get(each["target"])
        words.append(f"not {each['target']}: " + (why or f"eligible, weight {each['weight']:g}"))
    words += [f"{name}: {_fact(value)}" for name, value in pick["facts"].items()]
    return f"+{pick['at']:.3f} s", "pick", pick["picked"], words


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_fact, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _attempts_row(tries: dict[str, Any]) -> tuple[str, str, str, list[str]]:
    calls, upstream = tries["calls"], tries["upstream_seconds"]
    queued, limit = tries["queue_seconds"], tries["limit"]
    words = [
        f"{tries['result']}: calls {calls}, {upstream:.3f} s upstream",
        f"queued {queued:.3f} s, limit +{limit:.3f} s",
    ]
    for failure in tries["failures"]:
        wasted = ", may have been billed" if failure["wasted"] else ""
        words.append(
            f"attempt {failure['attempt']}: {failure['class']} ({failure['replay']}) after "
            f"{failure['seconds']:.3f} s{wasted}"
        )
    return "", "attempts", tries["provider"], words
