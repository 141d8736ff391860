"""The directory of images: one writer at a time, names by content, `current`, removal of those not in use."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from runvm.guest import contents
from runvm.linux import locking, syscalls

LOCK_TIMEOUT = 900.0
TEMPORARY = ".build-"


@contextmanager
def locked(base: str, progress: Callable[[str], None]) -> Iterator[None]:
    """Keep other builds and prunes out of *base*; what killed ones left there is removed. Raises DeadlineError."""
    fd = os.open(os.path.join(base, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        locking.lock(
            fd,
            deadline=time.monotonic() + LOCK_TIMEOUT,
            timeout_message=f"another build has held {base}/.lock for {LOCK_TIMEOUT:.0f} s",
            interval=0.2,
            waiting=lambda: progress("waiting for another build to end"),
        )
        for name in os.listdir(base):
            if name.startswith(TEMPORARY):
                path = os.path.join(base, name)
                if os.path.islink(path):
                    os.unlink(path)
                else:
                    shutil.rmtree(path, ignore_errors=True)
        yield
    finally:
        os.close(fd)


def manifests(base: str) -> dict[str, dict[str, object]]:
    """Directory → manifest of the complete images in *base*, by name."""
    found = {}
    for name in sorted(os.listdir(base)):
        directory = os.path.join(base, name)
        if name.startswith(".") or os.path.islink(directory):
            continue
        try:
            found[directory] = _manifest(directory)
        except (OSError, ValueError, TypeError):
            continue
    return found


def _manifest(directory: str) -> dict[str, object]:
    """Raises OSError, ValueError."""
    with open(os.path.join(directory, "manifest.json"), "rb") as file:
        return dict(json.load(file))


def publish(base: str, result: str, name: str, link: str) -> str:
    """Move the finished image *result* to *name* in *base*, on disk before it shows, and make it current. One that is
    there and isn't whole goes to *result*."""
    directory = os.path.join(base, name)
    os.chmod(result, 0o755)
    sync(result)
    if not os.path.isdir(directory):
        os.rename(result, directory)
    elif contents.is_whole(directory, _manifest(result)):  # the builder has changed, but not what it makes
        os.replace(os.path.join(result, "manifest.json"), os.path.join(directory, "manifest.json"))
    else:
        syscalls.exchange(result, directory)
    make_current(base, directory, link)
    return directory


def note(directory: str, manifest: Mapping[str, object]) -> None:
    """Write *manifest* as that of the image in *directory*."""
    path = os.path.join(directory, "manifest.json")
    with open(f"{path}.new", "w") as file:
        json.dump(manifest, file, indent=2)
    os.replace(f"{path}.new", path)


def make_current(base: str, directory: str, link: str = "current") -> None:
    """Point *link* (image.link()) at *directory*."""
    temporary = os.path.join(base, f"{TEMPORARY}{link}")
    os.symlink(os.path.basename(directory), temporary)
    os.replace(temporary, os.path.join(base, link))
    sync(base)


def remove(data_dir: str, names: Sequence[str]) -> list[str]:
    """Remove the images *names* that no VM runs from, and packages that none left needs; returns those removed."""
    base = os.path.join(data_dir, "images")
    if not os.path.isdir(base):
        return []
    with locked(base, lambda _: None):
        removed = [name for name in names if _remove_unused(base, name)]
        _prune_cache(os.path.join(data_dir, "cache"), base)
    return removed


def _remove_unused(base: str, name: str) -> bool:
    directory = os.path.join(base, name)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # another prune was quicker
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # see image.take
        # Out of the way first: a half-removed image must not be found under its name
        gone = os.path.join(base, f"{TEMPORARY}removed-{name}")
        os.rename(directory, gone)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    shutil.rmtree(gone)
    return True


def _prune_cache(cache: str, base: str) -> None:
    text = json.dumps(list(manifests(base).values()))
    if os.path.isdir(cache):
        for name in os.listdir(cache):
            if name.endswith(".deb") and name.removesuffix(".deb") not in text:
                os.unlink(os.path.join(cache, name))


def sync(path: str) -> None:
    """Flush the file system of *path*: one call where fsync would take one for each of 4,000 modules."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd) != 0:
            raise OSError(ctypes.get_errno(), "syncfs", path)
    finally:
        os.close(fd)
