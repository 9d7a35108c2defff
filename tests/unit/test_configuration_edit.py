"""One checked configuration out of another, or out of plain data."""

import pytest

from engine import ConfigurationError, GatewayConfig
from engine.configuration_edit import checked_configuration, with_enabled, with_weight

CONFIG = GatewayConfig.model_validate(
    {
        "providers": [{"name": name, "type": "mock"} for name in "ab"],
        "models": [
            {"name": "m", "targets": [{"provider": "a"}, {"provider": "a", "model": "x"}]},
            {"name": "n", "targets": [{"provider": "a"}, {"provider": "b"}]},
        ],
        "retries": {"max_attempts": 9},
    }
)


def test_configuration_is_taken_as_it_is() -> None:
    """What is checked already is not checked again."""
    assert checked_configuration(CONFIG) is CONFIG
    assert checked_configuration(CONFIG.model_dump()) == CONFIG


def test_error_names_the_place_and_not_the_value() -> None:
    """A finding tells where, and never what was written there."""
    with pytest.raises(ConfigurationError, match=r"providers\.0\.api_key: ") as caught:
        checked_configuration({"providers": [{"name": "a", "type": "x", "api_key": "canary"}]})
    assert "canary" not in str(caught.value)


def test_weight_of_a_provider() -> None:
    """Only that provider differs, and all else is the same."""
    new = with_weight(CONFIG, "a", 4)
    assert [provider.weight for provider in new.providers] == [4, 1]
    assert with_weight(new, "a", 1) == CONFIG


def test_weight_within_a_model() -> None:
    """All targets of the model at that provider get it."""
    new = with_weight(CONFIG, "a", 4, model="m")
    assert [[t.weight for t in model.targets] for model in new.models] == [[4, 4], [None, None]]
    assert new.providers == CONFIG.providers


def test_result_is_checked_as_a_whole() -> None:
    """What could not serve is refused, whichever part of it was changed."""
    with pytest.raises(ConfigurationError, match="'m': all its enabled targets have weight 0"):
        with_weight(CONFIG, "a", 0)
    with pytest.raises(ConfigurationError, match="'m': all its enabled targets"):
        with_enabled(CONFIG, "a", False)
    with pytest.raises(ConfigurationError, match="weight: "):
        with_weight(CONFIG, "a", float("nan"))


def test_switching_off_and_on() -> None:
    """The flag of one provider changes, and back."""
    new = with_enabled(CONFIG, "b", False)
    assert [provider.enabled for provider in new.providers] == [True, False]
    assert with_enabled(new, "b", True) == CONFIG


def test_unknown_names_are_told_with_a_few_known_ones() -> None:
    """The list of known names is bounded."""
    many = GatewayConfig.model_validate(
        {"providers": [{"name": f"p{number:02}", "type": "mock"} for number in range(30)]}
    )
    with pytest.raises(ConfigurationError, match=r"p09 and 20 more\)"):
        with_enabled(many, "x", True)
