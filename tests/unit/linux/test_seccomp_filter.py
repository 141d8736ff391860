"""The filter that crun is given: loaded by a process of our own, whose system calls tell what it does."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from runvm.linux import seccomp_filter

# Loads the filter of the file argv[1] (prctl(2)) and prints the errno of each system call of argv[2]
LOADER = """
import ctypes, json, sys
class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
data = open(sys.argv[1], "rb").read()
buffer = ctypes.create_string_buffer(data, len(data))
program = Program(len(data) // 8, ctypes.cast(buffer, ctypes.c_void_p))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program)) == 0, ctypes.get_errno()
found = []
for number, argument in json.loads(sys.argv[2]):
    ctypes.set_errno(0)
    libc.syscall(number, ctypes.c_ulong(argument), 0, 0, 0)
    found.append(ctypes.get_errno())
print(json.dumps(found))
"""
# by linux/unistd.h of the machine that the tests run on
PERSONALITY, SETHOSTNAME, REBOOT = {"x86_64": (135, 170, 169), "aarch64": (92, 161, 142)}[os.uname().machine]
CACHESTAT = 451
ARCHITECTURES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
}[os.uname().machine]
NEEDED = ("write", "read", "exit_group", "brk", "mmap", "munmap", "rt_sigaction", "futex", "close", "fstat", "lseek")


def profile(**changes: Any) -> dict[str, Any]:
    """One like Docker's, small."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ARCHITECTURES,
        "syscalls": [
            {"names": [*NEEDED, "no_such_call", "socketcall"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7},
            {
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [
                    {"index": 0, "op": "SCMP_CMP_EQ", "value": 0xFFFFFFFF},
                    {"index": 0, "op": "SCMP_CMP_EQ", "value": 8},
                ],
            },
            {"names": ["faccessat2"], "action": "SCMP_ACT_ALLOW"},
        ],
        **changes,
    }


def errors(data: bytes, *calls: tuple[int, int]) -> list[int]:
    """What each of *calls* (number, first argument) fails with under the filter *data*; 0: it doesn't."""
    fd = os.memfd_create("filter", 0)
    os.write(fd, data)
    argv = [sys.executable, "-SI", "-c", LOADER, f"/proc/self/fd/{fd}", json.dumps(calls)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True, pass_fds=(fd,))
    os.close(fd)
    return list(json.loads(done.stdout))


def test_what_is_newer_than_the_profile_does_not_exist() -> None:
    """439, faccessat2, is the largest that it names: EPERM up to there, ENOSYS beyond; rules hold, with arguments."""
    data = seccomp_filter.compiled(profile())
    assert len(data) % 8 == 0
    calls = [(SETHOSTNAME, 0), (REBOOT, 0), (PERSONALITY, 0xFFFFFFFF), (PERSONALITY, 1), (438, 0)]
    assert errors(data, *calls) == [1, 7, 0, 1, 1]
    assert errors(data, (440, 0), (CACHESTAT, 0), (500, 0), (999, 0)) == [38, 38, 38, 38]


@pytest.mark.parametrize(
    "changes",
    [
        {"defaultErrnoRet": 38},
        {"defaultErrnoRet": 13},
        {"defaultAction": "SCMP_ACT_ALLOW"},
        {"defaultAction": "SCMP_ACT_KILL"},
        {"syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]},
        {"architectures": ["SCMP_ARCH_OF_THE_FUTURE"]},
    ],
)
def test_other_profiles_are_left_to_crun(changes: dict[str, Any]) -> None:
    spec: dict[str, Any] = {"linux": {"seccomp": profile(**changes)}}
    seccomp_filter.annotate(spec)
    assert "annotations" not in spec


def test_a_system_call_that_libseccomp_does_not_know_can_be_left_to_a_newer_one() -> None:
    """The profile has `no_such_call`."""
    spec: dict[str, Any] = {"linux": {"seccomp": profile()}}
    seccomp_filter.annotate(spec, only_known=True)
    assert "annotations" not in spec
    rules = [{"names": [*NEEDED, "socketcall"], "action": "SCMP_ACT_ALLOW"}]
    known: dict[str, Any] = {"linux": {"seccomp": profile(syscalls=rules)}}
    seccomp_filter.annotate(known, only_known=True)
    assert seccomp_filter.ANNOTATION in known["annotations"]


def test_the_filter_is_in_an_annotation() -> None:
    spec: dict[str, Any] = {"linux": {"seccomp": profile(defaultErrnoRet=1)}, "annotations": {"a": "b"}}
    seccomp_filter.annotate(spec)
    assert spec["annotations"]["a"] == "b"
    assert base64.b64decode(spec["annotations"][seccomp_filter.ANNOTATION]) == seccomp_filter.compiled(profile())
    bare: dict[str, Any] = {}
    seccomp_filter.annotate(bare)
    assert bare == {}
