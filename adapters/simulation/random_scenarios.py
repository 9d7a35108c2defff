"""From a seed to a small scenario that is harsher than production.

Everything that can be set is set at random, within bounds in which each run takes tens of
milliseconds: a handful of providers, some hundred requests, faults every few seconds,
callers without patience, and an operator who cannot keep his hands off.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from adapters.simulation.scenario import FaultKind, Scenario
from adapters.simulation.simulation import Simulation
from engine.config import GatewayConfig
from engine.priority import Priority

INSPECT_EVERY = 0.5
"""Seconds between two inspections: many times within each fault."""

MAX_CALLBACKS = 300_000
"""A hundred times what most of them take: a scenario that needs more goes in circles."""

REQUESTS = (20, 100)
DURATION = (4.0, 20.0)
NAMES = ("a", "b", "c", "d", "e")
KINDS: tuple[str, ...] = get_args(FaultKind)
ERRORS = ("connect", "overloaded", "transient", "silent", "broken", "caller", "context_length")

Data = dict[str, Any]


def random_simulation(seed: int) -> Simulation:
    """The scenario of a seed; the same seed always gives the same one."""
    rng = random.Random(f"scenario {seed}")
    config = _config(rng)
    data = _scenario(rng, config, seed)
    return as_simulation({"config": config, "scenario": data}, name=f"seed {seed}")


def as_simulation(document: Mapping[str, Any], *, name: str) -> Simulation:
    """A simulation out of plain data: `config` and `scenario`, reloads within the latter.

    Raises:
        ValidationError: If the data is no such thing.
    """
    scenario = Scenario.model_validate(document["scenario"])
    return Simulation(
        GatewayConfig.model_validate(document["config"]),
        scenario,
        name=name,
        reloads={
            number: GatewayConfig.model_validate(change.reload)
            for number, change in enumerate(scenario.changes)
            if isinstance(change.reload, dict)
        },
        inspect_every=INSPECT_EVERY,
        max_callbacks=MAX_CALLBACKS,
    )


def as_document(simulation: Simulation) -> Data:
    """The plain data of a simulation whose reloads stand in its scenario."""
    return {
        "config": simulation.config.model_dump(mode="json", exclude_unset=True),
        "scenario": simulation.scenario.model_dump(mode="json", exclude_unset=True),
    }


# ── the configuration ────────────────────────────────────────────────────────────


def _config(rng: random.Random) -> Data:
    providers = [_provider(rng, name) for name in NAMES[: rng.randint(1, len(NAMES))]]
    config: Data = {
        "providers": providers,
        "balancer": _one_of(rng, ("weighted_random", "smooth_weighted", "least_loaded")),
        "retries": _retries(rng),
        "server": {"drain": _between(rng, 1, 8)},
    }
    if _happens(rng, 0.3):
        config["total"] = _between(rng, 1, 12)
    if _happens(rng, 0.3):
        config["retry_budget"] = {
            "capacity": _one_of(rng, (1, 2, 5, 20)),
            "per_success": _between(rng, 0, 1),
            "per_second": _between(rng, 0, 1),
            "max_share": _between(rng, 0, 1),
            "min_concurrency": rng.randint(0, 5),
        }
    if _happens(rng, 0.75):
        config["models"] = _models(rng, [provider["name"] for provider in providers])
    return config


def _provider(rng: random.Random, name: str) -> Data:
    limits: Data = {
        "concurrency": _one_of(rng, (1, 2, 4, 8, 16)),
        "queue": _one_of(rng, (0, 1, 4, 32)),
    }
    if _happens(rng, 0.15):
        limits["requests_per_minute"] = _one_of(rng, (30, 120, 600))
    if _happens(rng, 0.15):
        limits["tokens_per_minute"] = _one_of(rng, (6_000, 60_000))
    if _happens(rng, 0.2):
        limits["adaptive"] = {"initial": rng.randint(1, 8), "min": rng.randint(1, 3)}
    provider: Data = {
        "name": name,
        "type": "mock",
        "weight": _one_of(rng, (1, 1, 2, 5, 0.1)),
        "timeout": _between(rng, 0.5, 6),
        "max_retries": rng.randint(0, 3),
        "timeouts": {
            "connect": _between(rng, 0.2, 2),
            "headers": _between(rng, 0.5, 6),
            "first_event": _between(rng, 0.3, 4),
            "idle": _between(rng, 0.2, 3),
            "total": _between(rng, 1, 12),
        },
        "limits": limits,
    }
    if _happens(rng, 0.6):
        provider["ejection"] = {
            "consecutive_failures": _one_of(rng, (0, 1, 3, 5)),
            "failure_rate": _one_of(rng, (0, 0.3, 0.5)),
            "window": _between(rng, 1, 10),
            "min_requests": _one_of(rng, (1, 5, 10)),
            "base": _between(rng, 0.2, 4),
            "max": _between(rng, 1, 10),
            "slow_start": _one_of(rng, (0, 1, 5)),
            "unproven_concurrency": _one_of(rng, (1, 2, 10)),
        }
    return provider


def _retries(rng: random.Random) -> Data:
    return {
        "max_attempts": rng.randint(1, 5),
        "repeat_maybe_accepted": _one_of(rng, ("never", "non_streaming", "always")),
    }


def _models(rng: random.Random, providers: Sequence[str]) -> list[Data]:
    models = []
    for name in ("large", "small")[: rng.randint(1, 2)]:
        serving = rng.sample(providers, rng.randint(1, len(providers)))
        model: Data = {
            "name": name,
            "targets": [{"provider": each, "tier": rng.randint(0, 1)} for each in serving],
            "upstream_streaming": _one_of(rng, ("never", "never", "auto")),
        }
        if _happens(rng, 0.5):
            model["retries"] = _retries(rng)
        if _happens(rng, 0.2):
            model["total"] = _between(rng, 1, 10)
        if _happens(rng, 0.2):
            model["hedging"] = {"delay": _between(rng, 0.05, 1), "max_share": 1.0}
        models.append(model)
    if len(models) > 1 and _happens(rng, 0.6):
        cause = _one_of(rng, ("error", "context_length", "content_filter"))
        models[0]["fallbacks"] = {cause: [models[1]["name"]], "error": [models[1]["name"]]}
    return models


# ── what happens ─────────────────────────────────────────────────────────────────


def _scenario(rng: random.Random, config: Data, seed: int) -> Data:
    duration = _between(rng, *DURATION)
    names = [provider["name"] for provider in config["providers"]]
    return {
        "duration": duration,
        "seed": seed,
        "phases": _phases(rng, duration),
        "providers": {name: _behaviour(rng) for name in names if _happens(rng, 0.8)},
        "faults": [_fault(rng, names, duration) for _ in range(rng.randint(0, 4))],
        "changes": _changes(rng, config, duration),
    }


def _phases(rng: random.Random, duration: float) -> list[Data]:
    requests = rng.randint(*REQUESTS)
    phases = [_phase(rng, requests / duration)]
    if _happens(rng, 0.4):
        # A burst: all at once, or nearly.
        at = _between(rng, 0, duration * 0.8)
        burst = _phase(rng, rng.randint(5, 40) / 0.2)
        phases.append(burst | {"at": at, "until": round(at + 0.2, 3), "arrivals": "constant"})
    return phases


def _phase(rng: random.Random, rate: float) -> Data:
    phase: Data = {
        "rate": round(max(0.1, rate), 3),
        "streamed": _one_of(rng, (0, 0.5, 1)),
        "input_tokens": rng.randint(1, 200),
        "output_tokens": rng.randint(1, 100),
        "cancelled": _one_of(rng, (0, 0, 0.1, 0.5)),
        "cancel_after": {"kind": "uniform", "low": 0, "high": _between(rng, 0.01, 2)},
    }
    if _happens(rng, 0.4):
        phase["deadline"] = {"kind": "uniform", "low": 0.01, "high": _between(rng, 0.05, 5)}
    if _happens(rng, 0.4):
        phase["priorities"] = {p.word: rng.randint(1, 5) for p in rng.sample(list(Priority), 2)}
    return phase


def _behaviour(rng: random.Random) -> Data:
    behaviour: Data = {
        "latency": _one_of(
            rng,
            (
                _between(rng, 0, 0.3),
                {"kind": "exponential", "mean": _between(rng, 0.05, 1)},
                {"kind": "lognormal", "median": 0.2, "p95": _between(rng, 0.3, 4)},
            ),
        ),
        "events": rng.randint(1, 5),
        "when_full": _one_of(rng, ("queue", "429", "503")),
        "queue": _one_of(rng, (0, 5, 100)),
    }
    if _happens(rng, 0.5):
        behaviour["tokens_per_second"] = _between(rng, 20, 500)
    if _happens(rng, 0.4):
        behaviour["concurrency"] = rng.randint(1, 8)
    if _happens(rng, 0.3):
        behaviour["retry_after"] = _between(rng, 0.05, 5)
    if _happens(rng, 0.4):
        kinds = rng.sample(ERRORS, 2)
        behaviour["errors"] = {kind: round(rng.uniform(0, 0.3), 3) for kind in kinds}
    return behaviour


def _fault(rng: random.Random, names: Sequence[str], duration: float) -> Data:
    kind = _one_of(rng, KINDS)
    at = _between(rng, 0, duration * 0.9)
    fault: Data = {
        "kind": kind,
        "providers": _one_of(rng, ("*", _one_of(rng, names), _one_of(rng, names))),
        "at": at,
        "until": round(at + _between(rng, 0.1, duration), 3),
        "share": _one_of(rng, (1, 1, 0.5, 0.1)),
        "after": _one_of(rng, (0, 0.01, 0.2)),
        "drops_running": _happens(rng, 0.2),
    }
    if _happens(rng, 0.2):
        fault["every"] = _between(rng, 0.5, 5)
    if kind == "status":
        fault["status"] = _one_of(rng, (500, 502, 503, 429, 408, 400, 403))
    if kind in ("status", "quota") and _happens(rng, 0.6):
        fault["retry_after"] = _between(rng, 0.01, 10)
    if kind == "slow":
        fault["factor"] = _between(rng, 1.5, 20)
    return fault


def _changes(rng: random.Random, config: Data, duration: float) -> list[Data]:
    changes = []
    for _ in range(_one_of(rng, (0, 0, 1, 2, 4))):
        at = _between(rng, 0, duration * 0.95)
        changes.append({"at": at, **_change(rng, config)})
    if _happens(rng, 0.15):
        at = _between(rng, duration * 0.3, duration * 0.95)
        changes.append({"at": at, "drain": _between(rng, 0.1, 10)})
    return changes


def _change(rng: random.Random, config: Data) -> Data:
    name = _one_of(rng, [provider["name"] for provider in config["providers"]])
    kind = _one_of(
        rng, ("set_weight", "set_enabled", "eject", "restore", "reload", "reload", "behaviour")
    )
    values: dict[str, Any] = {
        "set_weight": {"provider": name, "weight": _one_of(rng, (0, 1, 3))},
        "set_enabled": {"provider": name, "enabled": _happens(rng, 0.5)},
        "eject": name,
        "restore": name,
        "behaviour": {"provider": name, "behaviour": _behaviour(rng)},
    }
    return {kind: values[kind] if kind in values else _reloaded(rng, config)}


def _reloaded(rng: random.Random, config: Data) -> Data:
    """The same configuration with something else in it, without a name that is gone."""
    providers = [dict(provider) for provider in config["providers"]]
    changed = rng.randrange(len(providers))
    name = providers[changed]["name"]
    kind = _one_of(rng, ("settings", "settings", "weight", "more", "rules"))
    if kind == "settings":
        providers[changed] = _provider(rng, name)
    elif kind == "weight":
        providers[changed]["weight"] = _one_of(rng, (0.5, 4))
    elif kind == "more" and len(providers) < len(NAMES):
        providers.append(_provider(rng, NAMES[len(providers)]))
    else:
        return _config(rng) | {"models": config.get("models", []), "providers": providers}
    return config | {"providers": providers}


def _between(rng: random.Random, low: float, high: float) -> float:
    return round(rng.uniform(low, high), 3)


def _happens(rng: random.Random, share: float) -> bool:
    return rng.random() < share


def _one_of(rng: random.Random, choices: Sequence[Any]) -> Any:
    return choices[rng.randrange(len(choices))]
