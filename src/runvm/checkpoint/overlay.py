"""The overlay that a container's root is: its directories, and what they say of the image that it was made of."""

from __future__ import annotations

import hashlib
import os
import stat

from runvm.linux import mounts
from runvm.records import NamedTuple

_FEW = 200
"""A layer with no more entries is known by what is in it: engines make small ones for each container (Docker's for
/etc/hosts and its like). Larger ones are the image's, made once and never changed."""
_SMALL = 64 << 10
"""Bytes of a file that are looked at."""


class Overlay(NamedTuple):
    """An overlay's directories: the *lower* ones from the top, and the *upper*."""

    lower: tuple[str, ...]
    upper: str


def of(root: str) -> Overlay | None:
    """The overlay that is mounted at *root*, in the mount namespace of this process; None where it is none, or its
    directories can't be told. Raises OSError."""
    found = mounts.file_system(os.path.realpath(root))
    if found is None or found.kind != "overlay":
        return None
    lower: list[str] = []
    upper = ""
    for option in found.options:
        key, _, value = option.partition("=")
        if key == "lowerdir":
            lower += value.split(":")
        elif key == "lowerdir+":
            lower.append(value)
        elif key == "upperdir":
            upper = value
    directories = [os.path.realpath(path) for path in (*lower, upper)]
    # a relative path began wherever the engine was, and an escaped colon isn't worth taking apart
    if not upper or not lower or any("\\" in path or not path.startswith("/") for path in (*lower, upper)):
        return None
    if not all(map(os.path.isdir, directories)):
        return None
    return Overlay(tuple(directories[:-1]), directories[-1])


def identity(overlay: Overlay) -> str | None:
    """What tells whether another container's root is as this one, before its program has run; None where something has
    been written to it already: it has run before, say. Directories, links and empty files are an engine's mount points.
    Raises OSError."""
    own = _listing(overlay.upper, bare=True)
    if own is None:
        return None
    parts = [own]
    for path in overlay.lower:
        listing = _listing(path)
        if listing is None:
            found = os.stat(path)
            listing = f"{path} {found.st_dev} {found.st_ino} {found.st_mtime_ns}"
        parts.append(listing)
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def _listing(top: str, *, bare: bool = False) -> str | None:
    """All that is in a directory, as text; None where that is much, or with *bare* something is in it."""
    lines: list[str] = []
    waiting = [""]
    while waiting:
        path = waiting.pop()
        for name in sorted(os.listdir(f"{top}/{path}")):
            here = f"{path}/{name}"
            found = os.lstat(f"{top}/{here}")
            if bare and not _is_bare(found):
                return None
            if len(lines) >= _FEW or stat.S_ISREG(found.st_mode) and found.st_size > _SMALL:
                return None
            lines.append(
                f"{here} {found.st_mode} {found.st_uid} {found.st_gid} {found.st_rdev} {_content(top + here, found)}"
            )
            if stat.S_ISDIR(found.st_mode):
                waiting.append(here)
    return "\n".join(lines)


def _is_bare(found: os.stat_result) -> bool:
    kind = stat.S_IFMT(found.st_mode)
    return kind in (stat.S_IFDIR, stat.S_IFLNK) or kind == stat.S_IFREG and found.st_size == 0


def _content(path: str, found: os.stat_result) -> str:
    if stat.S_ISLNK(found.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        return ""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return hashlib.sha256(file.read(_SMALL)).hexdigest()
