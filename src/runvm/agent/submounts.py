"""The host's file systems in the share, kept mounted while a container uses them; for agent.runtime.

virtiofs mounts each where a path first crosses into it, in the mount namespace of whoever goes there. If that is a
container's, the mount goes with the container's last process, and Linux 6.1 finds inodes that are still being
released: "VFS: Busy inodes after unmount", which kernels with BUG_ON_DATA_CORRUPTION (Debian's) take for corruption.
The process then never ends. So the agent goes there first, and leaves when the container's processes have. What several
containers have of one source is one mount for all of them, so that they share its FIFOs, sockets and locks. What is
mounted below a source is visited as well: the first to go there through a read-only mount would make it read-only, and
each container would have it mounted for itself. There it gets the flags that it has on the host. A process of its own
does that, which isn't waited for where a file system of the host's doesn't answer.

A tmpfs that engines make for the /dev/shm of one container or several is one of the guest's, kept in the same way: on
the host it would be reached as a file is, and what a program writes to mapped memory beyond its size would be lost.

Where a source is a path within another one's mount, other containers may write there, and put a symlink in its way: it
is opened once, by no symlink, and bound where nobody else can change the path.
"""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.linux import files, patience, syscalls
from runvm.protocol import names

if TYPE_CHECKING:
    from runvm.protocol.messages import Json

_BOUND = "/run/bound"
"""Where sources within others are bound: each container's in a directory of its own."""
_TMPFS = "/run/shm"
"""Where the guest's own in place of engines' are mounted."""
_OF_TMPFS = ("size", "mode", "uid", "gid")
_MAX = 1 << 20
"""Bytes of the list of what is mounted below sources."""
_SECONDS = 2.0
"""How long one of the host's file systems may take to be visited."""
_FLAGS = {
    "ro": syscalls.ATTR_RDONLY,
    "nosuid": syscalls.ATTR_NOSUID,
    "nodev": syscalls.ATTR_NODEV,
    "noexec": syscalls.ATTR_NOEXEC,
}


def hold(spec: Json, share: str) -> set[str]:
    """Have the file systems mounted that the root and the mounts of *spec* are on, where they are below *share*; the
    paths for release(). The mounts' sources are changed where they are bound elsewhere. Raises OSError."""
    held: set[str] = set()
    own = os.path.dirname(spec["root"]["path"])
    if os.path.exists(f"{own}/{names.SUBMOUNTS}"):
        below = [*json.loads(files.read(f"{own}/{names.SUBMOUNTS}", _MAX)).items()]
        patience.visit(below, lambda each: _restrict(f"{share}/{each[0]}/.", each[1]), seconds=_SECONDS)
    _visit(spec["root"]["path"], held)
    for mount in spec.get("mounts", ()):
        source = mount.get("source", "")
        if mount.get("type") == names.SHM:
            held.add(_make_tmpfs(mount))
        if not source.startswith(f"{share}/"):
            continue
        place = os.path.normpath(f"{own}/{os.readlink(source)}") if os.path.islink(source) else source
        if place.removeprefix(share).count("/") <= 2 or place == source:
            _visit(place, held)
        else:
            top, inner = _split(place, share)
            _visit(top, held)
            mount["source"] = _bind(top, inner, f"{_BOUND}/{os.path.basename(own)}/{os.path.basename(source)}")
            held.add(mount["source"])
    return held


def _make_tmpfs(mount: Json) -> str:
    """Have *mount* be a bind of the tmpfs that its source names, which is made if no other container has it: where."""
    path = f"{_TMPFS}/{mount['source']}"
    own = [option for option in mount["options"] if option.partition("=")[0] in _OF_TMPFS]
    if not os.path.isdir(path):
        os.makedirs(path)
        syscalls.mount("shm", path, "tmpfs", 0, ",".join(own))
    mount.update(type="bind", source=path, options=[option for option in mount["options"] if option not in own])
    return path


def _visit(path: str, held: set[str]) -> None:
    with suppress(OSError):  # a file, which is nobody's mount point
        os.stat(f"{path}/.")
        held.add(path)


def _restrict(path: str, flags: list[str]) -> None:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        attributes = sum(_FLAGS[flag] for flag in {*flags})
        if attributes:
            syscalls.set_attributes(fd, attributes, recursive=False)
    finally:
        os.close(fd)


def _split(place: str, share: str) -> tuple[str, str]:
    """The mount that *place* is in, which is `shared/N` or `containers/NAME/rootfs`, and the rest of it."""
    parts = place.removeprefix(f"{share}/").split("/")
    depth = 2 if parts[0] == "shared" else 3
    return "/".join((share, *parts[:depth])), "/".join(parts[depth:])


def _bind(top: str, inner: str, target: str) -> str:
    """Bind what is at *inner* below *top* at *target*, which it makes, and returns."""
    directory = os.open(top, os.O_PATH | os.O_CLOEXEC)
    try:
        try:
            fd = syscalls.open_beneath(directory, inner, os.O_PATH | os.O_DIRECTORY)  # enters what is mounted there
        except NotADirectoryError:
            fd = syscalls.open_beneath(directory, inner, os.O_PATH | os.O_NOFOLLOW)
    finally:
        os.close(directory)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            os.mkdir(target)
        else:
            os.mknod(target)
        syscalls.mount(f"/proc/self/fd/{fd}", target, "", syscalls.MS_BIND | syscalls.MS_REC)
    finally:
        os.close(fd)
    return target


def release(paths: set[str]) -> None:
    """Unmount them; one that is on the share's own file system is no mount."""
    for path in paths:
        with suppress(OSError):
            syscalls.unmount(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        if path.startswith((f"{_BOUND}/", f"{_TMPFS}/")):
            with suppress(OSError):
                os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
            with suppress(OSError):  # that of another is there still
                os.rmdir(os.path.dirname(path))
