"""The /dev/shm that engines make: Podman and containerd's CRI for each container or pod, Docker for a shareable one.

It is a tmpfs on the host, bound into each container that shares the IPC namespace. All of these are in one virtual
machine, so it is a tmpfs of the guest's instead (agent.submounts): shared memory stays memory, is counted where it is
used, and ends at its size by SIGBUS.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from runvm.linux import mounts
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from runvm.oci.spec import Mount

_PLACE = "/dev/shm"
_SOURCE = "shm"
"""What all of these engines give mount(2) as the source, which a tmpfs of the host's own hasn't."""


class Shm(NamedTuple):
    """What the guest makes instead: containers with the same *name* have the same; *options* of the file system."""

    name: str
    options: tuple[str, ...]


def of_engine(mount: Mount) -> Shm | None:
    """What the guest is to have for the bind *mount*; None where that isn't an engine's: a user's directory, or the
    host's own /dev/shm, which `--ipc host` binds."""
    if os.path.normpath(mount.destination) != _PLACE:
        return None
    try:
        source = os.path.realpath(mount.source)
        found = mounts.file_system(source)
        if found is None or (found.kind, found.source) != ("tmpfs", _SOURCE):
            return None
        status, size = os.stat(source), os.statvfs(source)
        if os.path.exists(_PLACE) and os.stat(_PLACE).st_dev == status.st_dev:
            return None
    except OSError:  # who binds it says so
        return None
    # the number may be another's later: then its path is another, or all containers that had it have gone
    name = f"{status.st_dev:x}-{os.fsencode(source).hex()[-200:]}"
    options = {"size": size.f_blocks * size.f_frsize, "uid": status.st_uid, "gid": status.st_gid}
    mode = stat.S_IMODE(status.st_mode)
    return Shm(name, (f"mode={mode:o}", *(f"{key}={value}" for key, value in options.items())))
