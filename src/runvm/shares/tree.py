"""The directory that a VM's virtiofsd serves: binds of what its containers need, in the supervisor's own mount
namespace.

Nothing of it shows in the host's mount table, and it goes when the supervisor goes. The tree is a shared mount, so that
virtiofsd, in a namespace below, sees binds that come later; what it binds stay slaves of the host, so that the host's
later mounts come through as well.
"""

from __future__ import annotations

import os
import stat

from runvm.errors import HostError
from runvm.linux import syscalls


class Tree:
    """The served directory *path*."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(path, mode=0o700, exist_ok=True)
        syscalls.mount("runvm-share", path, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=16m")
        syscalls.mount("none", path, "", syscalls.MS_SHARED)

    def add(self, container: str, name: str, source: str | int, *, recursive: bool, read_only: bool = False) -> str:
        """Show *source* (a path, or a descriptor opened with O_PATH) as *name* of *container*; the path in the share.

        Raises: HostError where the source is missing or can't be bound.
        """
        path = f"/proc/self/fd/{source}" if isinstance(source, int) else source
        try:
            mode = os.stat(path).st_mode
            target = f"{self.path}/{container}/{name}"
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            if stat.S_ISDIR(mode):
                os.mkdir(target, 0o755)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            syscalls.mount(path, target, "", syscalls.MS_BIND | (syscalls.MS_REC if recursive else 0))
            if read_only:
                syscalls.mount("none", target, "", syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY)
        except OSError as error:
            raise HostError(f"share {source} with the virtual machine: {error.strerror}") from error
        return f"{container}/{name}"

    def remove(self, container: str) -> None:
        """Take away everything of *container*; what is still busy goes when its last user does."""
        directory = f"{self.path}/{container}"
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        for name in names:
            path = f"{directory}/{name}"
            try:
                syscalls.unmount(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
            except OSError:
                pass  # not mounted: a create that failed half-way
            os.rmdir(path) if os.path.isdir(path) else os.unlink(path)
        os.rmdir(directory)
