"""What the tests of the simulator share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from adapters.simulation.result import Result
from adapters.simulation.scenario import Scenario
from adapters.simulation.simulation import Simulation, simulate
from engine.config import GatewayConfig

Run = Callable[..., Result]


def provider(name: str, **settings: Any) -> dict[str, Any]:
    """A provider's configuration as plain data."""
    return {"name": name, "type": "mock", **settings}


@pytest.fixture
def run() -> Run:
    """Run a scenario under a small configuration; settings of both can be given."""

    def simulated(
        *,
        providers: tuple[str, ...] | list[dict[str, Any]] = ("a", "b"),
        config: dict[str, Any] | None = None,
        reloads: dict[int, dict[str, Any]] | None = None,
        upstreams: dict[str, Any] | None = None,
        inspect_every: float | None = 0.5,
        **scenario: Any,
    ) -> Result:
        made = [provider(p) if isinstance(p, str) else p for p in providers]
        happens = {"duration": 20, "seed": 3, "phases": [{"rate": 10}], **scenario}
        happens["providers"] = upstreams or {}
        return simulate(
            Simulation(
                GatewayConfig.model_validate({"providers": made, **(config or {})}),
                Scenario.model_validate(happens),
                reloads={
                    number: GatewayConfig.model_validate(data)
                    for number, data in (reloads or {}).items()
                },
                inspect_every=inspect_every,
            )
        )

    return simulated
