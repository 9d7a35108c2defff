"""Every command and every code block of the documents is tried here."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from adapters.configuration import load_config

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = str(pathlib.Path(sys.executable).with_name("inference-gateway"))

INSTALLS = {
    "pip install -e '.[local]' && inference-gateway demo",
    "pip install -e '.[test]' && pytest",
}
"""Tried on fresh environments: the second by .ci/run, the first by hand; what they start
is tried by tests/integration/test_demo.py and by this very run."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    document: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            if match[1] in languages:
                found.append(Block(document.name, line, match[1], match[2]))
    return found


def environment() -> dict[str, str]:
    bin_folder = str(pathlib.Path(COMMAND).parent)
    return {
        **os.environ,
        "OPENAI_API_KEY": "sk-test",
        "PATH": bin_folder + os.pathsep + os.environ["PATH"],
    }


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    """The gateway as `inference-gateway serve` starts it; yields `127.0.0.1:PORT`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    server = subprocess.Popen(
        [COMMAND, "serve", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://{address}/readyz", timeout=2).read()
                break
            except (OSError, urllib.error.URLError):
                time.sleep(0.05)
        else:
            pytest.fail("the gateway was not ready after 15 s")
        yield address
    finally:
        server.terminate()
        server.wait(30)


def test_every_language_of_a_block_is_known() -> None:
    """No block escapes the tests below by its language."""
    known = {"python", "yaml", "toml", "bash", "text"}
    assert {block.language for block in blocks("", *known)} <= known


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_block_runs(block: Block, gateway: str, tmp_path: pathlib.Path) -> None:
    """Each Python block runs as it stands, in an interpreter of its own."""
    script = tmp_path / "block.py"
    script.write_text(block.text.replace("127.0.0.1:8080", gateway))
    ran = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_block_is_a_configuration(
    block: Block, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each YAML block is a file that the gateway accepts."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    path = tmp_path / "gateway.yaml"
    path.write_text(block.text)
    assert load_config(path).providers


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_block_names_an_adapter(block: Block) -> None:
    """Each TOML block declares an entry point in the group that the factory reads."""
    entry_points = tomllib.loads(block.text)["project"]["entry-points"]
    assert list(entry_points) == ["inference_gateway.providers"]


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_command_works(block: Block, gateway: str, tmp_path: pathlib.Path) -> None:
    """Each command ends well; the ones that serve are tried by asking what they served."""
    command = block.text.strip()
    if command in INSTALLS:
        assert (ROOT / ".ci" / "run").read_text().count("readme_command") >= 2
        return
    if command == "inference-gateway serve":
        assert gateway
        return
    example = next(block for block in blocks("yaml") if block.document == "README.md")
    (tmp_path / "gateway.yaml").write_text(example.text)
    ran = subprocess.run(
        ["bash", "-ec", command.replace("127.0.0.1:8080", gateway)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_commands_named_in_tables_exist() -> None:
    """Each `inference-gateway X --option` of the prose is a real command with that option."""
    found = set()
    for document in DOCUMENTS:
        found |= set(re.findall(r"`inference-gateway ([^`]+)`", document.read_text()))
    assert found
    for words in map(shlex.split, (f.replace("[", " ").replace("]", " ") for f in found)):
        shown = subprocess.run(
            [COMMAND, words[0], "--help"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
        for option in (word for word in words if word.startswith("--")):
            assert option in shown, f"{words[0]} has no {option}"


def test_links_between_documents_lead_somewhere() -> None:
    """Each relative link names a file that exists."""
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
