"""What a reload would change, for people and for machines; pure, and free of secrets.

Keys stand in no configuration, but an address may hold a password, and an option of a
provider type may hold anything. So addresses are shown without user and query, texts in
`options` not at all, and the name of an environment variable only if it looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

from engine.config import ConfigurationModel, GatewayConfig, ModelConfig, ProviderConfig
from engine.config.model import TargetConfig

HIDDEN = "[hidden]"

APPLIED_BY_A_RELOAD = frozenset({
    "balancer", "history", "max_ejected", "retries", "server", "total",
})  # fmt: skip
"""Settings of the whole file that a reload applies, with what `server` says further below."""

APPLIED_SERVER_SETTINGS = frozenset({"server.drain"})

FLAGS = frozenset({"weight", "enabled"})
"""Settings of a provider that its actor is kept for, with all that it knows."""

_ADDRESSES = frozenset({"base_url", "endpoint", "path"})
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class ChangeKind(StrEnum):
    """What one entry of a change is about."""

    PROVIDER_ADDED = "provider_added"
    PROVIDER_REMOVED = "provider_removed"
    PROVIDER_CHANGED = "provider_changed"
    MODEL_ADDED = "model_added"
    MODEL_REMOVED = "model_removed"
    MODEL_CHANGED = "model_changed"
    WEIGHT_CHANGED = "weight_changed"
    SETTING_CHANGED = "setting_changed"

    @property
    def subject(self) -> str:
        """What `ChangeEntry.name` names: a provider, a model, or nothing."""
        word = self.value.partition("_")[0]
        return word if word in ("provider", "model") else ""


@dataclass(frozen=True, slots=True)
class ChangeEntry:
    """One difference.

    Attributes:
        kind: What it is about.
        name: Name of the provider or the model; empty for settings of the whole file.
        field: The setting, with dots; empty for a whole provider or model.
        old: Its value before, as plain JSON; None for what is added.
        new: Its value after; None for what is removed.
        needs_restart: Whether only a restart applies it.
        replaces_actor: Whether the provider's actor ends, and a fresh one begins.
    """

    kind: ChangeKind
    name: str
    field: str = ""
    old: Any = None
    new: Any = None
    needs_restart: bool = False
    replaces_actor: bool = False

    def __str__(self) -> str:
        if self.kind in (ChangeKind.PROVIDER_ADDED, ChangeKind.MODEL_ADDED):
            return f"+ {self.kind.subject} {self.name} ({_words(self.new)})"
        if self.kind in (ChangeKind.PROVIDER_REMOVED, ChangeKind.MODEL_REMOVED):
            return f"- {self.kind.subject} {self.name} ({_words(self.old)})"
        owner = self.kind.subject or ("model" if self.field.startswith("targets.") else "provider")
        subject = f"{owner} {self.name}: " if self.name else ""
        # Two values that may not be shown look the same.
        change = "changed" if self.old == self.new else f"{_words(self.old)} -> {_words(self.new)}"
        note = " (needs a restart)" if self.needs_restart else ""
        note = " (its actor is replaced)" if self.replaces_actor else note
        return f"~ {subject}{self.field} {change}{note}"


@dataclass(frozen=True, slots=True)
class ConfigurationChange:
    """The differences between two configurations; true if there is any.

    Attributes:
        entries: One for each difference: providers, then models, then the rest.
    """

    entries: tuple[ChangeEntry, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.entries)

    @property
    def needs_restart(self) -> tuple[ChangeEntry, ...]:
        """The entries that only a restart applies."""
        return tuple(entry for entry in self.entries if entry.needs_restart)

    @property
    def replaced(self) -> tuple[str, ...]:
        """Names of the providers whose actor ends, and a fresh one begins."""
        return tuple(dict.fromkeys(each.name for each in self.entries if each.replaces_actor))

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON types."""
        return {
            "changes": [{**asdict(entry), "kind": entry.kind.value} for entry in self.entries],
            "needs_restart": bool(self.needs_restart),
            "replaced_actors": list(self.replaced),
        }

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries)) or "nothing changes"


def configuration_change(old: GatewayConfig, new: GatewayConfig) -> ConfigurationChange:
    """What a reload from one configuration to another changes.

    The order of providers, models and targets is no difference.
    """
    return ConfigurationChange((*_providers(old, new), *_models(old, new), *_settings(old, new)))


def needs_new_actor(old: ProviderConfig, new: ProviderConfig) -> bool:
    """Whether a provider differs in more than its weight and its enabled flag."""
    return any(
        getattr(old, name) != getattr(new, name)
        for name in ProviderConfig.model_fields
        if name not in FLAGS
    )


def _providers(old: GatewayConfig, new: GatewayConfig) -> Iterator[ChangeEntry]:
    before = {provider.name: provider for provider in old.providers}
    after = {provider.name: provider for provider in new.providers}
    for name, provider in after.items():
        if name not in before:
            yield ChangeEntry(ChangeKind.PROVIDER_ADDED, name, new=_outline(provider))
            continue
        # While it is switched off, a changed provider has no actor to be replaced.
        replaced = (
            before[name].enabled and provider.enabled and needs_new_actor(before[name], provider)
        )
        for field, was, is_now in _differences(before[name], provider):
            kind = ChangeKind.WEIGHT_CHANGED if field == "weight" else ChangeKind.PROVIDER_CHANGED
            yield ChangeEntry(
                kind, name, field, was, is_now, replaces_actor=replaced and field not in FLAGS
            )
    for name, provider in before.items():
        if name not in after:
            yield ChangeEntry(ChangeKind.PROVIDER_REMOVED, name, old=_outline(provider))


def _models(old: GatewayConfig, new: GatewayConfig) -> Iterator[ChangeEntry]:
    before = {model.name: model for model in old.models}
    after = {model.name: model for model in new.models}
    for name, model in after.items():
        if name not in before:
            yield ChangeEntry(ChangeKind.MODEL_ADDED, name, new=_target_names(model))
            continue
        yield from _targets(before[name], model)
        for field, was, is_now in _differences(before[name], model, but=frozenset({"targets"})):
            yield ChangeEntry(ChangeKind.MODEL_CHANGED, name, field, was, is_now)
    for name, model in before.items():
        if name not in after:
            yield ChangeEntry(ChangeKind.MODEL_REMOVED, name, old=_target_names(model))


def _targets(old: ModelConfig, new: ModelConfig) -> Iterator[ChangeEntry]:
    before = {_target_name(target): target for target in old.targets}
    after = {_target_name(target): target for target in new.targets}
    for name in {**before, **after}:
        field, was, is_now = f"targets.{name}", before.get(name), after.get(name)
        if was is None or is_now is None:
            yield ChangeEntry(
                ChangeKind.MODEL_CHANGED, new.name, field,
                None if was is None else "serves", None if is_now is None else "serves",
            )  # fmt: skip
        elif was.weight != is_now.weight:
            yield ChangeEntry(
                ChangeKind.WEIGHT_CHANGED, new.name, f"{field}.weight", was.weight, is_now.weight
            )


def _settings(old: GatewayConfig, new: GatewayConfig) -> Iterator[ChangeEntry]:
    for field, was, is_now in _differences(old, new, but=frozenset({"providers", "models"})):
        group = field.partition(".")[0]
        applied = group in APPLIED_BY_A_RELOAD and (
            group != "server" or field in APPLIED_SERVER_SETTINGS
        )
        yield ChangeEntry(
            ChangeKind.SETTING_CHANGED, "", field, was, is_now, needs_restart=not applied
        )


def _differences(
    old: ConfigurationModel, new: ConfigurationModel, *, but: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Any, Any]]:
    """Each setting that differs, with dots, and its two values as they may be shown."""
    for name in type(new).model_fields:
        was, is_now = getattr(old, name), getattr(new, name)
        if name in but or was == is_now:
            continue
        if isinstance(was, ConfigurationModel) and isinstance(is_now, ConfigurationModel):
            for field, *values in _differences(was, is_now):
                yield f"{name}.{field}", values[0], values[1]
        elif isinstance(was, dict) and isinstance(is_now, dict):
            for key in {**was, **is_now}:
                if was.get(key) != is_now.get(key) or (key in was) != (key in is_now):
                    yield f"{name}.{key}", _option(was.get(key)), _option(is_now.get(key))
        else:
            yield name, _shown(name, was), _shown(name, is_now)


def _shown(name: str, value: Any) -> Any:
    """A setting's value as plain JSON, without what might be secret."""
    if isinstance(value, ConfigurationModel):
        return {key: _shown(key, each) for key, each in value}
    if isinstance(value, dict):
        return {key: _option(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(name, each) for each in value]
    if isinstance(value, str):
        if name in _ADDRESSES:
            return _address(value)
        if name.endswith("_env") and not _VARIABLE.fullmatch(value):
            return HIDDEN
    return value


def _option(value: Any) -> Any:
    return value if value is None or isinstance(value, (bool, int, float)) else HIDDEN


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return HIDDEN
    hidden = f"?{HIDDEN}" if parts.query or parts.fragment else ""
    user = f"{HIDDEN}@" if "@" in parts.netloc else ""
    scheme = f"{parts.scheme}://" if parts.netloc else ""
    return f"{scheme}{user}{host}{parts.path}{hidden}"


def _outline(provider: ProviderConfig) -> dict[str, Any]:
    return {"type": provider.type, "weight": provider.weight, "enabled": provider.enabled}


def _target_names(model: ModelConfig) -> list[str]:
    return [_target_name(target) for target in model.targets]


def _target_name(target: TargetConfig) -> str:
    model = f"/{target.model}" if target.model else ""
    return f"{target.provider}{model}" + (f"@{target.tier}" if target.tier else "")


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_words(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
