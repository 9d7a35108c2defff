"""Applying a configuration file again: all of it, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from adapters.configuration import ConfigurationFileError, load_config
from adapters.configuration.reloading import LONGEST_LINE, SHOWN_FINDINGS, ConfigurationReload
from adapters.providers.mock import MockAdapter
from engine import ConfigurationError, GatewayConfig, ProviderFactory, Router
from engine.configuration_change import ConfigurationChange
from engine.errors import RejectedError

GOOD = """\
server: {port: 8080}
providers:
  - {name: first, type: mock, weight: 3}
  - {name: second, type: mock}
"""

BAD = {
    "syntax": "providers: [",
    "empty": "",
    "no mapping": "- one\n- two\n",
    "unknown field": GOOD.replace("weight: 3", "wieght: 3"),
    "wrong type": GOOD.replace("weight: 3", "weight: heavy"),
    "unknown provider type": GOOD.replace("first, type: mock", "first, type: mok"),
    "duplicate names": GOOD.replace("second", "first"),
    "duplicate keys": GOOD + "server: {port: 1}\n",
    "all weights zero": GOOD.replace("weight: 3", "weight: 0").replace(
        "second, type: mock", "second, type: mock, weight: 0"
    ),
    "nothing enabled": GOOD.replace("type: mock", "type: mock, enabled: false"),
    "no providers": "providers: []\n",
    "negative weight": GOOD.replace("weight: 3", "weight: -1"),
    "key not in the environment": GOOD.replace(
        "first, type: mock", "first, type: openai, api_key_env: NOT_SET_ANYWHERE"
    ),
    "variable not in the environment": GOOD.replace("weight: 3", "base_url: ${NOT_SET_ANYWHERE}"),
    "missing address": GOOD.replace("first, type: mock", "first, type: vllm"),
    "unknown target": GOOD + "models: [{name: chat, targets: [{provider: third}]}]\n",
    "tab": GOOD.replace("  - {name: second", "\t- {name: second"),
    "admin without a key": GOOD.replace("port: 8080", "admin_port: 1, admin_host: 0.0.0.0"),
}
"""Fault N11 of the catalogue. An unreachable provider is no mistake in a file: it is there
when its first request is, or it is ejected."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good file."""
    path = tmp_path / "gateway.yaml"
    path.write_text(GOOD)
    return path


def write(file: Path, text: str) -> None:
    file.write_text(text)


def reload_of(file: Path, router: Router, **options: Any) -> ConfigurationReload:
    return ConfigurationReload(file, started_with=router.config, apply=router.reload, **options)


async def test_a_changed_file_is_applied(file: Path) -> None:
    """The report says what has changed, and the router serves by it."""
    async with Router(load_config(file)) as router:
        reloading = reload_of(file, router)
        write(file, GOOD.replace("weight: 3", "weight: 2"))
        report = await reloading.reload("test")
        assert [str(entry) for entry in report.change.entries] == [
            "~ provider first: weight 3 -> 2"
        ]
        assert router.config.providers[0].weight == 2
        assert (reloading.error, reloading.waiting) == (None, ())


@pytest.mark.parametrize("name", BAD)
async def test_n11_a_bad_file_changes_nothing(
    name: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The old configuration serves on, the reason is kept, and each finding is a log line."""
    async with Router(load_config(file)) as router:
        before = router.config
        reloading = reload_of(file, router)
        write(file, BAD[name])
        with caplog.at_level(logging.INFO), pytest.raises(ConfigurationFileError) as caught:
            await reloading.reload("test")
        assert router.config is before
        assert router.status().generation == 1
        assert reloading.error is not None
        logged = [record.getMessage() for record in caplog.records]
        for finding in caught.value.findings:
            assert finding.message in reloading.error
            assert str(finding) in logged
        write(file, GOOD)
        await reloading.reload("test")
        assert reloading.error is None


@pytest.mark.parametrize("act", [Path.unlink, lambda p: p.write_bytes(b"\xff\xfe\x00")])
async def test_n11_a_file_that_cannot_be_read_changes_nothing(
    file: Path, act: Callable[[Path], Any]
) -> None:
    """Gone, or no text."""
    async with Router(load_config(file)) as router:
        reloading = reload_of(file, router)
        act(file)
        with pytest.raises(ConfigurationFileError):
            await reloading.reload("test")
        assert router.status().generation == 1


async def test_n11_a_provider_that_cannot_start_changes_nothing(file: Path) -> None:
    """A file without mistakes can still name a provider that does not come up."""

    class NeverStarts(MockAdapter):
        async def start(self) -> None:
            raise ConfigurationError("no model file")

    ProviderFactory.register_type("never-starts", NeverStarts)
    try:
        async with Router(load_config(file)) as router:
            reloading = reload_of(file, router)
            write(file, GOOD + "  - {name: third, type: never-starts}\n")
            with pytest.raises(ConfigurationError, match="no model file"):
                await reloading.reload("test")
            assert [each.name for each in router.config.providers] == ["first", "second"]
            assert reloading.error is not None
            assert "no model file" in reloading.error
    finally:
        ProviderFactory.unregister_type("never-starts")


async def test_many_findings_are_all_logged_and_some_shown(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The status stays readable."""
    async with Router(load_config(file)) as router:
        reloading = reload_of(file, router)
        lines = [f"  - {{name: p{each}, type: mok}}\n" for each in range(SHOWN_FINDINGS + 5)]
        write(file, "providers:\n" + "".join(lines))
        await reloading.try_reload("test")
        assert len(caplog.records) == SHOWN_FINDINGS + 5 + 1
        assert reloading.error is not None
        assert reloading.error.endswith("and 5 more")


async def test_what_needs_a_restart_is_told_until_it_is_undone(file: Path) -> None:
    """It is compared with what the process was started with, not with the last reload."""
    async with Router(load_config(file)) as router:
        reloading = reload_of(file, router)
        write(file, GOOD.replace("8080", "9090"))
        for _ in range(2):
            report = await reloading.reload("test")
            assert report.as_dict()["waiting_for_restart"] == ["server.port"]
            assert reloading.waiting == ("~ server.port 8080 -> 9090 (needs a restart)",)
        write(file, GOOD)
        assert (await reloading.reload("test")).waiting == ()


async def test_the_command_lines_settings_stay(file: Path) -> None:
    """`--port` counts more than the file, after a reload as before."""

    def adjust(config: GatewayConfig) -> GatewayConfig:
        server = config.server.model_copy(update={"port": 1234})
        return config.model_copy(update={"server": server})

    async with Router(adjust(load_config(file))) as router:
        reloading = reload_of(file, router, adjust=adjust)
        write(file, GOOD.replace("8080", "9090"))
        assert (await reloading.reload("test")).waiting == ()
        assert router.config.server.port == 1234


async def test_one_reload_at_a_time_and_a_bounded_line(file: Path) -> None:
    """Those beyond the line are told to come again."""
    running, most, release = 0, 0, anyio.Event()

    async def apply(_: GatewayConfig) -> ConfigurationChange:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1
        return ConfigurationChange()

    config = load_config(file)
    reloading = ConfigurationReload(file, started_with=config, apply=apply, load=lambda _: config)
    refused = 0

    async def ask() -> None:
        nonlocal refused
        try:
            await reloading.reload("test")
        except RejectedError:
            refused += 1

    async with anyio.create_task_group() as group:
        for _ in range(LONGEST_LINE + 3):
            group.start_soon(ask)
        with anyio.fail_after(5):
            while not (running and refused == 2):  # noqa: ASYNC110 - looks from outside
                await anyio.sleep(0.001)
        release.set()
    assert most == 1


async def test_a_mistake_of_ours_ends_in_the_log(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asked by a signal gets no exception, whatever happens; the status tells."""

    def broken(_: Any) -> GatewayConfig:
        raise ZeroDivisionError("canary")

    async with Router(load_config(file)) as router:
        reloading = reload_of(file, router, load=broken)
        await reloading.try_reload("SIGHUP")
        assert reloading.error is not None
        assert "ZeroDivisionError" in reloading.error
        assert "canary" not in reloading.error
        assert "SIGHUP: the reload failed" in caplog.text
