"""Writes a directory tree as a newc cpio archive, the kernel's initramfs format: the same tree gives the same bytes.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from runvm.records import NamedTuple


class Node(NamedTuple):
    """A device node of the archive: made there only, so that building needs no right to mknod."""

    path: str
    mode: int
    major: int
    minor: int


class _Writer:
    def __init__(self, out: BinaryIO) -> None:
        self.out = out
        self.size = 0
        self.inode = 0

    def entry(self, name: str, mode: int, data: bytes = b"", *, major: int = 0, minor: int = 0) -> None:
        # An inode number of its own for each: the kernel takes equal ones with nlink > 1 for hard links
        self.inode += 1
        raw = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (self.inode, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(raw), 0)
        self._put(b"070701" + b"".join(b"%08X" % field for field in fields) + raw)
        self._put(data)

    def _put(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4)
        self.out.write(padded)
        self.size += len(padded)


def write(root: str, out: BinaryIO, *, nodes: tuple[Node, ...] = (), without: frozenset[str] = frozenset()) -> int:
    """Archive everything under *root* and *nodes* to *out*, but not the paths *without* and what is below them; returns
    the size in bytes.

    Owner is root, times are the epoch, modes are 755 or 644 (a sticky directory keeps 1777), the order is by name: what
    the builder's umask, clock and file system add is left out. Raises ValueError for a file that isn't a regular one,
    a directory or a symlink.
    """
    writer = _Writer(out)
    entries: dict[str, Node | None] = dict.fromkeys(_walk(root, "", without))
    entries.update((node.path, node) for node in nodes)
    for name in sorted(entries):
        node = entries[name]
        if node is not None:
            writer.entry(name, node.mode, major=node.major, minor=node.minor)
            continue
        path = os.path.join(root, name)
        status = os.lstat(path)
        if stat.S_ISLNK(status.st_mode):
            writer.entry(name, stat.S_IFLNK | 0o777, os.readlink(path).encode())
        elif stat.S_ISDIR(status.st_mode):
            writer.entry(name, stat.S_IFDIR | (0o1777 if status.st_mode & stat.S_ISVTX else 0o755))
        elif stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                writer.entry(name, stat.S_IFREG | (0o755 if status.st_mode & 0o100 else 0o644), file.read())
        else:
            raise ValueError(f"{path} is neither a file, a directory nor a symlink")
    writer.inode = -1  # the trailer's is 0
    writer.entry("TRAILER!!!", 0)
    return writer.size


def _walk(root: str, prefix: str, without: frozenset[str]) -> list[str]:
    names: list[str] = []
    with os.scandir(os.path.join(root, prefix)) as entries:
        for entry in entries:
            name = os.path.join(prefix, entry.name)
            if name in without:
                continue
            names.append(name)
            if entry.is_dir(follow_symlinks=False):
                names += _walk(root, name, without)
    return names
