"""Noticing that a configuration file has changed."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from adapters.configuration.watching import ChangeDetector, FileWatch, Sight, digest_of, look_at

A, B = Sight(1, 10, 7, 1), Sight(2, 10, 7, 1)


def looks(detector: ChangeDetector, *seen: Sight | None) -> list[bool]:
    return [detector.changed(each) for each in seen]


@pytest.fixture
def detector() -> ChangeDetector:
    """One that has applied A."""
    detector = ChangeDetector()
    assert looks(detector, A, A) == [False, True]
    return detector


class TestDetector:
    """The decision, without files and time."""

    def test_what_stays_the_same_is_no_change(self, detector: ChangeDetector) -> None:
        """Looking does nothing."""
        assert looks(detector, A, A, A) == [False] * 3

    def test_a_change_counts_once_when_it_rests(self, detector: ChangeDetector) -> None:
        """The second equal look tells, the third does not repeat it."""
        assert looks(detector, B, B, B) == [False, True, False]

    def test_a_file_that_is_being_written_is_left_alone(self, detector: ChangeDetector) -> None:
        """As long as each look differs from the last, nothing is read."""
        growing = [Sight(each, each, 7, 1) for each in range(2, 8)]
        assert looks(detector, *growing) == [False] * 6
        assert looks(detector, growing[-1]) == [True]

    def test_a_file_that_is_missing_for_a_moment_is_no_change(
        self, detector: ChangeDetector
    ) -> None:
        """A swap shows nothing, or the old file again, on the way to the new one."""
        assert looks(detector, None, None, A, A) == [False] * 4
        assert looks(detector, None, B, B) == [False, False, True]

    def test_another_inode_with_the_same_time_and_size_is_a_change(
        self, detector: ChangeDetector
    ) -> None:
        """`mv` of a file that was made in the same instant."""
        other = Sight(A.modified, A.size, 8, 1)
        assert looks(detector, other, other) == [False, True]


def write(path: Path, text: str) -> None:
    path.write_text(text)


def remove(path: Path) -> None:
    path.unlink()


Watch = Callable[[Path, Callable[[], Awaitable[None]]], Awaitable[int]]


@pytest.fixture
def watch() -> Watch:
    """Watch a file while something is done to it; gives the number of changes told."""

    async def run(path: Path, act: Callable[[], Awaitable[None]]) -> int:
        told = 0

        async def on_change() -> None:
            nonlocal told
            told += 1

        async with anyio.create_task_group() as group:
            group.start_soon(FileWatch(path, on_change, interval=0.01).run)
            await anyio.sleep(0.05)
            before = told
            await act()
            with anyio.move_on_after(2):
                while told == before:  # noqa: ASYNC110 - looks from outside
                    await anyio.sleep(0.01)
            # A second telling of the same change would come now.
            await anyio.sleep(0.05)
            group.cancel_scope.cancel()
        return told

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that can be watched."""
    path = tmp_path / "gateway.yaml"
    write(path, "one")
    return path


async def test_a_rewritten_file_is_told_once(watch: Watch, file: Path) -> None:
    """An editor that writes in place."""

    async def act() -> None:
        write(file, "two")

    assert await watch(file, act) == 1


async def test_a_replaced_file_is_told_once(watch: Watch, file: Path, tmp_path: Path) -> None:
    """An editor that writes beside it and renames."""

    async def act() -> None:
        (tmp_path / "new").write_text("two")
        (tmp_path / "new").replace(file)

    assert await watch(file, act) == 1


async def test_a_swapped_folder_link_is_told(watch: Watch, tmp_path: Path) -> None:
    """What Kubernetes does: file -> ..data/file, and ..data is replaced."""
    for name, text in (("v1", "one"), ("v2", "two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gateway.yaml").write_text(text)
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "gateway.yaml").symlink_to("..data/gateway.yaml")

    async def act() -> None:
        (tmp_path / "..tmp").symlink_to("v2")
        (tmp_path / "..tmp").rename(tmp_path / "..data")

    assert await watch(tmp_path / "gateway.yaml", act) == 1


async def test_the_same_contents_are_no_change(file: Path) -> None:
    """`touch`, or a tool that writes the same again, does not undo what was set by hand."""
    told: list[int] = []

    async def on_change() -> None:
        told.append(1)

    async with anyio.create_task_group() as group:
        group.start_soon(FileWatch(file, on_change, interval=0.01).run)
        for moment in range(1, 4):
            await anyio.sleep(0.05)
            os.utime(file, ns=(moment, moment))
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    assert told == []


async def test_a_change_from_before_the_watch_is_told(file: Path) -> None:
    """Between the reading of the file and the first look nothing is missed."""
    read = digest_of(file)
    write(file, "two")
    told = anyio.Event()

    async def on_change() -> None:
        told.set()

    async with anyio.create_task_group() as group:
        group.start_soon(FileWatch(file, on_change, read=read, interval=0.01).run)
        with anyio.fail_after(5):
            await told.wait()
        group.cancel_scope.cancel()


async def test_a_missing_file_is_told_once_and_found_again(
    watch: Watch, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so one time, and a new file in its place counts."""

    async def act() -> None:
        remove(file)
        await anyio.sleep(0.05)
        write(file, "two")

    with caplog.at_level(logging.WARNING):
        assert await watch(file, act) == 1
    assert len(caplog.records) == 1


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    """A folder, a pipe and nothing at all have no digest, and nobody waits for them."""
    os.mkfifo(tmp_path / "pipe")
    assert digest_of(tmp_path) is None
    assert digest_of(tmp_path / "pipe") is None
    assert digest_of(tmp_path / "none") is None
    assert look_at(tmp_path / "none") is None
