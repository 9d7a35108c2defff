"""Files that are right: what they mean, in each of the three kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.configuration import ConfigurationFileError, load_built_in, load_config
from engine.config import GatewayConfig

YAML = """\
server: {host: 127.0.0.1, port: 8080}
defaults:
  timeout: 20
  timeouts: {connect: 2}
providers:
  - name: one          # a comment
    type: vllm
    base_url: http://127.0.0.1:8000/v1
    weight: 3
    timeouts: {idle: 7}
  - name: two
    type: vllm
    base_url: http://127.0.0.1:8001/v1
    timeout: 5
models:
  - name: chat
    targets: [{provider: one}, {provider: two, model: other, weight: 2, tier: 1}]
"""

TOML = """\
[server]
host = "127.0.0.1"
port = 8080

[defaults]
timeout = 20
timeouts = {connect = 2}

[[providers]]
name = "one"
type = "vllm"
base_url = "http://127.0.0.1:8000/v1"
weight = 3
timeouts = {idle = 7}

[[providers]]
name = "two"
type = "vllm"
base_url = "http://127.0.0.1:8001/v1"
timeout = 5

[[models]]
name = "chat"
targets = [{provider = "one"}, {provider = "two", model = "other", weight = 2, tier = 1}]
"""

JSON = """\
{"server": {"host": "127.0.0.1", "port": 8080},
 "defaults": {"timeout": 20, "timeouts": {"connect": 2}},
 "providers": [
  {"name": "one", "type": "vllm", "base_url": "http://127.0.0.1:8000/v1",
   "weight": 3, "timeouts": {"idle": 7}},
  {"name": "two", "type": "vllm", "base_url": "http:\\/\\/127.0.0.1:8001\\u002fv1", "timeout": 5}],
 "models": [{"name": "chat", "targets": [
  {"provider": "one"}, {"provider": "two", "model": "other", "weight": 2, "tier": 1}]}]}
"""


def write(folder: Path, text: str, name: str = "gateway.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_the_three_kinds_of_file_mean_the_same(tmp_path: Path) -> None:
    """YAML, TOML and JSON with the same settings give equal configurations."""
    by_yaml = load_config(write(tmp_path, YAML))
    by_yml = load_config(str(write(tmp_path, YAML, "gateway.YML")))
    by_toml = load_config(write(tmp_path, TOML, "gateway.toml"))
    by_json = load_config(write(tmp_path, JSON, "gateway.json"))
    assert by_yaml == by_yml == by_toml == by_json


def test_defaults_stand_in_for_what_a_provider_leaves_out(tmp_path: Path) -> None:
    """A provider's own setting wins; inside of `timeouts` setting by setting."""
    one, two = load_config(write(tmp_path, YAML)).providers
    assert (one.timeout, one.timeouts.connect, one.timeouts.idle) == (20, 2, 7)
    assert (two.timeout, two.timeouts.connect, two.timeouts.idle) == (5, 2, 30)


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """Editors on Windows begin files with one."""
    file = tmp_path / "gateway.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + YAML.encode())
    assert len(load_config(file).providers) == 2


def test_anchors_and_aliases_may_be_used(tmp_path: Path) -> None:
    """An alias stands for the value of its anchor."""
    text = (
        "providers:\n- name: a\n  type: vllm\n  base_url: &url http://h/v1\n"
        "  limits: &limits {queue: 3}\n- {name: b, type: vllm, base_url: *url, limits: *limits}\n"
    )
    config = load_config(write(tmp_path, text))
    assert config.providers[0].limits == config.providers[1].limits
    assert config.providers[1].base_url == "http://h/v1"


@pytest.mark.parametrize(
    "name", ["2024-01-01", "no", "on", "1:30", "0x_1", "1_000", "=", "y", "010", "1e3", "0o7"]
)
def test_plain_words_stay_strings_in_yaml(name: str, tmp_path: Path) -> None:
    """Only JSON's types are read: dates, `no` and clock times are text."""
    text = f"providers:\n- {{name: {name}, type: vllm, base_url: 'http://h/v1'}}\n"
    assert load_config(write(tmp_path, text)).providers[0].name == name


def test_a_quoted_number_is_text(tmp_path: Path) -> None:
    """Quotes make a string, whatever stands inside."""
    text = "providers:\n- {name: '12', type: vllm, base_url: 'http://h/v1'}\n"
    assert load_config(write(tmp_path, text)).providers[0].name == "12"


def test_the_default_configuration_has_two_mock_providers() -> None:
    """Without a file two mock providers with weights 3 and 1 are served."""
    config = load_built_in()
    assert [(p.type, p.weight) for p in config.providers] == [("mock", 3), ("mock", 1)]
    assert config.server.host == "127.0.0.1"


class TestEnvironmentReferences:
    """`${NAME}` in addresses and options."""

    URL = "providers:\n- {name: a, type: vllm, base_url: '%s'}\n"

    def test_a_reference_is_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The value of the variable stands where its name stood."""
        monkeypatch.setenv("UPSTREAM_HOST", "10.0.0.1")
        config = load_config(write(tmp_path, self.URL % "http://${UPSTREAM_HOST}:8000/v1"))
        assert config.providers[0].base_url == "http://10.0.0.1:8000/v1"

    @pytest.mark.parametrize(
        "value",
        ["x: y", "x # y", "x\n  weight: 9", "${HOME}", "!!int 3", "*a", "'", '"', "{a: b}", "$${"],
    )
    def test_a_value_stays_one_scalar(
        self, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a variable holds never changes the structure, nor is it looked at again."""
        monkeypatch.setenv("SERVER_HOST", value)
        text = "server: {host: '${SERVER_HOST}'}\n" + self.URL % "http://h/v1"
        config = load_config(write(tmp_path, text))
        assert config.server.host == value
        assert config.providers[0].weight == 1

    def test_a_doubled_dollar_writes_a_plain_one(self, tmp_path: Path) -> None:
        """`$${` is how a text holds `${`."""
        text = "server: {host: '$${HOME}'}\n" + self.URL % "http://h/v1"
        assert load_config(write(tmp_path, text)).server.host == "${HOME}"

    def test_a_variable_without_value_is_told(self, tmp_path: Path) -> None:
        """An undefined variable is a finding with its line, and never an empty address."""
        with pytest.raises(ConfigurationFileError) as caught:
            load_config(write(tmp_path, self.URL % "http://${NOT_SET_ANYWHERE}/v1"))
        assert [finding.line for finding in caught.value.findings] == [2]


def test_a_disabled_provider_needs_no_key(tmp_path: Path) -> None:
    """What takes no part is not asked for its key."""
    text = YAML + "  # end\n"
    text = text.replace(
        "models:",
        "  - {name: off, type: openai, api_key_env: NOT_SET_ANYWHERE, enabled: no}\nmodels:",
    )
    assert load_config(write(tmp_path, text)).providers[2].enabled is False


def test_a_loaded_configuration_is_a_gateway_config(tmp_path: Path) -> None:
    """The same frozen models as from Python, compared field by field."""
    config = load_config(
        write(tmp_path, "providers:\n- {name: a, type: vllm, base_url: http://h/v1}")
    )
    expected = GatewayConfig.model_validate(
        {"providers": [{"name": "a", "type": "vllm", "base_url": "http://h/v1"}]}
    )
    assert config == expected
