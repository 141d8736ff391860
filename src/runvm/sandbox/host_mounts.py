"""The host's mounts in a supervisor's own mount namespace: those that it doesn't need are let go.

A namespace starts as a copy of the host's. What the host unmounts goes in the copy as well where the mount is shared; a
private one would stay, and keep its device busy (a USB disk, a loop device, another container's overlay) until the VM
ends.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from runvm.linux import mounts, syscalls
from runvm.log import log

if TYPE_CHECKING:
    from collections.abc import Iterable

    from runvm.sandbox.plan import VmPlan

_KEPT = ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/bin", "/sbin", "/nix", "/gnu")
"""With what is mounted below: the kernel's own, and programs."""
_PASSED = ("/run", "/tmp", "/var/tmp")
"""Without that."""


def let_go(plan: VmPlan, cgroup_procs: Iterable[str]) -> None:
    """Detach all private mounts but those that the supervisor of *plan* and its children need. What can't be is left:
    nothing depends on it."""
    kept = [*_KEPT, plan.sandbox.directory, *cgroup_procs]
    kept += [plan.restore.directory] if plan.restore is not None else []
    kept += [sys.prefix, sys.base_prefix, *sys.path, *os.environ.get("PATH", "").split(":")]
    kept += [value for value in plan.config if isinstance(value, str)]  # its directories, programs and kernels
    detach(kept, _PASSED)


def detach(kept: Iterable[str], passed: Iterable[str]) -> None:
    """Detach all private mounts but those that the paths *kept* and *passed* are on, and those below the paths
    *kept*."""
    whole = {path for each in kept if each.startswith("/") for path in (os.path.normpath(each), os.path.realpath(each))}
    way = set[str]()
    for path in (*whole, *passed):
        while path not in way:
            way.add(path)
            path = os.path.dirname(path)
    below = tuple(f"{path}/" for path in whole if path.strip("/"))
    gone = 0
    last = "\0"
    try:
        for point in mounts.private():
            # what is mounted below one goes with it
            if point in way or point.startswith((*below, last)):
                continue
            try:
                syscalls.unmount(point, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
            except OSError as error:
                log.debug(f"supervisor: {error}")
                continue
            gone += 1
            last = f"{point}/"
    except OSError as error:
        log.debug(f"supervisor: the host's mounts: {error}")
    log.debug(f"supervisor: let go of {gone} mounts of the host's")
