"""From what pydantic finds wrong to words that name the field and the nearest known key."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from adapters.configuration.findings import Findings, KeyPath
from engine.config import GatewayConfig

_LITERAL_KEYS = frozenset({
    "api_key", "apikey", "key", "token", "access_token", "secret", "password", "authorization",
    "bearer", "api_keys", "admin_key",
})  # fmt: skip

_MISSING = object()

_FIXED_WORDS = {
    "missing": "is missing: it must be given",
    "model_type": "must hold settings of its own (`key: value`)",
    "dict_type": "must hold settings of its own (`key: value`)",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be an empty list",
}


def add_validation_findings(
    error: ValidationError,
    model: type[BaseModel],
    data: Any,
    findings: Findings,
    *,
    at: KeyPath = (),
) -> None:
    """Turn the errors of a model into findings.

    Args:
        error: What pydantic found. Its inputs are never looked at: they may be secrets.
        model: The model that refused the data.
        data: The data that was refused.
        findings: Where the findings go.
        at: Path of the data within the file.
    """
    details = error.errors(include_url=False, include_input=False, include_context=True)
    for detail in details:
        # Labels of union members stand in `loc` beside keys; they are not in the data.
        loc = _within(data, detail["loc"])
        # A list whose items are wrong is called too short as well.
        if detail["type"] == "too_short" and _at(data, loc):
            continue
        findings.add((*at, *loc), _words(detail, model, data, loc))


def unknown_key_words(key: str, model: type[BaseModel] | None) -> str:
    """What to say about a key that `model` does not know.

    Args:
        key: The unknown key.
        model: The model it stands in; None when that is not known.
    """
    known = list(model.model_fields) if model is not None else []
    if model is GatewayConfig:
        known.append("defaults")
    if key.lower().replace("-", "_") in _LITERAL_KEYS:
        by_name = [name for name in known if name.endswith("_env")]
        setting = _nearest(f"{key}_env", by_name) or "api_key_env"
        return (
            "a key never stands in the file: put the key into an environment variable "
            f"and name it with {setting}"
        )
    if near := _nearest(key, known):
        return f"unknown key; did you mean {near!r}?"
    for name, field in model.model_fields.items() if model is not None else ():
        inner = _model_of(field.annotation)
        if inner is not None and key in inner.model_fields:
            return f"unknown key; did you mean '{name}.{key}'?"
    return f"unknown key; known here: {', '.join(known)}" if known else "unknown key"


def nearest_hint(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest known word, or nothing."""
    near = _nearest(word, known)
    return f"; did you mean {near!r}?" if near else ""


def _nearest(word: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(word[:64], list(known), n=1)
    return near[0] if near else None


def _within(data: Any, loc: tuple[int | str, ...]) -> KeyPath:
    path: list[int | str] = []
    for index, key in enumerate(loc):
        inside = _item(data, key)
        last = index == len(loc) - 1
        if inside is _MISSING and not last:
            continue
        if inside is _MISSING and not isinstance(data, dict):
            continue
        path.append(key)
        data = inside
    return tuple(path)


def _at(data: Any, loc: KeyPath) -> Any:
    for key in loc:
        data = _item(data, key)
    return data


def _item(data: Any, key: int | str) -> Any:
    if isinstance(data, Mapping):
        return data.get(key, _MISSING)
    if isinstance(data, (list, tuple)) and isinstance(key, int) and key < len(data):
        return data[key]
    return _MISSING


def _words(detail: ErrorDetails, model: type[BaseModel], data: Any, loc: KeyPath) -> str:
    value = _at(data, loc)
    kind = detail["type"]
    if kind == "extra_forbidden":
        return unknown_key_words(str(loc[-1]), _model_at(model, loc[:-1]))
    if kind == "literal_error" and value is not None:
        expected = str(detail.get("ctx", {}).get("expected", ""))
        hint = nearest_hint(str(value), re.findall(r"'([^']+)'", expected))
        return f"must be {expected}{hint}"
    if value is None:
        return "is empty: give it a value, or take the line out"
    return _FIXED_WORDS.get(kind) or _plain_words(detail["msg"])


def _plain_words(message: str) -> str:
    words = message.removeprefix("Value error, ").replace("Input should", "must")
    words = words.partition(", unable to ")[0]
    words = words.removeprefix("String should").removeprefix("Value should").strip()
    words = f"must {words}" if words.startswith(("have ", "match ", "be ")) else words
    return words.replace("must be a valid ", "must be a ").replace("a integer", "an integer")


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model that describes what stands at `path`, or None if nothing does."""
    current: type[BaseModel] | None = model
    for key in path:
        if isinstance(key, int):
            continue
        if current is None or key not in current.model_fields:
            return None
        current = _model_of(current.model_fields[key].annotation)
    return current


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The model in `X`, `X | None`, `tuple[X, ...]`, `Annotated[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple, list):
        for inner in get_args(annotation):
            if (found := _model_of(inner)) is not None:
                return found
    return None
