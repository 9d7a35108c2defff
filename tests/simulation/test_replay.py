"""Recorded requests, played again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.configuration import ConfigurationFileError
from adapters.observability.logs import RequestRecord, json_line
from adapters.simulation.replay import Recording, load_recording
from adapters.simulation.scenario import Scenario
from adapters.simulation.simulation import Simulation, simulate
from engine.config import GatewayConfig
from engine.priority import Priority

Load = Callable[[str], Recording]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write lines to a file and read them."""

    def written(text: str) -> Recording:
        path = tmp_path / "requests.jsonl"
        path.write_text(text)
        return load_recording(str(path))

    return written


def test_a_line_says_when_and_what(load: Load) -> None:
    """All fields of a line arrive; instants count from the first request."""
    recording = load(
        '{"at": 12, "model": "m", "streamed": true, "deadline": 3, "priority": "sheddable"}\n'
        "\n"
        '{"at": 10, "model": "other", "seconds": 0.25, "output_tokens": 40}\n'
    )
    first, second = recording.requests
    assert (first.at, first.request.model, first.seconds) == (0, "other", 0.25)
    assert (second.at, second.request.streamed, second.timeout) == (2, True, 3)
    assert second.priority is Priority.SHEDDABLE
    assert recording.duration == 3


def test_the_request_log_can_be_played(load: Load) -> None:
    """Lines of the gateway's own log, whose instants are those of the requests' ends."""
    log = io.StringIO()
    for end, milliseconds in ((5_000, 2_000.0), (4_000, 500.0)):
        record = RequestRecord(
            "r", "POST", "/v1/chat", 200, model="m", duration_ms=milliseconds, stream=False
        )
        log.write(json_line(end * 1_000_000, record))
    log.write(json_line(0, RequestRecord("r", "GET", "/readyz", 200)))
    log.write('{"time": "2026-01-01T00:00:00Z", "event": "log_lines_dropped", "count": 3}\n')
    recording = load(log.getvalue())
    assert [(asked.at, asked.seconds) for asked in recording.requests] == [(0, 2), (0.5, 0.5)]


def test_a_replay_takes_as_long_as_it_took(load: Load) -> None:
    """The recorded seconds are those that the upstreams take, in each run anew."""
    recording = load('{"at": 0, "seconds": 1.5}\n{"at": 3, "seconds": 0.5, "streamed": true}\n')
    config = GatewayConfig.model_validate({"providers": [{"name": "a", "type": "mock"}]})
    for _ in range(2):
        result = simulate(
            Simulation(config, Scenario(duration=recording.duration), recorded=recording.again())
        )
        assert result.ok
        assert result.summary["outcomes"]["completed"] == 2
        assert result.summary["latency"]["max"] == pytest.approx(1.5)


MISTAKES = {
    "[]": "requests.jsonl:1: must be a JSON object",
    '{"at": 1}\nno': "requests.jsonl:2: is no JSON: Expecting value",
    '{"at": "soon"}': "at must be a number",
    '{"at": -1}': "at must not be negative",
    '{"model": "m"}': "needs `at`",
    '{"at": 1, "streamed": "yes"}': "streamed must be true or false",
    '{"at": 1, "model": ""}': "model must be a non-empty string",
    '{"at": 1, "priority": "high"}': "priority must be one of critical_plus",
    '{"at": 1, "deadline": 0}': "deadline must be above 0",
    '{"at": 0}\n{"at": 100000}': "more than a day",
    "": "there is no request in it",
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_a_mistake_is_told_with_its_line(load: Load, text: str, words: str) -> None:
    """Each mistake names the file, and the line where there is one."""
    with pytest.raises(ConfigurationFileError) as caught:
        load(text)
    assert words in str(caught.value)


def test_mistakes_without_end_are_not_all_told(load: Load) -> None:
    """A file of another kind is given up after the first mistakes."""
    with pytest.raises(ConfigurationFileError) as caught:
        load("x\n" * 1_000)
    assert len(caught.value.findings) == 20


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(ConfigurationFileError, match="cannot be read"):
        load_recording(str(tmp_path / "nowhere.jsonl"))


def test_requests_of_one_size_share_their_body(load: Load) -> None:
    """A million recorded requests are not a million prompts in memory."""
    lines = (json.dumps({"at": number, "model": "m"}) for number in range(10))
    recording = load("\n".join(lines))
    assert len({id(asked.request) for asked in recording.requests}) == 1
