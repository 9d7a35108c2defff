"""Makes one checked configuration out of another, or out of plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from engine.config import ConfigurationModel, GatewayConfig
from engine.errors import ConfigurationError

PartT = TypeVar("PartT", bound=ConfigurationModel)

SHOWN_NAMES = 10
"""Known names that an error lists."""


def checked_configuration(config: GatewayConfig | Mapping[str, Any]) -> GatewayConfig:
    """The configuration that a mapping stands for; a `GatewayConfig` is one already.

    Raises:
        ConfigurationError: If the configuration is wrong; says what and where.
    """
    return config if isinstance(config, GatewayConfig) else _checked(GatewayConfig, config)


def with_weight(
    config: GatewayConfig, provider: str, weight: float, *, model: str | None = None
) -> GatewayConfig:
    """The same configuration with another weight for one provider.

    Args:
        config: The configuration.
        provider: Name of the provider.
        weight: Its new weight.
        model: The model whose targets at that provider get the weight; None sets the
            provider's own, which counts wherever a target says nothing else.

    Raises:
        ConfigurationError: If a name is unknown, or the result could not serve.
    """
    known_provider(provider, (each.name for each in config.providers))
    if model is None:
        return _with_provider(config, provider, weight=weight)
    known = [each.name for each in config.models]
    if model not in known:
        raise ConfigurationError(f"no model is named {model!r} (known: {_some(known)})")
    models = []
    for each in config.models:
        if each.name == model:
            serving = [target.provider for target in each.targets]
            if provider not in serving:
                msg = f"model {model!r} has no target at {provider!r} (it has {_some(serving)})"
                raise ConfigurationError(msg)
            targets = tuple(
                _changed(target, weight=weight) if target.provider == provider else target
                for target in each.targets
            )
            models.append(_changed(each, targets=targets))
        else:
            models.append(each)
    return _changed(config, models=tuple(models))


def with_enabled(config: GatewayConfig, provider: str, enabled: bool) -> GatewayConfig:
    """The same configuration with one provider switched on or off.

    Raises:
        ConfigurationError: If the name is unknown, or the result could not serve.
    """
    known_provider(provider, (each.name for each in config.providers))
    return _with_provider(config, provider, enabled=enabled)


def known_provider(name: str, known: Iterable[str]) -> None:
    """Refuse a name that no provider has.

    Raises:
        ConfigurationError: Says which names there are.
    """
    names = list(known)
    if name not in names:
        raise ConfigurationError(f"no provider is named {name!r} (known: {_some(names)})")


def _with_provider(config: GatewayConfig, name: str, **update: Any) -> GatewayConfig:
    providers = tuple(
        _changed(each, **update) if each.name == name else each for each in config.providers
    )
    return _changed(config, providers=providers)


def _changed(part: PartT, **update: Any) -> PartT:
    """A part with other values, checked like any other; parts within it are taken as they are."""
    return _checked(type(part), {**dict(part), **update})


def _checked(kind: type[PartT], data: Mapping[str, Any]) -> PartT:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        findings = [
            f"{'.'.join(map(str, found['loc'])) or 'configuration'}: {found['msg']}"
            for found in error.errors(include_input=False, include_url=False)
        ]
        raise ConfigurationError("; ".join(findings)) from None


def _some(names: Iterable[str]) -> str:
    listed = sorted(dict.fromkeys(names))
    more = f" and {len(listed) - SHOWN_NAMES} more" if len(listed) > SHOWN_NAMES else ""
    return ", ".join(listed[:SHOWN_NAMES]) + more or "none"
