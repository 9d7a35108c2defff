"""The configuration models: defaults, references, and what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from engine import GatewayConfig, ProviderConfig, RetriesConfig, ServerConfig, TimeoutsConfig


def read(**settings: Any) -> GatewayConfig:
    """A configuration with one provider unless told otherwise."""
    return GatewayConfig.model_validate({"providers": [{"name": "a", "type": "mock"}], **settings})


def test_defaults_of_a_provider() -> None:
    """The settings that applications know have the defaults that they know."""
    config = ProviderConfig(name="a", type="openai")
    assert config.model_dump(exclude={"timeouts", "limits", "ejection", "options"}) == {
        "name": "a", "type": "openai", "base_url": None, "api_key_env": None, "timeout": 30.0,
        "max_retries": 3, "weight": 1.0, "enabled": True,
        "health_check": None,
    }  # fmt: skip


def test_default_limits_are_those_of_the_design() -> None:
    """Every limit is finite without being set."""
    limits = TimeoutsConfig()
    assert (limits.connect, limits.headers, limits.first_event) == (5, 60, 15)
    assert (limits.idle, limits.total) == (30, 120)
    assert RetriesConfig().max_attempts == 4
    assert RetriesConfig().repeat_maybe_accepted == "non_streaming"
    assert ServerConfig().max_body_bytes == 32 * 1024 * 1024


def test_configuration_is_frozen() -> None:
    """Nothing of it changes after it was read."""
    config = read()
    with pytest.raises(ValidationError, match="frozen"):
        config.balancer = "least_loaded"
    with pytest.raises(ValidationError, match="frozen"):
        config.providers[0].weight = 2.0


def test_defaults_stand_in_for_what_a_provider_does_not_say() -> None:
    """Own settings win, and objects are merged one level deep."""
    config = read(
        defaults={"timeout": 9, "timeouts": {"idle": 1, "total": 7}, "weight": 5},
        providers=[
            {"name": "a", "type": "mock"},
            {"name": "b", "type": "mock", "timeout": 3, "timeouts": {"idle": 2}},
        ],
    )
    a, b = config.providers
    assert (a.timeout, a.weight, a.timeouts.idle, a.timeouts.total) == (9, 5, 1, 7)
    assert (b.timeout, b.weight, b.timeouts.idle, b.timeouts.total) == (3, 5, 2, 7)


@pytest.mark.parametrize("defaults", [[], "x", {"name": "x"}, {"tiemout": 3}])
def test_wrong_defaults_are_refused(defaults: Any) -> None:
    """Defaults hold provider settings, and only those that may be shared."""
    with pytest.raises(ValidationError, match="defaults"):
        read(defaults=defaults)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"providers": []}, "at least 1"),
        ({"providers": [{"name": "a", "type": "mock"}] * 2}, "two providers are named 'a'"),
        ({"providers": [{"name": "a", "type": "mock", "enabled": False}]}, "is enabled"),
        ({"providers": [{"name": "a", "type": "mock", "weight": 0}]}, "weight 0"),
        ({"models": [{"name": "m", "targets": []}]}, "at least 1"),
        ({"models": [{"name": "m", "targets": [{"provider": "b"}]}]}, r"named 'b' \(known: a\)"),
        ({"models": [{"name": "m", "targets": [{"provider": "a"}] * 2}]}, "stands here twice"),
        ({"models": [{"name": "m", "targets": [{"provider": "a"}]}] * 2}, "two models"),
        ({"models": [{"name": "m", "targets": [{"provider": "a", "weight": 0}]}]}, "weight 0"),
        ({"balancer": "round_robin"}, "balancer"),
        ({"retries": {"max_attempts": 0}}, "max_attempts"),
        ({"unknown": 1}, "Extra inputs"),
        ({"server": {"port": 70_000}}, "port"),
        ({"total": 0}, "total"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    """A configuration that could not serve says why when it is read."""
    with pytest.raises(ValidationError, match=words):
        read(**settings)


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "naïve", "x" * 129])
def test_names_are_printable_ascii(name: str) -> None:
    """Names end up in headers and metrics."""
    with pytest.raises(ValidationError, match="name"):
        ProviderConfig(name=name, type="mock")


def test_models_are_refused_when_only_disabled_providers_serve_them() -> None:
    """A model whose every enabled target has no weight can never be served."""
    providers = [
        {"name": "on", "type": "mock"},
        {"name": "off", "type": "mock", "enabled": False},
    ]
    with pytest.raises(ValidationError, match="weight 0"):
        read(providers=providers, models=[{"name": "m", "targets": [{"provider": "off"}]}])


def test_errors_do_not_show_what_was_written() -> None:
    """A secret in the wrong place is not repeated in the message."""
    with pytest.raises(ValidationError) as caught:
        read(providers=[{"name": "a", "type": "mock", "api_key": "sk-secret"}])
    assert "sk-secret" not in str(caught.value)


def models(**fallbacks: dict[str, list[str]]) -> list[dict[str, Any]]:
    """One model for each name, with its fallbacks."""
    return [
        {"name": name, "targets": [{"provider": "a"}], "fallbacks": others}
        for name, others in fallbacks.items()
    ]


def test_fallbacks_may_branch_and_meet() -> None:
    """Two ways to the same model are no circle."""
    found = read(
        models=models(chat={"error": ["small", "long"]}, long={"error": ["small"]}, small={})
    )
    assert found.models[0].fallbacks.names == ("small", "long")


def test_fallbacks_in_a_circle_are_refused() -> None:
    """The whole circle is named, over causes too."""
    with pytest.raises(ValidationError, match="a -> b -> c -> a"):
        read(
            models=models(
                a={"error": ["b"]}, b={"context_length": ["c"]}, c={"content_filter": ["a"]}
            )
        )


def test_a_model_that_falls_back_to_itself_is_refused() -> None:
    """The shortest circle."""
    with pytest.raises(ValidationError, match="a -> a"):
        read(models=models(a={"error": ["a"]}))


def test_a_fallback_to_an_unknown_model_is_refused() -> None:
    """The known ones are named."""
    with pytest.raises(ValidationError, match="'x' is no model here \\(known: a\\)"):
        read(models=models(a={"error": ["x"]}))
