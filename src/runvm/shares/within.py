"""Sources that lie within others: for shares.tree, which then serves one mount instead of two.

The guest's kernel takes each mount of the share for a file system of its own, and virtiofsd a file that is reached by
two mounts for two files. One host file must be one file in the guest, with one page cache and one lock, whether it is
reached as `volume/file` or as itself. So of two sources on one file system, one within the other, only the outer is
mounted, and the inner is a path in it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runvm.linux import syscalls

if TYPE_CHECKING:
    from runvm.linux.mounts import Mounted

_OF_A_MOUNT = frozenset(("nosuid", "noexec"))


def places(table: list[Mounted], new: set[str], read_only: set[str], hosts: set[str]) -> dict[str, tuple[str, str]]:
    """For each of the mount points *new* that another mount contains: the mount point in *hosts* that this one is at or
    below, and the path of the same file there.

    *read_only* are those of *new* that the guest will mount read-only itself, whatever they are mounted as here.
    *new* are in *hosts* as well: one that is within another is a host no more.
    """
    tops = {point: mount for mount in table if (point := mount.point) in new}
    found: dict[str, tuple[str, str]] = {}
    # the outermost first, and of two that are the same the one that can be written
    for inner in sorted(tops.values(), key=lambda mount: (len(mount.root), mount.read_only, mount.point)):
        for outer in table:
            host = _host(outer.point, hosts - found.keys() - {inner.point})
            if host and _contains(outer, inner, may_be_written=inner.point in read_only):
                path = f"{outer.point}/{inner.root[len(outer.root) :].strip('/')}".rstrip("/")
                if _same_below(table, path, inner.point) and _is(outer.point, path, inner.point):
                    found[inner.point] = (host, path)
                    break
    return found


def _host(point: str, hosts: set[str]) -> str:
    return next((host for host in hosts if host and f"{point}/".startswith(f"{host}/")), "")


def _contains(outer: Mounted, inner: Mounted, *, may_be_written: bool) -> bool:
    """Whether *inner* is a path of *outer*'s file system, and with no fewer rights and no more there."""
    if outer.device != inner.device or not f"{inner.root}/".startswith(f"{outer.root.rstrip('/')}/"):
        return False
    if outer.options & _OF_A_MOUNT != inner.options & _OF_A_MOUNT:
        return False
    return outer.read_only == inner.read_only or (inner.read_only and may_be_written)


def _same_below(table: list[Mounted], first: str, second: str) -> bool:
    """Whether the same is mounted below both paths."""

    def below(top: str) -> set[tuple[str, str, str, bool]]:
        return {
            (mount.point[len(top) :], mount.device, mount.root, mount.read_only)
            for mount in table
            if mount.point.startswith(f"{top}/")
        }

    return below(first) == below(second)


def _is(top: str, path: str, other: str) -> bool:
    """Whether *path*, reached from *top* by no symlink and no further mount, is the file that *other* is."""
    directory = os.open(top, os.O_PATH | os.O_CLOEXEC)
    try:
        if path != top:
            try:
                inner = syscalls.open_beneath(
                    directory, path[len(top) + 1 :], os.O_PATH | os.O_NOFOLLOW, one_mount=True
                )
            except OSError:
                return False  # covered, renamed or removed meanwhile
            os.close(directory)
            directory = inner
        return os.path.samestat(os.fstat(directory), os.lstat(other))
    finally:
        os.close(directory)
