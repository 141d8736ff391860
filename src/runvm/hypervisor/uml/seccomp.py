"""What User Mode Linux may ask of the host: a seccomp filter over its kernel and all of the guest's programs.

The kernel is a process, and each program in the guest is another one that it traces; none of a program's system calls
reaches the host. So the host's kernel is asked only for what the guest's kernel itself needs: memory, signals, timers,
its children, and reads and writes of the descriptors that it was given. A few calls more are needed until it has
started (exec itself, to connect to the share): those are put to the launcher (SECCOMP_RET_USER_NOTIF), which lets them
pass until the share is set up and then closes the notification's descriptor. From then on they fail with ENOSYS, for
good. All others fail with EPERM at any time.

Sources: seccomp(2), seccomp_unotify(2), linux/seccomp.h, linux/bpf_common.h; the numbers are x86-64's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import struct

_ALLOWED = {
    # what a running guest does most comes first
    "ptrace": 101, "wait4": 61, "read": 0, "write": 1, "epoll_wait": 232, "timer_settime": 223, "rt_sigreturn": 15,
    "rt_sigprocmask": 14, "clock_gettime": 228, "mmap": 9, "munmap": 11, "mprotect": 10, "recvmmsg": 299,
    "sendmmsg": 307, "sendmsg": 46, "recvmsg": 47, "epoll_ctl": 233, "tgkill": 234, "getpid": 39,
    "gettid": 186, "rt_sigaction": 13, "sigaltstack": 131, "poll": 7, "ppoll": 271, "clock_nanosleep": 230,
    "nanosleep": 35, "pause": 34, "fallocate": 285, "madvise": 28, "fcntl": 72, "close": 3, "lseek": 8,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "ftruncate": 77, "fstat": 5, "newfstatat": 262,
    "openat": 257, "open": 2, "fsync": 74, "pipe": 22, "pipe2": 293, "eventfd2": 290, "epoll_create": 213,
    "epoll_create1": 291, "timer_create": 222, "timer_delete": 226, "timer_gettime": 224, "setitimer": 38,
    "brk": 12, "futex": 202, "getppid": 110, "set_tid_address": 218, "set_robust_list": 273, "rseq": 334,
    "arch_prctl": 158, "exit": 60, "exit_group": 231, "getrandom": 318, "prlimit64": 302, "uname": 63,
    "ioctl": 16, "modify_ldt": 154, "set_thread_area": 205, "sched_yield": 24, "restart_syscall": 219, "umask": 95,
    "setsid": 112, "getrusage": 98, "rt_sigpending": 127, "rt_sigsuspend": 130, "sched_getaffinity": 204,
    "sched_setaffinity": 203, "getcpu": 309,
}  # fmt: skip
_WHILE_STARTING = {
    "execve": 59, "socket": 41, "socketpair": 53, "connect": 42, "access": 21, "statfs": 137, "mkdir": 83, "unlink": 87,
    "readlink": 89,
    "prctl": 157, "getcwd": 79, "stat": 4, "lstat": 6, "getdents64": 217, "rmdir": 84,
}  # fmt: skip
# After a panic User Mode Linux sends itself SIGABRT until that ends it or fails. It is the first process of its PID
# namespace, whom a signal of its own doesn't end: it would go on forever
_KILL_CALL = 62
_CLONE = 56
_CLONE_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET

_ARCH_X86_64 = 0xC000003E
_X32 = 0x40000000
_KILL, _ERRNO, _NOTIFY, _ALLOW = 0x80000000, 0x00050000, 0x7FC00000, 0x7FFF0000

# linux/bpf_common.h: load a word of seccomp_data, compare, return
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24

_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER = 317, 1, 8
_NOTIF_RECV, _NOTIF_SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_NOTIFICATION_BYTES = 80
_RESPONSE = struct.Struct("=QqiI")


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p)]


def program() -> bytes:
    """The filter as classic BPF: the architecture, then each system call by number, else EPERM."""
    instructions = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _KILL),
    ]
    for numbers, verdict in ((_ALLOWED.values(), _ALLOW), (_WHILE_STARTING.values(), _NOTIFY)):
        for number in numbers:
            instructions += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, verdict)]
    instructions += [
        (_EQUAL, 0, 4, _KILL_CALL),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_EQUAL, 1, 0, signal.SIGABRT),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_EQUAL, 0, 3, _CLONE),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 1, 0, _CLONE_NEW_NAMESPACES),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


def install() -> int:
    """Put this process under the filter, and all that it becomes or forks; the descriptor of its notifications.

    The caller has no_new_privs set. Raises OSError.
    """
    code = program()
    libc = ctypes.CDLL(None, use_errno=True)
    filter_ = _Program(len(code) // 8, code)
    fd = int(libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, ctypes.byref(filter_)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"install the seccomp filter: {os.strerror(number)}")
    return fd


def let_pass(listener: int) -> None:
    """Let the call that *listener* tells of go on. One that was given up meanwhile is no error. Raises OSError."""
    notification = bytearray(_NOTIFICATION_BYTES)
    try:
        fcntl.ioctl(listener, _NOTIF_RECV, notification)
        (identifier,) = struct.unpack_from("=Q", notification)
        fcntl.ioctl(listener, _NOTIF_SEND, _RESPONSE.pack(identifier, 0, 0, _CONTINUE))
    except FileNotFoundError:
        return
