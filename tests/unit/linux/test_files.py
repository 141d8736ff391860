"""What descriptors lead to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runvm.linux import files, syscalls


def test_only_the_null_device_is_null() -> None:
    for path, expected in ((os.devnull, True), ("/dev/zero", False), (__file__, False)):
        fd = os.open(path, os.O_RDONLY)
        try:
            assert files.is_null(fd) is expected
        finally:
            os.close(fd)


def test_data_that_go_while_they_are_looked_for_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest gives memory back at any moment."""
    fd = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, 1 << 20)
        for offset in (0, 512 << 10):
            os.pwrite(fd, b"x" * 4096, offset)
        assert list(files.data(fd)) == [(0, 4096), (512 << 10, (512 << 10) + 4096)]
        seek = os.lseek

        def meanwhile(fd: int, offset: int, whence: int) -> int:
            if whence == os.SEEK_HOLE and offset == 0:
                syscalls.punch_hole(fd, 0, 4096)
            return seek(fd, offset, whence)

        monkeypatch.setattr(os, "lseek", meanwhile)
        assert list(files.data(fd)) == [(512 << 10, (512 << 10) + 4096)]
    finally:
        os.close(fd)


def test_a_tree_is_removed_and_nothing_that_its_links_lead_to(tmp_path: Path) -> None:
    """Links to files, to directories and to nothing, within it and out of it; a FIFO; a directory that is empty."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / "a" / "file").touch()
    os.mkfifo(tree / "a" / "b" / "fifo")
    for name, target in (("directory", outside), ("to-file", outside / "kept"), ("inside", "b"), ("nothing", "gone")):
        (tree / "a" / name).symlink_to(target)
    link = tmp_path / "link"
    link.symlink_to(tree)
    for nothing in (link, outside / "kept", tmp_path / "missing"):
        files.remove_tree(str(nothing))
    assert (link.is_symlink(), tree.is_dir(), os.listdir(outside)) == (True, True, ["kept"])
    files.remove_tree(str(tree))
    assert (tree.exists(), os.listdir(outside)) == (False, ["kept"])
