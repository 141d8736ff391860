"""cpio.py: the archive is what the kernel reads, and says nothing of the tree's owner, clock or order."""

import io
import os
import stat
from pathlib import Path

import pytest

from runvm.guest import cpio


def read(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Entries of a newc archive: name → mode, data, device. Asserts what the kernel's unpacker asserts."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    position = 0
    while True:
        assert position % 4 == 0
        assert data[position : position + 6] == b"070701"
        numbers = [int(data[position + 6 + 8 * i : position + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, check = numbers
        assert (uid, gid, mtime, check) == (0, 0, 0, 0)
        name = data[position + 110 : position + 110 + name_size - 1].decode()
        position += (110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            assert position == len(data)
            return found
        found[name] = (mode, data[position : position + size], (major, minor))
        position += (size + 3) & ~3


def archive(root: Path, *nodes: cpio.Node, without: frozenset[str] = frozenset()) -> bytes:
    out = io.BytesIO()
    assert cpio.write(str(root), out, nodes=nodes, without=without) == len(out.getvalue())
    return out.getvalue()


def fill(root: Path, names: list[str]) -> Path:
    root.mkdir()
    for name in names:
        (root / name).write_text(name)
    return root


def test_files_directories_links_and_nodes_are_in_it(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", ["abc"])
    (root / "dir").mkdir(0o700)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "dir" / "run").write_text("#!/bin/sh")
    (root / "dir" / "run").chmod(0o700)
    (root / "link").symlink_to("dir/run")
    (root / "loop").symlink_to(".")
    entries = read(archive(root, cpio.Node("dir/console", stat.S_IFCHR | 0o600, 5, 1)))
    assert entries == {
        "abc": (stat.S_IFREG | 0o644, b"abc", (0, 0)),
        "dir": (stat.S_IFDIR | 0o755, b"", (0, 0)),
        "dir/console": (stat.S_IFCHR | 0o600, b"", (5, 1)),
        "dir/run": (stat.S_IFREG | 0o755, b"#!/bin/sh", (0, 0)),
        "link": (stat.S_IFLNK | 0o777, b"dir/run", (0, 0)),
        "loop": (stat.S_IFLNK | 0o777, b".", (0, 0)),
        "tmp": (stat.S_IFDIR | 0o1777, b"", (0, 0)),
    }
    assert list(entries) == sorted(entries)  # the kernel needs a directory before what is in it


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    """Times, modes beyond the executable bit and the order of making don't show."""
    one = fill(tmp_path / "one", ["a", "b", "c"])
    other = fill(tmp_path / "other", ["c", "b", "a"])
    (other / "b").chmod(0o600)
    os.utime(other / "a", ns=(5, 5))
    assert archive(one) == archive(other)


def test_a_fifo_is_refused_by_its_path(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", [])
    os.mkfifo(root / "pipe")
    with pytest.raises(ValueError, match="root/pipe"):
        archive(root)


def test_what_is_to_be_left_out_is_left_out_with_what_is_below_it(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", ["a", "b"])
    for name in ("lib", "lib/modules", "lib/modules/6.1"):
        (root / name).mkdir()
    (root / "lib/modules/6.1/x.ko").write_text("x")
    (root / "lib/libc.so").write_text("c")
    assert set(read(archive(root, without=frozenset(("b", "lib/modules"))))) == {"a", "lib", "lib/libc.so"}
