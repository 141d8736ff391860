"""The directory that a VM's virtiofsd serves: binds of what its containers need, in the supervisor's own mount
namespace.

Nothing of it shows in the host's mount table, and it goes when the supervisor goes. The tree is a shared mount, so that
virtiofsd, in a namespace below, sees binds that come later; what it binds stay slaves of the host, so that the host's
later mounts come through as well.

What several containers of the VM have of one source is one mount, below `shared`, that their names lead to by symbolic
links: for the guest's kernel two mounts are two file systems, and a FIFO, socket or lock of one is none in the other.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from runvm.errors import HostError, words
from runvm.linux import mounts, syscalls

_RESTRICTIONS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC  # the same numbers in statvfs(3)
ROOT = "rootfs"
"""The name of a container's root."""


class Share(NamedTuple):
    """A directory or file of the host that the guest gets under a name, or an overlay (its options) of such."""

    source: str
    recursive: bool
    read_only: bool
    overlay: str = ""


class _Identity(NamedTuple):
    """What makes two sources one: the directory or file, the flags of the mount that it is seen through, and how it is
    shared."""

    device: int
    inode: int
    flags: int
    recursive: bool
    read_only: bool


class _Shared(NamedTuple):
    """A mount below `shared`, and the containers that use it."""

    path: str
    users: set[str]


class Tree:
    """The served directory *path*."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._scratch = f"{path}.scratch"
        for directory in (path, self._scratch):
            os.makedirs(directory, mode=0o700, exist_ok=True)
        syscalls.mount("runvm-share", path, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=755,size=16m")
        syscalls.mount("none", path, "", syscalls.MS_SHARED)
        for name in ("containers", "shared"):
            os.mkdir(f"{path}/{name}", 0o755)
        self._shared: dict[_Identity, _Shared] = {}
        self._number = 0

    def show_modules(self, source: str) -> None:
        """Show the guest's tree of kernel modules, read-only. Raises HostError."""
        try:
            self._attach(syscalls.clone_tree(source, recursive=False), f"{self.path}/modules", read_only=True)
        except OSError as error:
            raise HostError(f"share {source} with the virtual machine: {words(error)}") from error

    def add(self, container: str, shares: dict[str, Share], pid: int) -> None:
        """Show each of *shares* by its name, as process *pid* sees the sources now.

        Raises: HostError where a source is missing or can't be bound.
        """
        os.mkdir(f"{self.path}/containers/{container}", 0o755)
        try:
            sources = [mounts.Source(share.source, share.recursive, share.overlay) for share in shares.values()]
            trees = mounts.clone_from(pid, sources, scratch=self._scratch)
            for (name, share), tree in zip(shares.items(), trees, strict=True):
                self._show(container, name, share, tree)
        except OSError as error:
            raise HostError(f"share the container's files with the virtual machine: {words(error)}") from error

    def _show(self, container: str, name: str, share: Share, tree: int) -> None:
        """Mount *tree* under its name, or link the name to where it is mounted already; *tree* is closed."""
        target = f"{self.path}/containers/{container}/{name}"
        if name == ROOT or share.overlay:
            self._attach(tree, target, read_only=share.read_only)  # nobody else's
            return
        found = os.fstat(tree)
        flags = os.fstatvfs(tree).f_flag
        identity = _Identity(found.st_dev, found.st_ino, flags, share.recursive, share.read_only)
        shared = self._shared.get(identity)
        if shared is None:
            self._number += 1
            shared = _Shared(f"{self.path}/shared/{self._number}", set())
            self._attach(tree, shared.path, read_only=share.read_only)
            self._shared[identity] = shared
        else:
            os.close(tree)
        shared.users.add(container)
        os.symlink(f"../../shared/{os.path.basename(shared.path)}", target)

    def _attach(self, tree: int, target: str, *, read_only: bool) -> None:
        """Mount *tree*, a descriptor of mounts.clone_from() that is closed here."""
        try:
            if stat.S_ISDIR(os.fstat(tree).st_mode):
                os.mkdir(target, 0o755)
            else:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
            # nodes that the guest makes are devices of its own kernel: the daemon is to open none of the host's
            syscalls.forbid_devices(tree)
            syscalls.attach_tree(tree, target)
        finally:
            os.close(tree)
        if read_only:
            flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | syscalls.MS_NODEV
            # in a user namespace the restrictions that a mount has can't be taken off it
            syscalls.mount("none", target, "", flags | os.statvfs(target).f_flag & _RESTRICTIONS)

    def remove(self, container: str) -> None:
        """Take away everything of *container*; what is still busy goes when its last user does."""
        directory = f"{self.path}/containers/{container}"
        try:
            names = os.listdir(directory)
        except FileNotFoundError:
            return
        for name in names:
            self._detach(f"{directory}/{name}")
        os.rmdir(directory)
        for identity, shared in list(self._shared.items()):
            shared.users.discard(container)
            if not shared.users:
                self._detach(shared.path)
                del self._shared[identity]

    def _detach(self, path: str) -> None:
        try:
            syscalls.unmount(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError:
            pass  # not mounted: a link, or a create that failed half-way
        os.rmdir(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
