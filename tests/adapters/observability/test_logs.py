"""The request log: one line a request, of allowed fields only."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Iterator

import pytest

from adapters.observability import RequestLog, RequestRecord
from adapters.observability.library_logs import LibraryLogHandler
from adapters.observability.logs import json_line, pretty_line

ALLOWED = {
    "request_id", "method", "route", "status", "outcome", "model", "provider", "attempts",
    "duration_ms", "overhead_ms", "stream", "error_code",
}  # fmt: skip

FULL = RequestRecord(
    request_id="req-1",
    method="POST",
    route="/v1/chat/completions",
    status=200,
    outcome="completed",
    model="chat",
    provider="openai-main",
    attempts=2,
    duration_ms=12.3456,
    overhead_ms=0.5,
    stream=True,
)

BARE = RequestRecord(request_id="req-2", method="GET", route="/healthz", status=200)

TIME = 1_700_000_000_123_456_789


def test_a_record_has_the_allowed_fields_and_no_other() -> None:
    """There is no field that a prompt or a key could stand in."""
    assert {field.name for field in dataclasses.fields(RequestRecord)} == ALLOWED


def test_a_json_line_is_one_object_with_a_time() -> None:
    """Machines get every field that has a value, numbers as numbers, in UTC."""
    shown = json.loads(json_line(TIME, FULL))
    assert shown == {
        "time": "2023-11-14T22:13:20.123Z",
        "request_id": "req-1",
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "outcome": "completed",
        "model": "chat",
        "provider": "openai-main",
        "attempts": 2,
        "duration_ms": 12.346,
        "overhead_ms": 0.5,
        "stream": True,
    }


def test_fields_without_a_value_are_left_out() -> None:
    """A health check has no model and says nothing of one."""
    assert set(json.loads(json_line(TIME, BARE))) == {
        "time", "request_id", "method", "route", "status",
    }  # fmt: skip


def test_a_pretty_line_is_one_line_for_people() -> None:
    """Time, status, route, who served it, how long, how it ended."""
    assert pretty_line(TIME, FULL) == (
        "22:13:20.123 200 POST /v1/chat/completions chat via openai-main 12.3ms "
        "(overhead 0.5ms) 2 attempts stream completed req-1\n"
    )
    assert pretty_line(TIME, BARE) == "22:13:20.123 200 GET /healthz req-2\n"


@pytest.mark.parametrize("line", [json_line, pretty_line])
@pytest.mark.parametrize(
    "hostile", ["a\nb", "\x1b[2J", "\x9b31m", "\u2028", "é", "a\r\x00", "\ud800"]
)
def test_a_name_from_a_caller_cannot_forge_a_line(line: object, hostile: str) -> None:
    """New lines and control sequences in a model's name or an id are escaped."""
    assert callable(line)
    record = dataclasses.replace(FULL, model=hostile, request_id=hostile)
    text = line(TIME, record)
    assert text.count("\n") == 1
    assert text[:-1].isprintable()
    assert text.isascii()


@pytest.mark.parametrize("line", [json_line, pretty_line])
def test_a_long_name_is_cut(line: object) -> None:
    """A caller who asks for a model of a megabyte does not fill the disk."""
    assert callable(line)
    assert len(line(TIME, dataclasses.replace(FULL, model="m" * 1_000_000))) < 1_000


@pytest.mark.parametrize("form", ["json", "pretty"])
def test_records_are_written_in_order(form: str) -> None:
    """What was written first stands first, and nothing is lost."""
    stream = io.StringIO()
    log = RequestLog("json" if form == "json" else "pretty", stream=stream)
    for number in range(2_000):
        log.write(dataclasses.replace(BARE, request_id=f"req-{number}"))
    assert log.close(timeout=10)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2_000
    assert all(f"req-{number}" in line for number, line in enumerate(lines))
    assert log.dropped == 0


def test_the_form_none_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """No line, no thread, no file descriptor."""
    log = RequestLog("none")
    log.write(FULL)
    assert log.close()
    assert log.dropped == 0
    assert capfd.readouterr().out == ""


def test_without_a_stream_it_writes_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """Log collectors read stdout."""
    log = RequestLog("json")
    log.write(FULL)
    assert log.close(timeout=10)
    captured = capfd.readouterr()
    assert json.loads(captured.out)["request_id"] == "req-1"
    assert captured.err == ""


def test_lost_lines_are_told_when_the_stream_takes_lines_again() -> None:
    """A reader of the log learns that something is missing, and how much."""
    stream = io.StringIO()
    log = RequestLog("json", stream=stream, capacity=5)
    for _ in range(50):
        log.write(BARE)
    assert log.close(timeout=10)
    lost = json.loads(stream.getvalue().splitlines()[0])
    assert lost["event"] == "log_lines_dropped"
    assert lost["count"] == log.dropped > 0


class TestLibraryLogs:
    """What libraries say through `logging`."""

    @pytest.fixture
    def logger(self) -> Iterator[logging.Logger]:
        logger = logging.getLogger("some.library")
        logger.propagate = False
        yield logger
        logger.propagate = True
        logger.handlers.clear()

    def test_a_warning_becomes_one_json_line(self, logger: logging.Logger) -> None:
        """Level, logger and message, on one line."""
        stream = io.StringIO()
        handler = LibraryLogHandler("json", stream)
        logger.addHandler(handler)
        logger.warning("queue full, dropping %d\nspans", 3)
        assert handler.finish(10)
        shown = json.loads(stream.getvalue())
        assert shown.pop("time").endswith("Z")
        assert shown == {
            "level": "warning",
            "logger": "some.library",
            "message": "queue full, dropping 3\nspans",
        }

    def test_an_exception_shows_its_class_and_place_only(self, logger: logging.Logger) -> None:
        """Neither the exception's text nor any local variable is written."""
        stream = io.StringIO()
        handler = LibraryLogHandler("pretty", stream)
        logger.addHandler(handler)
        secret = "sk-canary-in-a-local"
        try:
            raise ValueError(f"canary {secret}")
        except ValueError:
            logger.exception("it failed")
        assert handler.finish(10)
        text = stream.getvalue()
        assert "canary" not in text
        assert "it failed (ValueError in " in text
        assert text.count("\n") == 1

    def test_what_is_no_warning_is_left_out(self, logger: logging.Logger) -> None:
        """Libraries chat at lower levels, sometimes about requests."""
        stream = io.StringIO()
        handler = LibraryLogHandler("pretty", stream)
        logger.addHandler(handler)
        logger.info("sent: prompt")
        assert handler.finish(10)
        assert stream.getvalue() == ""

    def test_arguments_that_do_not_fit_do_no_harm(self, logger: logging.Logger) -> None:
        """A library's mistake in a format is written as it stands."""
        stream = io.StringIO()
        handler = LibraryLogHandler("pretty", stream)
        record = logger.makeRecord("x", logging.ERROR, "f", 1, "%d items", ("many",), None)
        handler.handle(record)
        assert handler.finish(10)
        assert "%d items" in stream.getvalue()
