"""What a reload would change: complete, readable, and free of secrets."""

from typing import Any

import pytest

from engine import GatewayConfig
from engine.configuration_change import (
    ChangeEntry,
    ChangeKind,
    ConfigurationChange,
    configuration_change,
    needs_new_actor,
)


def mock(name: str, **settings: Any) -> dict[str, Any]:
    """One provider of a configuration."""
    return {"name": name, "type": "mock", **settings}


def change(old: dict[str, Any], new: dict[str, Any]) -> ConfigurationChange:
    """The change from one configuration to another; both have a provider `a` if none is given."""
    whole = [
        GatewayConfig.model_validate({"providers": [mock("a")], **settings})
        for settings in (old, new)
    ]
    return configuration_change(*whole)


def provider_change(old: dict[str, Any], new: dict[str, Any]) -> ConfigurationChange:
    """The change when the only provider goes from some settings to others."""
    return change({"providers": [mock("a", **old)]}, {"providers": [mock("a", **new)]})


def test_no_difference_is_no_change() -> None:
    """An equal configuration gives an empty, false change that says so."""
    found = change({}, {})
    assert not found
    assert str(found) == "nothing changes"
    assert found.as_dict() == {"changes": [], "needs_restart": False, "replaced_actors": []}


def test_providers_that_come_and_go() -> None:
    """Added and removed providers are told with their type."""
    found = change({"providers": [mock("a")]}, {"providers": [mock("b", weight=2)]})
    assert [(entry.kind, entry.name) for entry in found.entries] == [
        (ChangeKind.PROVIDER_ADDED, "b"), (ChangeKind.PROVIDER_REMOVED, "a"),
    ]  # fmt: skip
    assert str(found).splitlines() == [
        "+ provider b (type mock, weight 2, enabled yes)",
        "- provider a (type mock, weight 1, enabled yes)",
    ]


def test_provider_is_compared_field_by_field() -> None:
    """Each setting that differs is one entry, with dots for those within others."""
    found = provider_change(
        {"timeout": 30, "limits": {"queue": 5}}, {"timeout": 20, "limits": {"queue": 9}}
    )
    assert [(e.field, e.old, e.new, e.replaces_actor) for e in found.entries] == [
        ("timeout", 30, 20, True), ("limits.queue", 5, 9, True),
    ]  # fmt: skip
    assert found.replaced == ("a",)
    assert str(found.entries[0]) == "~ provider a: timeout 30 -> 20 (its actor is replaced)"


def test_weight_and_switch_keep_the_actor() -> None:
    """Weight changes have a kind of their own; neither they nor the switch replace an actor."""
    both = {"providers": [mock("a"), mock("b")]}
    found = change(both, {"providers": [mock("a", weight=3, enabled=False), mock("b")]})
    assert [(e.kind, e.field, e.replaces_actor) for e in found.entries] == [
        (ChangeKind.WEIGHT_CHANGED, "weight", False),
        (ChangeKind.PROVIDER_CHANGED, "enabled", False),
    ]
    assert str(found).splitlines() == [
        "~ provider a: weight 1 -> 3", "~ provider a: enabled yes -> no",
    ]  # fmt: skip
    assert found.replaced == ()


@pytest.mark.parametrize(
    ("settings", "needed"),
    [({"weight": 5}, False), ({"enabled": False}, False), ({"type": "openai"}, True),
     ({"options": {"x": 1}}, True), ({"ejection": {"base": 9}}, True)],
)  # fmt: skip
def test_what_needs_a_new_actor(settings: dict[str, Any], needed: bool) -> None:
    """Everything but weight and enabled flag does."""
    old, new = (
        GatewayConfig.model_validate({"providers": [mock("a") | extra, mock("b")]}).providers[0]
        for extra in ({}, settings)
    )
    assert needs_new_actor(old, new) is needed


def test_models_that_come_go_and_change() -> None:
    """Models are told with their targets; targets by name, upstream model and tier."""
    one = {"name": "one", "targets": [{"provider": "a"}]}
    old = {"models": [one, {"name": "old", "targets": [{"provider": "a", "model": "x"}]}]}
    target = {"provider": "a", "model": "y", "tier": 1}
    new = {
        "models": [
            {**one, "targets": [{"provider": "a", "weight": 4}, target], "total": 9},
            {"name": "new", "targets": [target]},
        ]
    }
    assert str(change(old, new)).splitlines() == [
        "~ model one: targets.a.weight none -> 4",
        "~ model one: targets.a/y@1 none -> serves",
        "~ model one: total none -> 9",
        "+ model new (a/y@1)",
        "- model old (a/x)",
    ]


def test_settings_of_the_whole_file() -> None:
    """What only a restart applies is marked, what a reload applies is not."""
    found = change({}, {"server": {"port": 81, "drain": 5}, "seed": 4, "balancer": "least_loaded"})
    assert {entry.field: entry.needs_restart for entry in found.entries} == {
        "server.port": True, "server.drain": False, "balancer": False, "seed": True,
    }  # fmt: skip
    assert [entry.field for entry in found.needs_restart] == ["server.port", "seed"]
    assert "~ server.port 8080 -> 81 (needs a restart)" in str(found)
    assert found.as_dict()["needs_restart"] is True


def test_parts_that_appear_are_shown_whole() -> None:
    """A part that was not there before is shown with its values."""
    found = provider_change({}, {"health_check": {"path": "/health?token=canary"}})
    (entry,) = found.entries
    assert (entry.field, entry.old) == ("health_check", None)
    assert entry.new["interval"] == 10
    assert "canary" not in str(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "http://user:canary@host/v1"},
        {"base_url": "http://host/v1?key=canary"},
        {"base_url": "http://[canary"},
        {"api_key_env": "sk-canary"},
        {"options": {"headers": {"x-key": "canary"}, "list": ["canary"], "text": "canary"}},
    ],
)
def test_secrets_are_not_shown(settings: dict[str, Any]) -> None:
    """Wherever a secret might have been written by mistake, it does not come out."""
    found = provider_change({}, settings)
    assert found
    for text in (str(found), repr(found), str(found.as_dict())):
        assert "canary" not in text


def test_harmless_parts_of_an_address_are_shown() -> None:
    """Scheme, host, port and path help, and are no secret."""
    found = provider_change(
        {"base_url": "http://a:1/v1", "api_key_env": "OLD_KEY"},
        {"base_url": "https://me:pw@b:2/v2", "api_key_env": "NEW_KEY"},
    )
    assert [(entry.old, entry.new) for entry in found.entries] == [
        ("http://a:1/v1", "https://[hidden]@b:2/v2"), ("OLD_KEY", "NEW_KEY"),
    ]  # fmt: skip


def test_hidden_values_that_differ_are_told_as_changed() -> None:
    """An option's text is not shown, but that it changed is; numbers are shown."""
    found = provider_change({"options": {"path": "x", "n": 1}}, {"options": {"path": "y", "n": 2}})
    assert [str(entry) for entry in found.entries] == [
        "~ provider a: options.path changed (its actor is replaced)",
        "~ provider a: options.n 1 -> 2 (its actor is replaced)",
    ]


def test_machines_get_plain_types() -> None:
    """`as_dict` holds nothing but JSON."""
    found = change({}, {"models": [{"name": "m", "targets": [{"provider": "a"}]}]})
    assert found.as_dict()["changes"] == [
        {"kind": "model_added", "name": "m", "field": "", "old": None, "new": ["a"],
         "needs_restart": False, "replaces_actor": False},
    ]  # fmt: skip
    assert str(ChangeEntry(ChangeKind.MODEL_ADDED, "m", new=[])) == "+ model m (none)"
