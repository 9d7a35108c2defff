"""A corpus of wrong files, each with the lines that the operator reads."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from adapters.configuration import ConfigurationFileError, load_config
from adapters.configuration.document import MAX_BYTES

PROVIDER = "providers: [{name: a, type: vllm, base_url: 'http://127.0.0.1:1/v1'}]"

YAML_CORPUS = {
    "unknown key with a near one": (
        """\
        providers:
          - name: a
            type: vllm
            base_url: http://127.0.0.1:1/v1
          - name: b
            type: vllm
            wieght: 2
            base_url: http://127.0.0.1:1/v1
        """,
        ["7: providers[1].wieght: unknown key; did you mean 'weight'?"],
    ),
    "unknown key at the top": (
        f"{PROVIDER}\nservr: {{}}\n",
        ["2: servr: unknown key; did you mean 'server'?"],
    ),
    "defaults misspelled": (
        f"default: {{timeout: 3}}\n{PROVIDER}\n",
        ["1: default: unknown key; did you mean 'defaults'?"],
    ),
    "key that belongs one level deeper": (
        "providers:\n- name: a\n  type: vllm\n  base_url: http://h/v1\n  concurrency: 3\n",
        ["5: providers[0].concurrency: unknown key; did you mean 'limits.concurrency'?"],
    ),
    "unknown type": (
        "providers:\n- name: a\n  type: vlm\n",
        ["3: providers[0].type: unknown provider type; did you mean 'vllm'? known types are "],
    ),
    "type is missing": (
        "providers:\n- name: a\n  base_url: http://h/v1\n",
        ["2: providers[0].type: is missing: it must be given"],
    ),
    "missing base_url": (
        "providers:\n- name: a\n  type: vllm\n",
        ["2: providers[0].base_url: provider 'a' of type 'vllm' needs a base_url"],
    ),
    "missing key": (
        "providers:\n- name: a\n  type: openai\n  api_key_env: NOT_SET_ANYWHERE\n",
        ["4: providers[0].api_key_env: the environment variable NOT_SET_ANYWHERE is not set"],
    ),
    "key in the file": (
        "providers:\n- name: a\n  type: vllm\n  base_url: http://h/v1\n  api_key: sk-0123456789\n",
        [
            ("5: providers[0].api_key: a key never stands in the file: put the key into an "
            "environment variable and name it with api_key_env")
        ],
    ),
    "server keys in the file": (
        f"{PROVIDER}\nserver: {{api_keys: [sk-0123456789]}}\n",
        [("2: server.api_keys: a key never stands in the file: put the key into an "
         "environment variable and name it with api_keys_env")],
    ),
    "key in place of its variable": (
        ("providers:\n- name: a\n  type: vllm\n  base_url: http://h/v1\n"
            "  api_key_env: sk-0123-4567\n"),
        ["5: providers[0].api_key_env: must be the name of an environment variable"],
    ),
    "server's variable is not set": (
        f"server:\n  api_keys_env: NOT_SET_ANYWHERE\n{PROVIDER}\n",
        ["2: server.api_keys_env: the environment variable NOT_SET_ANYWHERE is not set"],
    ),
    "wrong types": (
        ("server:\n  port: eighty\ntelemetry:\n  logs: jsno\n"
        "providers:\n- name: a\n  type: vllm\n  base_url: http://h/v1\n  timeouts: [1]\n"
        "  weight: 30s\n  timeout:\n"),
        [
            "2: server.port: must be an integer",
            "4: telemetry.logs: must be 'pretty', 'json' or 'none'; did you mean 'json'?",
            "9: providers[0].timeouts: must hold settings of its own (`key: value`)",
            "10: providers[0].weight: must be a number",
            "11: providers[0].timeout: is empty: give it a value, or take the line out",
        ],
    ),
    "weights": (
        ("providers:\n- {name: a, type: vllm, base_url: 'http://h/v1', weight: -1}\n"
        "- {name: b, type: vllm, base_url: 'http://h/v1', weight: .nan}\n"
        "- {name: c, type: vllm, base_url: 'http://h/v1', weight: .inf}\n"
        "- {name: d, type: vllm, base_url: 'http://h/v1', weight: 1e999}\n"),
        [
            "2: providers[0].weight: must be greater than or equal to 0",
            "3: providers[1].weight: must be a finite number",
            "4: providers[2].weight: must be a finite number",
            "5: providers[3].weight: must be a finite number",
        ],
    ),
    "all weights are zero": (
        "server: {}\nproviders:\n- {name: a, type: vllm, base_url: 'http://h/v1', weight: 0}\n",
        ["2: providers: all enabled providers have weight 0: give at least one a weight above 0"],
    ),
    "nobody is enabled": (
        "providers:\n- {name: a, type: vllm, base_url: 'http://h/v1', enabled: no}\n",
        ["1: providers: no provider is enabled: nothing could be served"],
    ),
    "no providers": ("providers: []\n", ["1: providers: must not be an empty list"]),
    "providers are missing": ("server: {}\n", [" providers: is missing: it must be given"]),
    "names twice": (
        ("providers:\n- {name: a, type: vllm, base_url: 'http://h/v1'}\n"
        "- {name: a, type: vllm, base_url: 'http://h/v1'}\n"
        "models:\n- {name: m, targets: [{provider: a}]}\n- {name: m, targets: [{provider: a}]}\n"),
        [
            "3: providers[1].name: two providers are named 'a' (the first is in line 2)",
            "6: models[1].name: two models are named 'm' (the first is in line 5)",
        ],
    ),
    "unknown target": (
        ("providers:\n- {name: main, type: vllm, base_url: 'http://h/v1'}\n"
        "models:\n- name: m\n  targets:\n  - {provider: mian}\n  - {provider: main, wieght: 1}\n"),
        [
            "6: models[0].targets[0].provider: no provider has this name; did you mean 'main'?",
            "7: models[0].targets[1].wieght: unknown key; did you mean 'weight'?",
        ],
    ),
    "model whose targets cannot be picked": (
        f"{PROVIDER}\nmodels:\n- name: m\n  targets: [{{provider: a, weight: 0}}]\n",
        ["3: models[0]: model 'm': all its enabled targets have weight 0"],
    ),
    "defaults are told once": (
        ("defaults:\n  timeot: 3\n  name: x\n  timeouts: {connect: 0}\n  key: v\n"
        "providers:\n- {name: a, type: vllm, base_url: 'http://h/v1'}\n"
        "- {name: b, type: vllm, base_url: 'http://h/v1'}\n"),
        [
            "2: defaults.timeot: unknown key; did you mean 'timeout'?",
            "3: defaults.name: has no default: each provider says it on its own",
            "4: defaults.timeouts.connect: must be greater than 0",
            "5: defaults.key: a key never stands in the file",
        ],
    ),
    "defaults are a list": (
        f"defaults: [1]\n{PROVIDER}\n",
        ["1: defaults: must hold provider settings (`key: value`)"],
    ),
    "options of a type that has none": (
        "providers:\n- name: a\n  type: vllm\n  base_url: http://h/v1\n  options:\n    speed: 3\n",
        ["6: providers[0].options.speed: unknown key"],
    ),
    "reference that is not defined": (
        "providers:\n- name: a\n  type: vllm\n  base_url: http://${NOT_SET_ANYWHERE}/v1\n",
        ["4: providers[0].base_url: the environment variable NOT_SET_ANYWHERE is not set"],
    ),
    "reference that is not closed": (
        "providers:\n- name: a\n  type: vllm\n  base_url: http://${NAME/v1\n",
        ["4: providers[0].base_url: `${` must be followed by the name of an environment variable"],
    ),
    "reference in the wrong place": (
        "providers:\n- name: ${HOME}\n  type: vllm\n  base_url: http://h/v1\n",
        ["2: providers[0].name: environment references (`${NAME}`) work only in base_url"],
    ),
    "duplicate key": (
        "providers:\n- name: a\n  type: vllm\n  base_url: http://h/v1\n  name: b\n",
        ["5: providers[0].name: duplicate key: it stands in line 2 already"],
    ),
    "duplicate and other mistakes": (
        ("server: {prot: 1}\nproviders:\n- name: a\n  type: vllm\n  base_url: http://h/v1\n"
        "server: {port: 1}\n"),
        [
            "1: server.prot: unknown key; did you mean 'port'?",
            "6: server: duplicate key: it stands in line 1 already",
        ],
    ),
    "merge key": (
        ("providers:\n- &a {name: a, type: vllm, base_url: 'http://h/v1'}\n- <<: *a\n  name: b\n"
        "  type: vllm\n  base_url: http://h/v1\n"),
        ["3: providers[1].<<: merge keys are not supported: put shared settings into `defaults`"],
    ),
    "tag": (
        "providers: !!python/object/apply:os.system ['true']\n",
        [
            "1: providers: tags (`!…`) are not supported",
            "1: providers[0]: must hold settings of its own",
        ],
    ),
    "tab": (
        "providers:\n\t- name: a\n",
        ["2: not YAML: a tab or a reserved character begins a word; indent with spaces"],
    ),
    "open bracket": ("providers: [\n", ["not YAML: "]),
    "second document": (
        f"{PROVIDER}\n---\n{PROVIDER}\n",
        ["2: the file holds a second document (after `---`): only one is read"],
    ),
    "empty": ("# nothing\n", ["the file is empty: it must at least hold `providers`"]),
    "a list at the top": ("- 1\n", ["1: the file must hold keys and values at its top"]),
    "too deep": ("a: " + "[" * 40 + "]" * 40, ["1: the file is nested more than 20 levels deep"]),
    "alias without an anchor": (
        "providers: *nobody\n",
        ["1: an alias (`*name`) has no finished anchor (`&name`) before it"],
    ),
    "alias to itself": (
        "providers: &a [*a]\n",
        ["1: an alias (`*name`) has no finished anchor (`&name`) before it"],
    ),
    "too many aliases": (
        "a: &a 1\nb: [" + "*a, " * 101 + "]\n",
        ["2: the file uses more than 100 aliases (`*name`)"],
    ),
    "a key that is a list": (
        "? [a]\n: 1\n", ["1: a key must be plain text, not a mapping or a list"],
    ),
}  # fmt: skip

OTHER_CORPUS = {
    "json syntax": (
        ".json",
        '{"providers": [\n  {"name": "a",}\n]}',
        ["2: not JSON: a key in double quotes is expected here"],
    ),
    "json unknown key": (
        ".json",
        ('{\n\t"providers": [{"name": "a", "type": "vllm",\n\t"base_url": "http://h/v1",'
        '\n\t"wieght": 2}]\n}'),
        ["4: providers[0].wieght: unknown key; did you mean 'weight'?"],
    ),
    "json duplicate": (
        ".json",
        '{"providers": [],\n"providers": []}',
        ["2: providers: duplicate key: it stands in line 1 already"],
    ),
    "json NaN": (".json", '{"total": NaN}', ["1: not JSON: a value is expected here"]),
    "json infinity": (
        ".json",
        ('{"providers": [{"name": "a", "type": "vllm", "base_url": "http://h/v1"}],'
        '\n"total": 1e999}'),
        ["2: total: must be a finite number"],
    ),
    "json too deep": (".json", "[" * 10_000, ["1: the file is nested more than 20 levels deep"]),
    "json cut": (".json", '{"providers": ', ["1: not JSON: the text ends where a value"]),
    "json open string": (".json", '{"prov', ["1: not JSON: this string is not valid"]),
    "json rest": (".json", "{}\n1", ["2: not JSON: the document ends before this"]),
    "json empty": (".json", " ", ["the file is empty"]),
    "toml syntax": (".toml", "[server]\nport 3\n", ["2: not TOML: "]),
    "toml fields": (
        ".toml",
        ('[server]\nprot = 1\n\n[[providers]]\nname = "a"\ntype = "vllm"\nbase_url = "http://h/v1"\n'
        '\n[[providers]]\nname = "b"\ntype = "vllm"\nbase_url = "http://h/v1"\nwieght = 2\n'
        "[providers.limits]\nqueu = 3\n"),
        [
            "2: server.prot: unknown key; did you mean 'port'?",
            "13: providers[1].wieght: unknown key; did you mean 'weight'?",
            "15: providers[1].limits.queu: unknown key; did you mean 'queue'?",
        ],
    ),
    "toml date": (
        ".toml",
        'total = 2020-01-01\n[[providers]]\nname = "a"\ntype = "vllm"\nbase_url = "http://h/v1"\n',
        ["1: total: dates and times are no settings: put it in quotes"],
    ),
    "toml deep": (".toml", "a = " + "[" * 5_000 + "]" * 5_000, ["nested more than 20 levels deep"]),
    "unknown kind": (".ini", "", ["the file's name must end in one of .yaml, .yml, .json, .toml"]),
}  # fmt: skip

ALL = {
    **{f"yaml {name}": (".yaml", *case) for name, case in YAML_CORPUS.items()},
    **OTHER_CORPUS,
}


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_file_is_told_line_by_line(name: str, tmp_path: Path) -> None:
    """Every mistake has one line with file, line number, field and what to do."""
    suffix, text, expected = ALL[name]
    file = tmp_path / f"gateway{suffix}"
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    found = [str(finding).removeprefix(f"{file}:") for finding in caught.value.findings]
    assert len(found) == len(expected), "\n".join(found)
    for line, wanted in zip(found, expected, strict=True):
        assert line.startswith(wanted) or f" {wanted}" in f" {line}", line
    assert caught.value.message.splitlines() == [str(f) for f in caught.value.findings]


def test_aliases_of_aliases_are_counted_in_full(tmp_path: Path) -> None:
    """A file that would multiply into billions of values is refused at once."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 11)]
    file = tmp_path / "laughs.yaml"
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigurationFileError, match="more than 100000 values"):
        load_config(file)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    """At most 1 MiB is read."""
    file = tmp_path / "large.yaml"
    file.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigurationFileError, match="larger than 1048576 bytes"):
        load_config(file)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    """A file that is not UTF-8 is told with the line of the first wrong byte."""
    file = tmp_path / "latin.yaml"
    file.write_bytes(b"server: {}\n# caf\xe9\n")
    with pytest.raises(ConfigurationFileError, match=r"latin.yaml:2: the file is not UTF-8"):
        load_config(file)


@pytest.mark.parametrize("name", ["missing.yaml", ".", "nul\0.yaml"])
def test_what_cannot_be_opened_is_told_in_words(name: str, tmp_path: Path) -> None:
    """A missing file, a folder and an impossible name are findings, not tracebacks."""
    with pytest.raises(ConfigurationFileError):
        load_config(f"{tmp_path}/{name}")


def test_a_control_character_is_told_with_its_line(tmp_path: Path) -> None:
    """Characters that YAML forbids are told with their line."""
    file = tmp_path / "control.yaml"
    file.write_bytes(b"server: {}\nproviders: \x01\n")
    with pytest.raises(ConfigurationFileError, match=r"control.yaml:2: not YAML"):
        load_config(file)


def test_findings_are_bounded(tmp_path: Path) -> None:
    """A file with thousands of mistakes shows a hundred and counts the rest."""
    file = tmp_path / "gateway.yaml"
    file.write_text("\n".join(f"k{n}: 1" for n in range(500)), encoding="utf-8")
    with pytest.raises(ConfigurationFileError) as caught:
        load_config(file)
    assert len(caught.value.findings) == 101
    assert "401 more mistakes" in str(caught.value.findings[-1])
