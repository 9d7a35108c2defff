"""Scenario files: what they may say, and how mistakes in them are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.configuration import ConfigurationFileError
from adapters.simulation.scenario_file import load_simulation
from adapters.simulation.simulation import Simulation
from engine.config import GatewayConfig

CONFIG = GatewayConfig.model_validate(
    {
        "providers": [{"name": "one", "type": "mock"}, {"name": "two", "type": "mock"}],
        "models": [{"name": "chat", "targets": [{"provider": "one"}, {"provider": "two"}]}],
    }
)

Load = Callable[[str], Simulation]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a scenario to a file and read it."""

    def written(text: str) -> Simulation:
        path = tmp_path / "scenario.yaml"
        path.write_text(text)
        return load_simulation(CONFIG, str(path))

    return written


FULL = """\
duration: 60
seed: 9
phases:
  - {rate: 5, models: {chat: 1}, streamed: 0.5, deadline: {kind: uniform, low: 1, high: 9}}
  - {rate: 50, at: 10, until: 20, priorities: {critical: 1, sheddable: 3}}
providers:
  "*": {latency: {kind: exponential, mean: 0.3}}
  one: {latency: {kind: lognormal, median: 0.3, p95: 1}, concurrency: 4, errors: {transient: 0.1}}
faults:
  - {kind: status, status: 429, retry_after: 3, providers: [one, two], at: 5, until: 8}
changes:
  - {at: 30, set_weight: {provider: one, weight: 2}}
  - {at: 40, reload: other.yaml}
"""


def test_a_scenario_is_read_with_its_reloads(load: Load, tmp_path: Path) -> None:
    """Reloads name files beside the scenario; they are read before anything runs."""
    (tmp_path / "other.yaml").write_text("providers: [{name: one, type: mock}]\n")
    simulation = load(FULL)
    assert simulation.scenario.seed == 9
    assert list(simulation.reloads) == [1]
    assert len(simulation.reloads[1].providers) == 1


MISTAKES = {
    "duratoin: 5": "scenario.yaml:1: duratoin: unknown key; did you mean 'duration'?",
    "duration: 5\nphases: [{rate: -1}]": "scenario.yaml:2: phases[0].rate: must be greater than 0",
    "duration: 5": "scenario.yaml: there are no `phases`: nothing would be asked",
    "duration: 5\nphases: [{rate: 1, at: 7}]": "phases[0] begins at 7 s, after the end",
    "duration: 5\nphases: [{rate: 1, models: {chta: 1}}]": (
        "scenario.yaml:2: phases[0].models.chta: no model is named like that; did you mean 'chat'?"
    ),
    "duration: 5\nphases: [{rate: 1}]\nproviders: {oen: {}}": (
        "scenario.yaml:3: providers.oen: no provider is named like that; did you mean 'one'?"
    ),
    "duration: 5\nphases: [{rate: 1}]\nfaults:\n  - {kind: refus}": "did you mean 'refuse'?",
    "duration: 5\nphases: [{rate: 1}]\nfaults:\n  - {kind: refuse, status: 500}": (
        "scenario.yaml:4: faults[0]: status means nothing to a fault of kind refuse"
    ),
    "duration: 5\nphases: [{rate: 1}]\nfaults:\n  - {kind: refuse, lasting: 5}": (
        "lasting needs an `every`"
    ),
    "duration: 5\nphases: [{rate: 1}]\nfaults:\n  - {kind: refuse, at: 3, until: 2}": (
        "until must come after at"
    ),
    "duration: 5\nphases: [{rate: 1}]\nchanges:\n  - {at: 1, eject: one, restore: one}": (
        "a change is exactly one of"
    ),
    "duration: 5\nphases: [{rate: 1}]\nchanges:\n  - {at: 1, eject: three}": (
        "changes[0].eject: no provider is named like that"
    ),
    "duration: 5\nphases: [{rate: 1}]\nchanges:\n  - {at: 1, reload: gone.yaml}": (
        "there is no such file"
    ),
    "duration: 5\nphases: [{rate: 1, deadline: {kind: lognormal, median: 3, p95: 1}}]": (
        "p95 must not be below the median"
    ),
    "duration: 5\nphases: [{rate: 1}]\nproviders: {one: {errors: {transient: 0.7, broken: 0.7}}}": (
        "the shares of errors add up to more than 1"
    ),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.items(), ids=range(len(MISTAKES)))
def test_a_mistake_is_told_with_its_place(load: Load, text: str, words: str) -> None:
    """Each mistake names the file, the line where there is one, and the field."""
    with pytest.raises(ConfigurationFileError) as caught:
        load(text)
    assert words in str(caught.value)


def test_all_mistakes_are_told_at_once(load: Load) -> None:
    """Whoever writes a file hears of everything that is wrong with it."""
    with pytest.raises(ConfigurationFileError) as caught:
        load("duration: -5\nphases: [{rate: 0}]\nfoo: 1\n")
    assert len(caught.value.findings) == 3


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """With its name."""
    with pytest.raises(ConfigurationFileError, match=r"nowhere\.yaml: there is no such file"):
        load_simulation(CONFIG, str(tmp_path / "nowhere.yaml"))
