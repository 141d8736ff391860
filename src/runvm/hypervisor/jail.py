"""The hypervisor's confinement: a root of its own with nothing of the host but programs, no network, a user of its own.

Runs in a forked child, between fork and exec. What the hypervisor uses besides comes to it as descriptors.
"""

from __future__ import annotations

import errno
import os

from runvm.linux import syscalls, userns

_BASE_ID = 0x72760000
"""The first of the user ids that hypervisors run as: 4 Mi ids (one a pid), beyond what distributions hand out."""
_FLAGS = syscalls.MS_NOSUID
_RDONLY = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV


def user_id(devices: list[str]) -> int:
    """A user and group id that no other hypervisor of this host has: from this process's pid, which no other living
    process has.

    In a user namespace it is one that was mapped there, or 0 where none is to spare, or one of *devices* is the user's
    by their groups.
    """
    if not userns.limited():
        return _BASE_ID + os.getpid()
    if all(os.stat(path).st_mode & 0o006 == 0o006 for path in devices):
        return userns.spare_id(os.getpid())
    return 0


def prepare(directory: str) -> None:
    """Mount the empty root (a tmpfs in the caller's own mount namespace) that enter() fills."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    syscalls.mount("jail", directory, "tmpfs", _FLAGS, "mode=755,size=100%")


def allow_huge_pages(directory: str, allowed: bool) -> bool:
    """Whether files in the root of prepare() get huge pages for what is written from now on (tmpfs(5)): not with a
    kernel that has none."""
    huge = "huge=always" if allowed else "huge=never"
    try:
        syscalls.mount("jail", directory, "tmpfs", _FLAGS | syscalls.MS_REMOUNT, huge)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return allowed


def enter(directory: str, *, read_only: list[str], devices: list[str], uid: int) -> None:
    """Make *directory* (of prepare()) this process's root and *uid* its user.

    *read_only* are host paths shown at the same place; *devices* are device nodes, made anew and owned by *uid*, or in
    a user namespace, where nobody can make any, the host's.
    """
    limited = userns.limited()
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS)
    syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    for path in read_only:
        target = directory + path
        if os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        syscalls.mount(path, target, "", syscalls.MS_BIND)
        syscalls.mount("none", target, "", _RDONLY)
    for link in ("lib", "lib64", "bin", "sbin"):
        # a merged /usr, as Debian has had it since 12: the dynamic linker's name starts with /lib64
        if os.path.islink(f"/{link}") and not os.path.lexists(f"{directory}/{link}"):
            os.symlink(os.readlink(f"/{link}"), f"{directory}/{link}")
    for path in devices:
        os.makedirs(os.path.dirname(directory + path), exist_ok=True)
        if limited:
            os.close(os.open(directory + path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            syscalls.mount(path, directory + path, "", syscalls.MS_BIND)
        else:
            os.mknod(directory + path, 0o600 | 0o020000, os.stat(path).st_rdev)
            os.chown(directory + path, uid, uid)
    os.chdir(directory)
    syscalls.pivot_root(".", ".")
    syscalls.unmount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    else:
        # a user's own id, with none of the powers that it has in the user namespace
        syscalls.prctl(syscalls.PR_SET_SECUREBITS, syscalls.SECBIT_NOROOT | syscalls.SECBIT_NOROOT_LOCKED)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
