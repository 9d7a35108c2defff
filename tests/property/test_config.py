"""Configurations: what is dumped can be read again, and nonsense is refused."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine import GatewayConfig, ProviderConfig, TargetConfig

names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=12)
seconds = st.floats(0.001, 86_400)
positive_weights = st.floats(1e-6, 1e9)
weights = st.one_of(st.just(0.0), positive_weights)

timeouts = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["connect", "headers", "first_event", "idle", "total"], seconds)
)
limits = st.fixed_dictionaries(
    {},
    optional={
        "requests_per_minute": st.none() | st.integers(1, 10_000_000),
        "tokens_per_minute": st.none() | st.integers(1, 10_000_000_000),
        "concurrency": st.integers(1, 10_000),
        "queue": st.integers(0, 100_000),
    },
)
retries = st.fixed_dictionaries(
    {},
    optional={
        "max_attempts": st.integers(1, 50),
        "repeat_maybe_accepted": st.sampled_from(["never", "non_streaming", "always"]),
    },
)
balancers = st.sampled_from(["weighted_random", "smooth_weighted", "least_loaded"])


def provider(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """One provider of that name, enabled and pickable."""
    return st.fixed_dictionaries(
        {"name": st.just(name), "type": names, "weight": positive_weights},
        optional={
            "base_url": st.none() | st.just("http://127.0.0.1:8000/v1"),
            "api_key_env": st.none() | names,
            "timeout": seconds,
            "max_retries": st.integers(0, 20),
            "timeouts": timeouts,
            "limits": limits,
            "options": st.dictionaries(names, st.integers() | names | st.booleans(), max_size=3),
        },
    )


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """A whole configuration as a file would hold it."""
    provider_names = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    made: dict[str, Any] = {"providers": [draw(provider(name)) for name in provider_names]}
    models = []
    for name in draw(st.lists(names, max_size=3, unique=True)):
        targets = [
            {"provider": used, "weight": draw(st.none() | positive_weights)}
            | {"tier": draw(st.integers(0, 100)), "model": draw(st.none() | names)}
            for used in draw(st.sets(st.sampled_from(provider_names), min_size=1))
        ]
        models.append({"name": name, "targets": targets, "retries": draw(st.none() | retries)})
    made["models"] = models
    made["balancer"] = draw(balancers)
    made["retries"] = draw(retries)
    made["seed"] = draw(st.none() | st.integers(0, 2**64))
    made["total"] = draw(st.none() | seconds)
    return made


@given(configurations())
def test_configuration_survives_a_round_trip(made: dict[str, Any]) -> None:
    """Dumping a configuration and reading it again gives the same, as objects and as JSON."""
    config = GatewayConfig.model_validate(made)
    assert GatewayConfig.model_validate(config.model_dump()) == config
    assert GatewayConfig.model_validate_json(config.model_dump_json()) == config
    assert GatewayConfig.model_validate(config.model_dump(exclude_defaults=True)) == config


bad_weights = st.one_of(
    st.floats(max_value=-1e-300, allow_nan=False),
    st.just(math.nan),
    st.just(math.inf),
    st.just(-math.inf),
    st.floats(min_value=1.1e9, allow_nan=False),
)


@given(bad_weights)
def test_weight_that_is_no_share_is_refused(weight: float) -> None:
    """Negative, infinite, huge and not-a-number weights are refused, here and in targets."""
    with pytest.raises(ValidationError, match="weight"):
        ProviderConfig(name="a", type="mock", weight=weight)
    with pytest.raises(ValidationError, match="weight"):
        TargetConfig(provider="a", weight=weight)


@given(st.integers(1, 5))
def test_all_weights_zero_is_refused(count: int) -> None:
    """A configuration that could never pick anybody is refused."""
    made = [{"name": f"p{n}", "type": "mock", "weight": 0} for n in range(count)]
    with pytest.raises(ValidationError, match="weight 0"):
        GatewayConfig.model_validate({"providers": made})


@given(st.lists(weights, min_size=2, max_size=5))
def test_single_zero_weights_are_fine(given_weights: list[float]) -> None:
    """Some zeros are no mistake as long as one provider can be picked."""
    made = [{"name": f"p{n}", "type": "mock", "weight": w} for n, w in enumerate(given_weights)]
    made.append({"name": "last", "type": "mock"})
    config = GatewayConfig.model_validate({"providers": made})
    assert [p.weight for p in config.providers] == [*given_weights, 1.0]


@given(
    st.sampled_from(["connect", "headers", "first_event", "idle", "total"]),
    st.sampled_from([0, -1, math.nan, math.inf, -math.inf, 86_401, "soon", None]),
)
def test_time_that_is_no_time_is_refused(field: str, value: Any) -> None:
    """Every limit is a finite number of seconds above 0."""
    with pytest.raises(ValidationError, match=field):
        ProviderConfig.model_validate({"name": "a", "type": "mock", "timeouts": {field: value}})


@given(names.filter(lambda name: name not in ProviderConfig.model_fields))
def test_unknown_keys_are_refused(key: str) -> None:
    """A key that nobody reads is a mistake that must be heard."""
    with pytest.raises(ValidationError, match="Extra inputs"):
        ProviderConfig.model_validate({"name": "a", "type": "mock", key: 1})
