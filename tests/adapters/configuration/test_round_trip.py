"""Properties: what is written is what is read."""

from __future__ import annotations

import contextlib
import json
import math
import string
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.configuration.findings import Findings, UnreadableError
from adapters.configuration.json_reader import read_json
from adapters.configuration.loader import parse_config
from adapters.configuration.toml_reader import read_toml
from adapters.configuration.yaml_reader import read_yaml
from engine.config import GatewayConfig

NAMES = st.text(string.ascii_letters + string.digits + "-_. :#", min_size=1, max_size=12).map(
    lambda text: f"p{text}x"
)
SECONDS = st.floats(0.001, 86_400) | st.integers(1, 86_400)
WEIGHTS = st.floats(0.001, 1e9) | st.integers(1, 1_000)
TEXT = st.text(max_size=8).filter(lambda text: "$" not in text and text.isprintable())
PROVIDERS = st.lists(
    st.fixed_dictionaries(
        {
            "name": NAMES,
            "type": st.sampled_from(["vllm", "openai_compatible"]),
            "base_url": st.just("http://127.0.0.1:8000/v1"),
        },
        optional={
            "timeout": SECONDS,
            "max_retries": st.integers(0, 20),
            "weight": WEIGHTS,
            "timeouts": st.fixed_dictionaries({}, optional={"connect": SECONDS, "idle": SECONDS}),
            "limits": st.fixed_dictionaries(
                {},
                optional={"queue": st.integers(0, 100), "requests_per_minute": st.integers(1, 9)},
            ),
        },
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda provider: str(provider["name"]),
)


@st.composite
def configurations(draw: st.DrawFn) -> GatewayConfig:
    providers = draw(PROVIDERS)
    targets = st.fixed_dictionaries(
        {"provider": st.sampled_from([provider["name"] for provider in providers])},
        optional={"model": NAMES, "weight": WEIGHTS},
    )
    models = st.lists(
        st.fixed_dictionaries(
            {"name": NAMES, "targets": st.lists(targets, min_size=1, max_size=1)},
            optional={"retries": st.just({"max_attempts": 2})},
        ),
        max_size=3,
        unique_by=lambda model: str(model["name"]),
    )
    data = {
        "providers": providers,
        "models": draw(models),
        "server": draw(st.fixed_dictionaries({"port": st.integers(0, 65_535), "host": TEXT})),
        "balancer": draw(st.sampled_from(["weighted_random", "smooth_weighted", "least_loaded"])),
        "seed": draw(st.none() | st.integers(-(2**70), 2**70)),
        "total": draw(st.none() | SECONDS),
    }
    return GatewayConfig.model_validate(data)


@settings(max_examples=40, deadline=None)
@given(configurations())
def test_a_configuration_written_as_json_reads_back_equal(config: GatewayConfig) -> None:
    """The models' own JSON is a configuration file."""
    text = config.model_dump_json(indent=1)
    assert parse_config(text, file="gateway.json", suffix=".json") == config


@settings(max_examples=40, deadline=None)
@given(configurations(), st.booleans())
def test_a_configuration_written_as_yaml_reads_back_equal(
    config: GatewayConfig, flow_style: bool
) -> None:
    """What PyYAML writes of the models is a configuration file, in both of its styles."""
    text = yaml.safe_dump(
        config.model_dump(mode="json"), default_flow_style=flow_style, allow_unicode=True
    )
    assert parse_config(text, file="gateway.yaml", suffix=".yaml") == config


@settings(max_examples=40, deadline=None)
@given(configurations())
def test_a_configuration_written_as_toml_reads_back_equal(config: GatewayConfig) -> None:
    """Inline tables and TOML's strings carry the same settings."""
    settings_given = config.model_dump(mode="json", exclude_none=True)
    text = "\n".join(f"{key} = {as_toml(value)}" for key, value in settings_given.items())
    assert parse_config(text, file="gateway.toml", suffix=".toml") == config


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(as_toml(item) for item in value)}]"
    return json.dumps(value, ensure_ascii=False)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(max_size=4), JSON_VALUES, min_size=1), st.sampled_from([None, 1, "\t"])
)
def test_json_is_read_as_the_standard_library_reads_it(
    data: dict[str, Any], indent: int | str | None
) -> None:
    """The reader with positions agrees with `json` on everything that `json` writes."""
    findings = Findings("gateway.json")
    text = json.dumps(data, indent=indent)
    found, positions = read_json(text, findings)
    assert found == json.loads(text)
    assert not len(findings)
    assert {path[0] for path in positions} == set(data)


def first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def finite(text: str) -> float | None:
    return float(text) if math.isfinite(float(text)) else None


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from('{}[]",:01-.eE+ \n\ttrufalsn\\u'), min_size=1, max_size=30))
def test_json_is_refused_as_the_standard_library_refuses_it(text: str) -> None:
    """Whatever is no JSON is told, and nothing else is; of duplicates the first one stays."""
    expected: Any = "refused"
    with contextlib.suppress(ValueError):
        expected = json.loads(text, object_pairs_hook=first_wins, parse_float=finite)
    if not text.strip():
        expected = None
    found: Any = "refused"
    with contextlib.suppress(UnreadableError):
        found, _ = read_json(text, Findings("gateway.json"))
    assert found == expected


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("&*a: -[]{},'\"\n#|>!?%@`~<0."), max_size=30))
def test_no_yaml_text_breaks_the_reader(text: str) -> None:
    """Any text is read or refused in words."""
    with contextlib.suppress(UnreadableError):
        read_yaml(text, Findings("gateway.yaml"))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("a.=[]{},'\"\n# 01-tT:"), max_size=30))
def test_no_toml_text_breaks_the_reader(text: str) -> None:
    """Any text is read or refused in words."""
    with contextlib.suppress(UnreadableError):
        read_toml(text, Findings("gateway.toml"))


SIMPLE_VALUES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(string.printable, max_size=6)
    | st.text("0123456789.eE+-xob:_", max_size=6)
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("ab1.:", max_size=4), SIMPLE_VALUES, min_size=1), st.booleans())
def test_what_pyyaml_writes_is_read_the_same(data: dict[str, Any], flow_style: bool) -> None:
    """Whatever a YAML 1.1 writer leaves without quotes means here what it meant there."""
    text = yaml.safe_dump(data, default_flow_style=flow_style)
    found, _ = read_yaml(text, Findings("gateway.yaml"))
    assert found == data
