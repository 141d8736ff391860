"""Files and directories that nobody else may write, whatever the caller's umask is."""

from __future__ import annotations

import os


def make_directories(path: str, mode: int, *, exist_ok: bool = False) -> None:
    """os.makedirs() with *mode* for the last and at most 0755 for those above. Raises OSError."""
    umask = os.umask(0o022)
    try:
        os.makedirs(path, mode=mode, exist_ok=exist_ok)
    finally:
        os.umask(umask)


def private(path: str, flags: int) -> int:
    """An opener for open(): a file that is made is root's alone to read."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def exclusive(path: str, flags: int) -> int:
    """An opener for open(): a new file, which no link that somebody has put there leads elsewhere."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
