"""Rules S45 to S49: what a configuration file, and what a request, can and cannot make us do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from security_lab import HELLO, Bench, fields_of, on_bench

from adapters.configuration import ConfigurationFileError, load_config
from adapters.configuration.document import MAX_BYTES
from adapters.configuration.loader import parse_config

FILE = """
providers:
- name: a
  type: vllm
  base_url: ${LAB_URL}
"""
SAFE = "providers: [{name: a, type: mock}]\n"

# ── S45: references to the environment ───────────────────────────────────────────

VALUES = [
    "http://h/v1: {weight: 9}", "http://h/v1\n  weight: 9", "http://h/v1 # a comment",
    "${OTHER}", "http://${OTHER}/v1", "!!python/object:os.system", "&a *a", "- x\n- y", "{a: b}",
    "http://h/v1'\"", "$${OTHER}", "%TAG ! tag:x", "---\nproviders: []",
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_s45_a_value_of_the_environment_stays_one_value(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put in after parsing, once: no key, no comment, no tag, no second reference."""
    monkeypatch.setenv("LAB_URL", value)
    monkeypatch.setenv("OTHER", "canary-of-the-other")
    try:
        config = parse_config(FILE, file="gateway.yaml", suffix=".yaml")
    except ConfigurationFileError as error:
        refused = error
    else:
        (provider,) = config.providers
        assert (provider.base_url, provider.weight) == (value, 1)
        return
    assert "canary-of-the-other" not in str(refused)
    assert {finding.line for finding in refused.findings} == {5}


def test_s45_an_undefined_variable_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not an empty text."""
    monkeypatch.delenv("LAB_URL", raising=False)
    with pytest.raises(ConfigurationFileError, match="LAB_URL is not set"):
        parse_config(FILE, file="gateway.yaml", suffix=".yaml")


@pytest.mark.parametrize(
    "line",
    ["name: ${LAB_URL}", "type: ${LAB_URL}", "api_key_env: ${LAB_URL}", "weight: ${LAB_URL}"],
)
def test_s45_references_stand_only_where_addresses_and_options_do(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a name, a type, a number, or the name of a variable."""
    monkeypatch.setenv("LAB_URL", "mock")
    field = line.partition(":")[0]
    fields = {"name": "a", "type": "mock", field: "${LAB_URL}"}
    text = "providers:\n- " + "\n  ".join(f"{key}: {value}" for key, value in fields.items())
    with pytest.raises(ConfigurationFileError, match="work only in"):
        parse_config(text, file="gateway.yaml", suffix=".yaml")


# ── S46: never in requests ───────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "syntax", ["${LAB_KEY}", "$LAB_KEY", "os.environ/LAB_KEY", "{{LAB_KEY}}", "%LAB_KEY%"]
)
async def test_s46_no_field_of_a_request_reads_the_environment(
    syntax: str, provider_key: str
) -> None:
    """The words pass upstream as they came, and the value goes nowhere."""

    async def use(bench: Bench) -> None:
        content: list[Any] = [{"type": "text", "text": syntax, syntax: syntax}]
        body = {
            **HELLO, "model": syntax, "user": syntax, "api_key": syntax, "base_url": syntax,
            syntax: syntax, "messages": [{"role": "user", "content": content, "name": syntax}],
            "metadata": {syntax: {"deep": [syntax]}},
        }  # fmt: skip
        raw = json.dumps(body).encode()
        headers = {"x-request-id": syntax, "x-custom": syntax}
        answer = await bench.http("POST", "/v1/chat/completions", content=raw, headers=headers)
        assert answer.status_code == 200
        assert bench.bodies == [raw]
        assert fields_of(bench.heads[0])["x-request-id"] == syntax
        assert provider_key not in answer.text + str(answer.headers) + bench.heads[0]

    await on_bench(use)


# ── S47: the file ────────────────────────────────────────────────────────────────


def billion_laughs() -> str:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    return SAFE + "\n".join(lines)


YAML_BOMBS = {
    "billion laughs": billion_laughs(),
    "too many aliases": SAFE + "a: &a x\nb: [" + ", ".join(["*a"] * 101) + "]",
    "a knot": SAFE + "a: &a [*a]",
    "too deep": SAFE + "a: " + "[" * 21 + "]" * 21,
    "far too deep": SAFE + "a: " + "[" * 100_000,
    "too large": SAFE + "#" * MAX_BYTES,
    "duplicate key": "providers: []\n" + SAFE,
    "unknown key": SAFE + "unknown: 1\n",
    "python object": SAFE + "a: !!python/object/apply:os.system [id]\n",
    "python name": SAFE + "a: !!python/name:os.system\n",
    "own tag": SAFE + "a: !include /etc/passwd\n",
    "binary": SAFE + "a: !!binary aGVsbG8=\n",
    "merge key": SAFE + "x: &x {name: b}\ny: {<<: *x}\n",
    "two documents": SAFE + "---\n" + SAFE,
    "not UTF-8": SAFE + "a: \udcff",
}


@pytest.mark.parametrize("name", YAML_BOMBS)
def test_s47_a_hostile_yaml_file_is_refused(name: str, tmp_path: Path) -> None:
    """Soon, with words, and without making an object of anything."""
    file = tmp_path / "gateway.yaml"
    file.write_bytes(YAML_BOMBS[name].encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigurationFileError):
        load_config(file)


OTHERS = {
    "deep.json": '{"a": ' + "[" * 100_000,
    "twice.json": '{"providers": [], "providers": [{"name": "a", "type": "mock"}]}',
    "nan.json": '{"providers": [{"name": "a", "type": "mock", "weight": NaN}]}',
    "digits.json": '{"providers": [{"name": "a", "type": "mock", "weight": ' + "9" * 5_000 + "}]}",
    "deep.toml": "a = " + "[" * 10_000,
    "twice.toml": 'a = 1\na = 2\n[[providers]]\nname = "a"\ntype = "mock"\n',
    "wrong.ini": "[providers]",
}


@pytest.mark.parametrize("name", OTHERS)
def test_s47_a_hostile_file_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    """JSON and TOML have the same limits."""
    file = tmp_path / name
    file.write_text(OTHERS[name])
    with pytest.raises(ConfigurationFileError):
        load_config(file)


# ── S48: other files ─────────────────────────────────────────────────────────────

INCLUDES = [
    "include: {path}", "includes: [{path}]", "$ref: {path}", "extends: {path}",
    "a: !include {path}",
    "secrets_file: {path}", "<<: {path}",
]  # fmt: skip


@pytest.mark.parametrize("line", INCLUDES)
def test_s48_a_file_includes_no_other(line: str, tmp_path: Path) -> None:
    """There is one file, so there is no way out of its folder."""
    other = tmp_path / "other.yaml"
    other.write_text("server: {port: 9}\n# canary-of-the-file")
    file = tmp_path / "gateway.yaml"
    file.write_text(SAFE + line.format(path=other))
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    assert "canary-of-the-file" not in str(caught.value)


def test_s48_there_are_no_secret_files() -> None:
    """A key is named by its variable; settings that would hold or point to one are unknown."""
    for setting in ("api_key", "api_key_file", "key_file", "secret"):
        text = f"providers: [{{name: a, type: mock, {setting}: /run/secrets/key}}]"
        with pytest.raises(ConfigurationFileError):
            parse_config(text, file="gateway.yaml", suffix=".yaml")


def test_s48_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    """A folder or a device has no configuration, and may have no end."""
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "missing.yaml"):
        with pytest.raises(ConfigurationFileError):
            load_config(path)


# ── S49: the network ─────────────────────────────────────────────────────────────

_OFFLINE = """
import importlib, pkgutil, sys
asked = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        asked.append((event, str(arguments)))
sys.addaudithook(hook)
import adapters, engine
skipped = {"adapters.providers.llamacpp_child"}  # a program, not a module
for package in (adapters, engine):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name not in skipped:
            importlib.import_module(module.name)
import anyio
from adapters.configuration.loader import load_built_in, load_config
from adapters.frontdoor.app import create_app
load_built_in()
config = load_config(sys.argv[1])
app = create_app(config)
async def main():
    async with app.engine:
        pass
anyio.run(main)
print(asked)
"""


def test_s49_nothing_is_fetched_before_a_request_comes(tmp_path: Path) -> None:
    """Importing everything, reading a file, starting and stopping: no name, no connection."""
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "providers:\n- {name: a, type: openai, api_key_env: LAB_KEY}\n"
        "- {name: b, type: vllm, base_url: 'http://provider.example/v1'}\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", _OFFLINE, file],
        capture_output=True,
        text=True,
        env={"LAB_KEY": "sk-1", "PATH": "/usr/bin"},
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"
