"""What of a file may stand in a message: a key that was pasted into it must not.

Messages name fields and lines, not values. The few words of a file that help (a key that
is unknown, a provider's name) are shown only when they do not look like a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "(not shown)"

_PLAIN = re.compile(r"[A-Za-z0-9_./:< -]{1,64}")
# Beginnings of the access tokens that services hand out.
_TOKEN_BEGINNING = re.compile(
    r"(?:^|[^A-Za-z0-9])(?:sk|pk|rk|gsk|hf|ghp|gho|ghs|glpat|xox[a-z]|AKIA|ASIA|AIza|eyJ|Bearer)"
    r"(?:[-_ ]|[A-Za-z0-9]{8})"
)
# No word of a language or a name is as long as this; tokens are.
_LONG_RUN = re.compile(r"[A-Za-z0-9]{25,}")
_MIXED_RUN = re.compile(r"(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{13,}")

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Upper case, in words of at most 16: a name that people give, not an access token.
_SHOWN_VARIABLE = re.compile(r"_?[A-Z][A-Z0-9]{0,15}(?:_+[A-Z0-9]{1,16})*_?")


def may_be_shown(text: str) -> bool:
    """Whether a text looks like a name and not like a secret."""
    return (
        _PLAIN.fullmatch(text) is not None
        and _TOKEN_BEGINNING.search(text) is None
        and _LONG_RUN.search(text) is None
        and _MIXED_RUN.search(text) is None
    )


def shown(text: str) -> str:
    """The text in quotes, or words that say that it is not shown."""
    return repr(text) if may_be_shown(text) else HIDDEN


def shown_key(key: str) -> str:
    """A key as a part of a dotted path."""
    return key if may_be_shown(key) else HIDDEN


def is_variable_name(text: str) -> bool:
    """Whether a text can be the name of an environment variable."""
    return _VARIABLE.fullmatch(text) is not None


def shown_variable(name: str) -> str:
    """The name of an environment variable, if it is surely no key."""
    return name if _SHOWN_VARIABLE.fullmatch(name) else HIDDEN


class Censor:
    """Takes the values of a document out of messages that others wrote.

    Args:
        data: The document; its strings are what must not appear.
        allowed: Strings of it that may appear, such as the names of providers.
        secrets: More strings that must not appear, such as values from the environment.
    """

    # Shorter strings are words of any message ("on", "v1"), and no secrets.
    _SHORTEST = 4

    def __init__(self, data: Any, *, allowed: frozenset[str], secrets: frozenset[str]) -> None:
        strings = {text for text in _strings(data) if len(text) >= self._SHORTEST} - allowed
        hidden = {text for text in strings if not may_be_shown(text)}
        hidden |= {text for text in secrets if len(text) >= self._SHORTEST}
        self._hidden = sorted(hidden, key=len, reverse=True)
        self._quoted = strings - hidden

    def __call__(self, message: str) -> str:
        """The message without any value of the document."""
        for text in self._hidden:
            if text in message:
                message = message.replace(text, HIDDEN)
        return re.sub(r"'([^']*)'|\"([^\"]*)\"", self._unquote, message)

    def _unquote(self, match: re.Match[str]) -> str:
        quoted = match.group(1) if match.group(1) is not None else match.group(2)
        return HIDDEN if quoted in self._quoted else match.group()


def _strings(data: Any) -> Iterator[str]:
    """Every string value of a document. Keys are names, and judged where they are shown."""
    pending = [data]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
