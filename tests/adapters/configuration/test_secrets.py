"""A key that was pasted into the wrong place appears in no message."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

import pytest

from adapters.configuration import ConfigurationFileError, load_config
from adapters.configuration.echo import Censor, may_be_shown, shown_variable

CANARIES = [
    "sk-canary-0123456789abcdef",
    "canary-pasted-by-mistake",
    "CANARYPASTEDBYMISTAKE0123456789",
    "c4n4ry",
    "Bearer canary.pasted/by+mistake==",
]

PLACES = {
    "name of a variable": "  api_key_env: '{}'\n",
    "literal key": "  api_key: '{}'\n",
    "type": "  type: '{}'\n",
    "url": "  base_url: '{}'\n",
    "url with a user": "  base_url: 'http://user:{}@h/v1'\n",
    "url with a query": "  base_url: 'http://h/v1?key={}'\n",
    "number": "  weight: '{}'\n",
    "flag": "  enabled: '{}'\n",
    "object": "  limits: '{}'\n",
    "list": "  timeouts: ['{}']\n",
    "options": "  options: '{}'\n",
    "an option": "  options: {{speed: '{}'}}\n",
    "unknown key": "  wieght: '{}'\n",
    "reference": "  base_url: 'http://h/${{{}}}'\n",
}


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize("place", PLACES)
def test_a_pasted_key_appears_in_no_finding(place: str, canary: str, tmp_path: Path) -> None:
    """The message names the field and the line, and never the value."""
    file = tmp_path / "gateway.yaml"
    text = "total: wrong\nproviders:\n- name: a\n" + PLACES[place].format(canary)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    shown = f"{caught.value!r}{''.join(traceback.format_exception(caught.value))}"
    assert canary not in shown
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_pasted_key_appears_in_no_finding_of_other_kinds(suffix: str, tmp_path: Path) -> None:
    """JSON and TOML findings are as silent, syntax errors included."""
    canary = CANARIES[0]
    provider = {"name": "a", "type": canary, "api_key": canary, "weight": canary}
    file = tmp_path / f"gateway{suffix}"
    if suffix == ".json":
        file.write_text(json.dumps({"providers": [provider]}), encoding="utf-8")
    else:
        lines = [f'{key} = "{value}"' for key, value in provider.items()]
        file.write_text("[[providers]]\n" + "\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    assert len(caught.value.findings) == 3
    assert canary not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".yaml", "providers: [{api_key: sk-canary-0123456789abcdef\n"),
        (".yaml", "providers: !sk-canary-0123456789abcdef!x y\n"),
        (".yaml", "a: *sk-canary-0123456789abcdef\n"),
        (".yaml", "a: 'sk-canary-0123456789abcdef\n"),
        (".json", '{"a": sk-canary-0123456789abcdef}'),
        (".json", '{"a": "sk-canary-0123456789abcdef'),
        (".toml", "a = sk-canary-0123456789abcdef\n"),
        (".toml", "[sk-canary-0123456789abcdef]\n[sk-canary-0123456789abcdef]\n"),
    ],
)
def test_a_syntax_error_does_not_quote_the_text(suffix: str, text: str, tmp_path: Path) -> None:
    """The parsers' own messages are not passed on with what stood there."""
    file = tmp_path / f"gateway{suffix}"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    assert "canary" not in str(caught.value)


def test_the_value_of_a_variable_appears_in_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret that came in by reference is as silent as one in the file."""
    monkeypatch.setenv("UPSTREAM", "ftp://secret-canary")
    file = tmp_path / "gateway.yaml"
    file.write_text("providers:\n- {name: a, type: vllm, base_url: '${UPSTREAM}'}", "utf-8")
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("key", ["sk-canary-0123456789abcdef", "a" * 40, "x\x1b[31m"])
def test_an_unknown_key_that_looks_like_a_secret_is_not_shown(key: str, tmp_path: Path) -> None:
    """Even the name of a field is left out when it may be a key."""
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps({"providers": [{key: 1}]}), encoding="utf-8")
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    assert key not in str(caught.value)


@pytest.mark.parametrize("word", ["weight", "openai-main", "local vllm 2", "chat", "eu-west-1"])
def test_names_are_shown(word: str) -> None:
    """Words that people choose help in a message."""
    assert may_be_shown(word)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("OPENAI_API_KEY", True),
        ("_KEY2", True),
        ("openai_key", False),
        ("AKIAIOSFODNN7EXAMPLE", False),
        ("sk-0123456789", False),
    ],
)
def test_names_of_variables_are_shown_when_they_are_surely_names(name: str, *, shown: bool) -> None:
    """Upper case in short words is a name; anything else could be the key itself."""
    assert (shown_variable(name) == name) is shown


def test_the_censor_takes_quoted_values_out() -> None:
    """A value in quotes goes, unless it is allowed; other words stay."""
    censor = Censor(
        {"a": ["first", "second"]}, allowed=frozenset({"second"}), secrets=frozenset({"hidden"})
    )
    shown = censor("the first thing: 'first', 'second', 'third' and hidden")
    assert shown == "the first thing: (not shown), 'second', 'third' and (not shown)"
