"""A checkpoint's image: a directory with a VM's memory and device state, and what its container was.

It is written under a name of its own beside its place and then renamed there, so a command that is killed leaves what
was there before. It holds the container's memory, so nobody but its owner may look into it. Whoever brings one along
may have written it: each file is opened without following links, its length and what it holds are compared with the
manifest, and each field of that is checked.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from contextlib import ExitStack, suppress
from typing import Any, get_type_hints

from runvm.checkpoint import memory, precopy
from runvm.errors import CheckpointError, HostError, reason
from runvm.linux import files, syscalls
from runvm.records import NamedTuple

FORMAT = 4
MANIFEST = "checkpoint.json"
_MEMORY = ("ram", "more")
_FILES = (*_MEMORY, "state")
_CRIUS = "inventory.img"
"""The file without which Podman takes no directory for a checkpoint: CRIU's list of processes. Nothing reads it."""
_MAX_MANIFEST = 32 << 20
_MAX_STATE = 64 << 20
_MAKE = "make the checkpoint anew"
_UNFINISHED = ".runvm-"
"""Comes between an image's name and a process's number while it is written."""


class Manifest(NamedTuple):
    """What an image says of itself. The versions are those of runvm, its protocol, the VMM and virtiofsd; *hardware* is
    Driver.hardware(), *cpu* the host's processor under KVM, *guest* the guest image's key.

    *container* is what its container was called, *shape* what a bundle must have in common with it
    (container.shape), *resources* its limits as config.json had them, *vm* are the fields of
    sandbox.checkpointing.Stopped, *files* the length and hash of each file.
    """

    format: int
    release: str
    protocol: int
    driver: str
    vmm: str
    daemon: str
    hardware: str
    cpu: str
    guest: str
    container: str
    created: str
    shape: dict[str, Any]
    resources: dict[str, Any]
    vm: dict[str, Any]
    files: dict[str, list[Any]]


class Files:
    """The files of the image in *directory*."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def manifest(self) -> Manifest:
        """The manifest, the files' lengths compared with it. Raises CheckpointError."""
        data = self._read(MANIFEST, _MAX_MANIFEST)
        try:
            body = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"{MANIFEST} is no JSON: {error}") from None
        if not isinstance(body, dict) or type(body.get("format")) is not int:
            raise self._damaged(f"{MANIFEST} says no format")
        if body["format"] != FORMAT:
            raise CheckpointError(
                f"the checkpoint {self._directory} is of format {body['format']}, this runvm reads {FORMAT}",
                do=_MAKE,
            )
        manifest = self._typed(body)
        for name in _FILES:
            told = manifest.files.get(name)
            if not (isinstance(told, list) and len(told) == 2 and type(told[0]) is int and isinstance(told[1], str)):
                raise self._damaged(f"{MANIFEST} doesn't tell of {name}")
            if self._size(name) != told[0]:
                raise self._damaged(f"{name} has {self._size(name)} bytes, and {told[0]} were written")
        if manifest.files["state"][0] > _MAX_STATE:
            raise self._damaged("its device state is too large")
        if memory.digest(f"{self._directory}/state") != manifest.files["state"][1]:
            raise self._damaged("its device state isn't what was written")
        return manifest

    def fill(self, hashes: dict[str, str], *targets: int) -> None:
        """Copy the VM's memory into those descriptors. Raises CheckpointError where it isn't what was written."""
        for name, target in zip(_MEMORY, targets, strict=True):
            fd = self._open(name)
            try:
                found = memory.unpack(fd, target)
            except CheckpointError as error:
                raise self._damaged(f"{name} has {error.message}") from error
            finally:
                os.close(fd)
            if found != hashes[name]:
                raise self._damaged(f"{name} isn't what was written")

    def _typed(self, body: dict[str, Any]) -> Manifest:
        if body.keys() != set(Manifest._fields):
            raise self._damaged(f"{MANIFEST} has other fields than it should")
        for field, hint in get_type_hints(Manifest).items():
            kind = hint if hint in (int, str) else dict
            if type(body[field]) is not kind:
                raise self._damaged(f"{field} in {MANIFEST} should be a {kind.__name__}")
        return Manifest(**body)

    def _size(self, name: str) -> int:
        fd = self._open(name)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def _read(self, name: str, limit: int) -> bytes:
        with open(self._open(name), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise self._damaged(f"{name} is larger than {limit >> 20} MiB")
        return data

    def _open(self, name: str) -> int:
        path = f"{self._directory}/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise CheckpointError(f"{self._directory} is no checkpoint of runvm's: it has no {name}") from None
        except OSError as error:
            said = "a link" if error.errno == errno.ELOOP else reason(error)
            raise self._damaged(f"{name}: {said}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._damaged(f"{name} is no regular file")
        return fd

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"the checkpoint {self._directory} is damaged: {what}", do=_MAKE)


class Writer:
    """Makes the image *directory*: a context manager; what wasn't finished goes. Raises HostError.

    The memory takes three steps: it is copied while the VM runs, caught up with while that stands still, and packed."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        parent, name = os.path.split(os.path.normpath(directory))
        self._parent = parent or "/"
        self.path = f"{self._parent}/.{name}{_UNFINISHED}{os.getpid()}"
        self._lock = -1
        self._held = ExitStack()
        self._copies: dict[str, precopy.Copy] = {}
        self._hashes: dict[str, str] = {}

    def __enter__(self) -> Writer:
        self._check_place()
        try:
            files.make_directories(self._parent, 0o700, exist_ok=True)
            self._sweep()
            os.mkdir(self.path, 0o700)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise HostError(f"{self.path}: {reason(error)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
        os.close(self._lock)
        _remove(self.path)

    def copy_memory(self, ram_file: str, more_file: str) -> None:
        """Copy the memory of a VM that runs. Raises OSError."""
        for name, source in zip(_MEMORY, (ram_file, more_file), strict=True):
            self._copies[name] = self._held.enter_context(precopy.Copy(source, self.path))
            self._copies[name].begin()

    def catch_up(self) -> int:
        """Copy what has changed in the memory, now that the VM stands still: how many bytes. Raises OSError."""
        return sum(copy.catch_up() for copy in self._copies.values())

    def pack_memory(self, *, compress: bool = False) -> None:
        """Write the used pages of the copy; the VM may go on. Raises OSError, HostError."""
        for name, copy in self._copies.items():
            self._hashes[name] = copy.pack(f"{self.path}/{name}", compress=compress)
        self._held.close()

    def add_state(self, source: str) -> None:
        """Copy its device state. Raises OSError, HostError where it is too large."""
        with open(source, "rb") as file, open(f"{self.path}/state", "wb", opener=files.private) as target:
            data = file.read(_MAX_STATE + 1)
            if len(data) > _MAX_STATE:
                raise HostError(f"the virtual machine's device state is larger than {_MAX_STATE >> 20} MiB")
            target.write(data)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, which *manifest* is but for the files, and give the image its name. Raises OSError."""
        told: dict[str, list[Any]] = {}
        for name in _FILES:
            path = f"{self.path}/{name}"
            told[name] = [os.stat(path).st_size, self._hashes.get(name) or memory.digest(path)]
        with open(f"{self.path}/{MANIFEST}", "w", opener=files.private) as file:
            json.dump(manifest._replace(files=told)._asdict(), file)
        with open(f"{self.path}/{_CRIUS}", "w", opener=files.private) as file:
            file.write(f"a checkpoint of runvm, not of CRIU: see {MANIFEST}\n")
        for name in (*_FILES, MANIFEST):
            _sync(f"{self.path}/{name}")
        _sync(self.path)
        try:
            os.rename(self.path, self.directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            syscalls.exchange(self.path, self.directory)  # the older image goes by __exit__
        _sync(self._parent)

    def _check_place(self) -> None:
        """What is to be replaced is an image, or nothing."""
        try:
            found = os.listdir(self.directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError(f"{self.directory}: {reason(error)}") from error
        if found and MANIFEST not in found:
            raise HostError(f"{self.directory} has files that are no checkpoint's", do="name an empty or new directory")

    def _sweep(self) -> None:
        """Take away what commands that were killed have left, of any image: engines make up a new name for each. Those
        at work hold a lock."""
        for name in os.listdir(self._parent):
            image, _, pid = name.rpartition(_UNFINISHED)
            if not (image.startswith(".") and pid.isdecimal()):
                continue
            path = f"{self._parent}/{name}"
            with suppress(OSError):  # another's, as in /tmp, or gone meanwhile
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    if os.fstat(fd).st_uid == os.geteuid():
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        _remove(path)
                finally:
                    os.close(fd)


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(path: str) -> None:
    files.remove_tree(path)
