"""The checkpoints of warm containers: kept beside the templates, named by the hash of all that they depend on.

Each is a checkpoint's image with the layer that the container had written. It is made under another name and renamed,
and what a maker that was killed has left goes with the next one of the same name.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from runvm.checkpoint import image
from runvm.errors import CheckpointError
from runvm.hypervisor import template
from runvm.hypervisor.template import Template
from runvm.linux import files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runvm.config import Config

_MAX_FAILURES = 2
MAX_KEPT = 16
"""How many there are at most: that which hasn't been used for longest goes."""


def directory(config: Config, key: str) -> str:
    """Where the one of that name is, or would be."""
    return f"{_base(config)}/{key}"


@contextmanager
def making(config: Config, key: str) -> Iterator[bool]:
    """Whether this process is the one that may make it: no other does, and it isn't there yet. Raises OSError."""
    base = _base(config)
    files.make_directories(base, 0o700, exist_ok=True)
    lock = f"{base}/.{key}.lock"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield not os.path.exists(directory(config, key))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(lock)
    finally:
        os.close(fd)


def note_use(path: str) -> None:
    """One is being started from."""
    with suppress(OSError):
        os.utime(path)


def trim(config: Config) -> None:
    """Take away those beyond MAX_KEPT, and those that can't be read."""
    known = {each.directory for each in list_warmed(config)}
    used = {}
    for name in _names(config):
        path = directory(config, name)
        with suppress(FileNotFoundError):
            used[path] = os.stat(path).st_mtime if path in known else 0.0
    for path in sorted(used, key=lambda path: -used[path])[MAX_KEPT:] + [path for path in used if path not in known]:
        drop(path)


def drop(path: str) -> None:
    """Remove one; a start that is reading it fails, and the next one is as the first."""
    files.remove_tree(path)


def fail(path: str) -> None:
    """Remove one that doesn't come up, and remember that."""
    drop(path)
    with suppress(OSError), open(_failures(path), "ab", opener=files.private) as file:
        file.write(b".")


def is_hopeless(path: str) -> bool:
    """Whether the one that was there has failed, and so has another that was made after that."""
    try:
        return os.stat(_failures(path)).st_size >= _MAX_FAILURES
    except OSError:
        return False


def list_warmed(config: Config) -> list[Template]:
    """Those there are, oldest first, in the shape of templates."""
    found = []
    for name in _names(config):
        path = directory(config, name)
        try:
            manifest = image.Files(path).manifest()
            created = os.stat(f"{path}/{image.MANIFEST}").st_mtime
            made_from = {"warm": manifest.container, "driver": manifest.driver, "vmm": manifest.vmm}
            found.append(Template(name, path, {**made_from, "image_key": manifest.guest}, _size(path), created))
        except (CheckpointError, OSError, ValueError):
            continue  # a broken one: found out and dropped by the start that wants it
    return sorted(found, key=lambda each: each.created)


def prune(config: Config) -> list[Template]:
    """Remove all, broken ones and what is left of makers that were killed, too; those removed that weren't broken."""
    gone = list_warmed(config)
    with suppress(FileNotFoundError):
        for name in os.listdir(_base(config)):
            if name.endswith(".failed"):
                os.unlink(f"{_base(config)}/{name}")
            elif not name.endswith(".lock"):
                drop(f"{_base(config)}/{name}")
    return gone


def _names(config: Config) -> list[str]:
    try:
        return [name for name in os.listdir(_base(config)) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _failures(path: str) -> str:
    base, name = os.path.split(path)
    return f"{base}/.{name}.failed"


def _size(path: str) -> int:
    return sum(os.lstat(f"{top}/{name}").st_blocks * 512 for top, _, names in os.walk(path) for name in names)


def _base(config: Config) -> str:
    return f"{os.path.dirname(template.base(config))}/warm"
