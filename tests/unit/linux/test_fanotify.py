"""fanotify(7), really asked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runvm.linux import fanotify

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MASK = fanotify.MODIFY | fanotify.CLOSE_WRITE | fanotify.NAMES | fanotify.ON_CHILD | fanotify.ON_DIRECTORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be told who it was")


@pytest.fixture
def group() -> Iterator[fanotify.Group]:
    made = fanotify.Group()
    yield made
    os.close(made.fd)


def mark(group: fanotify.Group, path: Path) -> fanotify.Directory:
    fd = os.open(path, os.O_PATH)
    try:
        return group.add(fd, MASK)
    except OSError as error:
        pytest.skip(f"the file system of {path} has no handles: {error}")
    finally:
        os.close(fd)


def test_what_happens_in_a_directory_and_who_did_it(group: fanotify.Group, tmp_path: Path) -> None:
    """By name; nothing more once it isn't watched."""
    directory = mark(group, tmp_path)
    assert group.read() == []
    (tmp_path / "a").write_text("x")
    (event,) = group.read()
    assert event.mask == fanotify.CREATE | fanotify.MODIFY | fanotify.CLOSE_WRITE
    assert event[1:] == (os.getpid(), directory, b"a", 0)
    fd = os.open(tmp_path, os.O_PATH)
    group.remove(fd, MASK)
    os.close(fd)
    (tmp_path / "a").unlink()
    assert group.read() == []


def test_marks_of_root_are_left_to_others(group: fanotify.Group) -> None:
    """A guest has thousands made, and each group bounds its own: they don't count for all of root's processes."""
    with open(f"/proc/self/fdinfo/{group.fd}", encoding="ascii") as file:
        flags = next(line.split()[1] for line in file if line.startswith("fanotify flags:"))
    assert int(flags.removeprefix("flags:"), 16) & fanotify._UNLIMITED_MARKS


def test_the_halves_of_a_move_belong_together(group: fanotify.Group, tmp_path: Path) -> None:
    """Between two directories; of one that leaves what is watched there is one half."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "a").touch()
    top, sub = mark(group, tmp_path), mark(group, tmp_path / "sub")
    (tmp_path / "a").rename(tmp_path / "sub" / "b")
    (tmp_path / "sub" / "b").rename(tmp_path / "other" / "b")
    first, second, third = group.read()
    assert (first.mask, first.directory, first.name) == (fanotify.MOVED_FROM, top, b"a")
    assert (second.mask, second.directory, second.name) == (fanotify.MOVED_TO, sub, b"b")
    assert first.cookie == second.cookie != 0
    assert (third.mask, third.directory, third.name) == (fanotify.MOVED_FROM, sub, b"b")
    assert third.cookie not in (0, first.cookie)
