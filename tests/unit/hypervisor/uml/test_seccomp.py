"""The filter around User Mode Linux: its program, run here by a small interpreter, and by the kernel itself."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

from runvm.hypervisor.uml import seccomp
from runvm.linux import process, syscalls

X86_64 = 0xC000003E
ALLOW, NOTIFY, KILL, EPERM = 0x7FFF0000, 0x7FC00000, 0x80000000, 0x00050000 | errno.EPERM


def verdict(number: int, *, arch: int = X86_64, argument: int = 0, second: int = 0) -> int:
    """What the program says of a system call: only the instructions that it has are known."""
    data = struct.pack("=IIQ6Q", number, arch, 0, argument, second, 0, 0, 0, 0)
    code = seccomp.program()
    instructions = [struct.unpack_from("=HBBI", code, offset) for offset in range(0, len(code), 8)]
    at = value = 0
    while True:
        operation, true, false, constant = instructions[at]
        at += 1
        if operation == 0x20:
            (value,) = struct.unpack_from("=I", data, constant)
        elif operation == 0x06:
            return int(constant)
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[operation]
            at += true if holds else false


@pytest.mark.parametrize("name", ["ptrace", "wait4", "read", "write", "mmap", "recvmmsg", "exit_group"])
def test_what_the_guests_kernel_needs_is_allowed(name: str) -> None:
    assert verdict(seccomp._ALLOWED[name]) == ALLOW


@pytest.mark.parametrize("name", ["execve", "socket", "connect"])
def test_what_it_needs_to_start_is_asked_for(name: str) -> None:
    assert verdict(seccomp._WHILE_STARTING[name]) == NOTIFY


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("execveat", 322), ("mount", 165), ("umount2", 166), ("bpf", 321), ("keyctl", 250), ("add_key", 248),
        ("unshare", 272), ("setns", 308), ("clone3", 435), ("fork", 57), ("vfork", 58),
        ("bind", 49), ("listen", 50), ("accept4", 288), ("chroot", 161), ("pivot_root", 155),
        ("open_by_handle_at", 304),
        ("process_vm_writev", 311), ("pidfd_getfd", 438), ("perf_event_open", 298), ("userfaultfd", 323),
        ("io_uring_setup", 425), ("init_module", 175), ("seccomp", 317), ("setuid", 105), ("mknod", 133),
    ],
)  # fmt: skip
def test_all_else_is_denied(name: str, number: int) -> None:
    assert verdict(number) == EPERM, name


def test_clone_makes_processes_but_no_namespaces() -> None:
    assert verdict(56, argument=0x8000 | 0x400 | 17) == ALLOW
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(56, argument=flag | 17) == EPERM


def test_a_signal_may_be_sent_but_for_the_one_that_never_ends_a_panic() -> None:
    """SIGABRT doesn't end the first process of a PID namespace, which sends it to itself until that fails."""
    assert verdict(62, argument=1, second=9) == ALLOW
    assert verdict(62, argument=1, second=6) == EPERM


def test_calls_of_another_kind_end_the_process() -> None:
    assert verdict(20, arch=0x40000003) == KILL  # i386
    assert verdict(0x40000000 | 0) == KILL  # x32


def test_no_number_stands_twice() -> None:
    numbers = [*seccomp._ALLOWED.values(), *seccomp._WHILE_STARTING.values()]
    assert len(numbers) == len(set(numbers))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="User Mode Linux is of x86-64")
def test_the_kernel_takes_it_and_a_start_ends_with_the_listener() -> None:
    ours, theirs = socket.socketpair()

    def child() -> None:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        listener = seccomp.install()
        socket.send_fds(theirs, [b"s"], [listener])
        os.close(listener)
        os.access("/", os.R_OK)  # one that the launcher lets pass
        os.read(theirs.fileno(), 1)
        answers = []
        for call in (lambda: os.access("/", os.R_OK), lambda: os.mknod("/tmp/never"), lambda: os.unlink("/never")):
            try:
                answers.append(int(call() or 0))
            except OSError as error:
                answers.append(error.errno or 0)
        os.write(theirs.fileno(), bytes(answers))

    with ours, theirs:
        ours.settimeout(10)
        pid = process.fork(child)
        try:
            listener = socket.recv_fds(ours, 1, 1)[1][0]
            seccomp.let_pass(listener)
            os.close(listener)
            ours.send(b"g")
            assert ours.recv(3) == bytes([0, errno.EPERM, errno.ENOSYS])
        finally:
            process.end_child(pid, "the confined child")
