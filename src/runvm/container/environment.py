"""A process's environment as runc makes it: a variable that is given twice has its last value, and all have a HOME."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runvm.linux import files

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX = 1 << 20
"""Bytes of a container's /etc/passwd that are looked at."""
_MAX_HOME = 4096
"""Letters of a home directory: a longer one is no path (limits.h, PATH_MAX)."""


def complete(given: Sequence[str], home: str) -> list[str]:
    """*given* with each variable once, and *home* where HOME is unset or empty."""
    found: dict[str, str] = {}
    for entry in given:
        name = entry.partition("=")[0]
        found.pop(name, None)
        found[name] = entry
    if found.get("HOME", "HOME=") == "HOME=":
        found["HOME"] = f"HOME={home}"
    return list(found.values())


def home_in(root: int, uid: int) -> str:
    """The home directory of *uid* by /etc/passwd below the directory *root*, '/' where it has none."""
    try:
        fd = files.open_regular(root, "etc/passwd")
    except OSError:
        return "/"
    try:
        data = os.read(fd, _MAX)
    except OSError:
        return "/"
    finally:
        os.close(fd)
    for line in data.decode(errors="surrogateescape").splitlines():
        fields = line.strip().split(":")
        if len(fields) > 5 and fields[2] == str(uid):
            return fields[5] if 0 < len(fields[5]) <= _MAX_HOME else "/"
    return "/"


def home_of(pid: int, uid: int) -> str:
    """home_in() of the root of process *pid*, which stands for a container's."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return "/"
    try:
        return home_in(root, uid)
    finally:
        os.close(root)
