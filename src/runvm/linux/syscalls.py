"""Linux calls that Python 3.11 lacks: a function a call, OSError with the path or the purpose.

Numbers and meanings are from the man pages named in each docstring; libc is the process's own, so no library is
searched for.
"""

from __future__ import annotations

import ctypes
import errno
import os

# sched.h, clone(2)
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# sys/mount.h, mount(2)
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

# asm-generic/resource.h
_RLIMIT_CPU, _RLIMIT_FSIZE, _RLIMIT_DATA, _RLIMIT_NOFILE, _RLIMIT_AS = 0, 1, 2, 7, 9
_RLIM_INFINITY = (1 << 64) - 1

# sys/prctl.h, prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# linux/securebits.h, capabilities(7)
SECBIT_NOROOT = 1
SECBIT_NOROOT_LOCKED = 2
SECBIT_NO_SETUID_FIXUP = 4

# sys/personality.h, personality(2)
ADDR_NO_RANDOMIZE = 0x0040000

# linux/mount.h, open_tree(2), move_mount(2)
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_AT_RECURSIVE = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
# linux/mount.h, mount_setattr(2)
ATTR_RDONLY = 1
ATTR_NOSUID = 2
ATTR_NODEV = 4
ATTR_NOEXEC = 8

_PROC_SUPER_MAGIC = 0x9FA0  # linux/magic.h

# linux/reboot.h, reboot(2)
RB_POWER_OFF = 0x4321FEDC

# linux/falloc.h, fallocate(2)
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

# linux/openat2.h, openat2(2)
_SYS_OPENAT2 = 437
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# asm/unistd.h, by `uname -m`. Numbers from 424 on, of Linux 5.1, are the same on all architectures
_CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def number(numbers: dict[str, int]) -> int:
    """Which of a system call's *numbers* is this machine's. Raises OSError where none is."""
    machine = os.uname().machine
    if machine not in numbers:
        raise OSError(errno.ENOSYS, f"the number of a system call isn't known for {machine}")
    return numbers[machine]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            fstype.encode() or None,
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        f"mount {fstype or source} at {target}",
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), f"unmount {target}")


def clone_tree(path: str, *, recursive: bool) -> int:
    """A descriptor of a mount that is nowhere yet, a bind of *path*: open_tree(2) with OPEN_TREE_CLONE. Linux 5.2."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _check(int(_libc.syscall(_SYS_OPEN_TREE, -100, os.fsencode(path), ctypes.c_uint(flags))), f"bind {path}")


def is_procfs(path: str) -> bool:
    """Whether *path* lies on a proc file system: statfs(2), whose first field says so. Raises OSError."""
    found = (ctypes.c_long * 32)()
    _check(_libc.statfs(os.fsencode(path), found), f"stat {path}")
    return found[0] == _PROC_SUPER_MAGIC


def set_attributes(tree: int, attributes: int, *, recursive: bool, propagation: int = 0) -> None:
    """Give the mount of *tree* (of clone_tree()) the ATTR_* *attributes* before anybody can reach it, with *recursive*
    the mounts below it as well; *propagation* is MS_PRIVATE or the like, or 0 for as it is: mount_setattr(2), Linux
    5.12."""
    given = (ctypes.c_uint64 * 4)(attributes, 0, propagation, 0)
    flags = ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0))
    size = ctypes.c_size_t(ctypes.sizeof(given))
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", flags, given, size), "set the attributes of a bind")


def attach_tree(tree: int, target: str | int) -> None:
    """Mount what clone_tree() gave at *target*, a path or an O_PATH descriptor, in the mount namespace that this
    process is in now: move_mount(2)."""
    if isinstance(target, int):
        flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
        _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", target, b"", flags), "bind")
        return
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
    _check(_libc.syscall(_SYS_MOVE_MOUNT, tree, b"", -100, os.fsencode(target), flags), f"bind at {target}")


def exchange(one: str, other: str) -> None:
    """Have two paths change places: renameat2(2) with RENAME_EXCHANGE."""
    _check(
        _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE),
        f"exchange {one} and {other}",
    )


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the storage of a part of a file back, which reads as zeros then: fallocate(2)."""
    flags = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    _check(_libc.fallocate(fd, flags, ctypes.c_int64(offset), ctypes.c_int64(length)), "punch a hole")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def clone(flags: int) -> int:
    """clone(2) as fork(2) with *flags*: 0 in the child; in the parent its pid, or the error's number times -1.

    The interpreter isn't told, see process.fork_in_pid_namespace().
    """
    pid = int(ctypes.PyDLL(None, use_errno=True).syscall(number(_CLONE), ctypes.c_ulong(flags), 0, 0, 0, 0))
    return pid if pid >= 0 else -ctypes.get_errno()


def setns(fd: int, flags: int = 0) -> None:
    """setns(2)."""
    _check(_libc.setns(fd, flags), "setns")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2); glibc has no wrapper."""
    _check(_libc.syscall(number(_PIVOT_ROOT), os.fsencode(new), os.fsencode(old)), f"pivot_root {new}")


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def set_personality(flags: int) -> None:
    """personality(2)."""
    _check(_libc.personality(ctypes.c_ulong(flags)), "personality")


def set_name(name: str) -> None:
    """The name of this thread in /proc/self/comm (at most 15 bytes)."""
    _check(_libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0), "prctl PR_SET_NAME")


def end_writing(fd: int) -> None:
    """shutdown(2) of a socket's writing side; of one whose peer has gone, too."""
    _libc.shutdown(fd, 1)


def reboot(command: int) -> None:
    """reboot(2)."""
    _check(_libc.reboot(ctypes.c_int(command - (1 << 32) if command >= 1 << 31 else command)), "reboot")


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_in_root(root_fd: int, path: str, flags: int) -> int:
    """Open *path* as a process whose root is *root_fd* would: `..` and symlinks can't leave it (openat2(2),
    RESOLVE_IN_ROOT)."""
    return _openat2(root_fd, path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)


def open_beneath(directory_fd: int, path: str, flags: int, *, one_mount: bool = False) -> int:
    """Open *path* below *directory_fd* where no part of it is a symlink, nor, with *one_mount*, a mount point
    (openat2(2), RESOLVE_BENEATH)."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | (RESOLVE_NO_XDEV if one_mount else 0)
    return _openat2(directory_fd, path, flags, resolve)


def _openat2(directory_fd: int, path: str, flags: int, resolve: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    return _check(
        int(_libc.syscall(_SYS_OPENAT2, directory_fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))),
        f"open {path} below the root",
    )


def raise_limits() -> None:
    """Let this process, and those that it makes, have what a virtual machine needs, whatever its caller may have:
    processor time, memory and files of any length, and as many descriptors as the hard limit allows (setrlimit(2)). A
    container's own limits hold in the guest. The resource module would take 2 ms to load. Raises OSError."""
    limit = (ctypes.c_ulong * 2)()
    for kind in (_RLIMIT_CPU, _RLIMIT_FSIZE, _RLIMIT_DATA, _RLIMIT_AS):
        limit[0] = limit[1] = _RLIM_INFINITY
        if _libc.setrlimit(kind, limit):  # a user's hard limit stays
            _raise_to_hard(kind, limit)
    _raise_to_hard(_RLIMIT_NOFILE, limit)


def _raise_to_hard(kind: int, limit: ctypes.Array[ctypes.c_ulong]) -> None:
    _check(_libc.getrlimit(kind, limit), "read a limit of resources")
    limit[0] = limit[1]
    _check(_libc.setrlimit(kind, limit), "raise a limit of resources")


def set_title(title: str) -> None:
    """What ps shows of this process: *title* written over argv and, where that is short, over the environment after it.

    The kernel takes a title that runs past the old argv from there (proc(5), /proc/pid/cmdline). prctl's
    PR_SET_MM_ARG_START would need CAP_SYS_RESOURCE. os.environ has its own copy of the strings, getenv(3) hasn't: for
    processes that exec nothing after.
    """
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rsplit(b")", 1)[1].split()
    start, end, env_end = int(fields[45]), int(fields[46]), int(fields[48])
    if not start < end <= env_end:
        return
    space = env_end - start
    raw = title.encode(errors="replace")[: space - 1]
    ctypes.memset(start, 0, space)
    ctypes.memmove(start, raw + b"\0", len(raw) + 1)
    if len(raw) < end - start:
        # a last byte of argv that isn't NUL tells the kernel that a title stands there
        ctypes.memmove(end - 1, b"x", 1)
