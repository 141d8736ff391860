"""The host's file systems in the share, kept mounted while a container uses them; for agent.runtime.

virtiofs mounts each where a path first crosses into it, in the mount namespace of whoever goes there. If that is a
container's, the mount goes with the container's last process, and Linux 6.1 finds inodes that are still being
released: "VFS: Busy inodes after unmount", which kernels with BUG_ON_DATA_CORRUPTION (Debian's) take for corruption.
The process then never ends. So the agent goes there first, and leaves when the container's processes have. What several
containers have of one source is one mount for all of them, so that they share its FIFOs, sockets and locks.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.linux import syscalls

if TYPE_CHECKING:
    from runvm.protocol.messages import Json


def hold(spec: Json, share: str) -> set[str]:
    """Have the file systems mounted that the root and the mounts of *spec* are on, where they are below *share*; the
    paths for release()."""
    sources = [spec["root"]["path"], *(mount.get("source", "") for mount in spec.get("mounts", ()))]
    held = set()
    for path in {os.path.realpath(source) for source in sources if source.startswith(f"{share}/")}:
        if path.startswith(f"{share}/"):
            with suppress(OSError):  # a file, which is nobody's mount point
                os.stat(f"{path}/.")
                held.add(path)
    return held


def release(paths: set[str]) -> None:
    """Unmount them; one that is on the share's own file system is no mount."""
    for path in paths:
        with suppress(OSError):
            syscalls.unmount(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
