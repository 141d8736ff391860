"""A seccomp profile as the filter that crun loads, in which system calls that are newer than the profile don't exist.

A profile that refuses by EPERM what it doesn't name breaks programs on a kernel that has newer system calls than it
knows: libraries try those first, and fall back for ENOSYS alone. runc hence answers ENOSYS for every number above the
largest that the profile names, and so does this module: libseccomp makes the filter as it does for crun, and a few
instructions come before it. crun takes such a filter by an annotation.

The host makes it while the virtual machine starts, since to make it takes an emulated guest a fifth of a container's
start. The guest's agent does for what the host's libseccomp is too old, and for another architecture.
"""

from __future__ import annotations

import base64
import ctypes
import errno
import os
import struct
from typing import Any

ANNOTATION = "run.oci.seccomp_bpf_data"
# seccomp(2), linux/seccomp.h
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_UNKNOWN = -1
"""libseccomp's __NR_SCMP_ERROR: no system call of that name."""
_WITH_ERRNO = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
# libseccomp's seccomp.h
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# linux/audit.h; which numbers are x32's: arch/x86/include/uapi/asm/unistd.h
_X86_64, _I386, _X32_BIT, _AARCH64 = 0xC000003E, 0x40000003, 0x40000000, 0xC00000B7
_COMMON = 424
"""From here on a system call has the same number on all architectures (arch/*/syscall*.tbl)."""
_INSTRUCTION = struct.Struct("=HBBI")
# linux/bpf_common.h
_LOAD, _EQUAL, _GREATER, _AT_LEAST, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_MOST = 4096
"""Instructions that a filter may have (bpf(4))."""


class _Comparison(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def annotate(spec: dict[str, Any], *, only_known: bool = False) -> None:
    """Give *spec*, a config.json for crun, the annotation where its profile refuses by EPERM. Where that can't be, crun
    makes the filter by itself, without ENOSYS. With *only_known*, a profile that names a system call which libseccomp
    doesn't know is left as it is."""
    profile = (spec.get("linux") or {}).get("seccomp") or {}
    annotations = spec.get("annotations") or {}
    if ANNOTATION in annotations or not _refuses(profile):
        return
    try:
        data = compiled(profile, only_known=only_known)
    except (OSError, AttributeError, LookupError):  # no libseccomp, one without what is needed, or an unknown word
        return
    if data:
        spec["annotations"] = {**annotations, ANNOTATION: base64.b64encode(data).decode()}


def _refuses(profile: dict[str, Any]) -> bool:
    if profile.get("defaultAction") != "SCMP_ACT_ERRNO":
        return False
    notifies = any(call.get("action") == "SCMP_ACT_NOTIFY" for call in profile.get("syscalls") or ())
    return profile.get("defaultErrnoRet", errno.EPERM) == errno.EPERM and not notifies


def compiled(profile: dict[str, Any], *, only_known: bool = False) -> bytes:
    """The filter's instructions; nothing where libseccomp refuses the profile: crun's own error says why. Raises
    OSError, AttributeError, LookupError, also for an unknown system call with *only_known*."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    if context.value is None:
        return b""
    try:
        for name in profile.get("architectures") or ():
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token or library.seccomp_arch_add(context, ctypes.c_uint32(token)) not in (0, -errno.EEXIST):
                return b""
        largest = 0
        for call in profile.get("syscalls") or ():
            action = _action(call["action"], call.get("errnoRet"))
            for name in call["names"]:
                number = library.seccomp_syscall_resolve_name(name.encode())
                if number == _UNKNOWN and only_known:
                    raise LookupError(name)
                largest = max(largest, number)
                # a rule that says the same as the default is refused by libseccomp
                if number != _UNKNOWN and action != default and not _add(library, context, action, number, call):
                    return b""
        return _prefix(largest) + _export(library, context)
    finally:
        library.seccomp_release(context)


def _action(name: str, code: int | None) -> int:
    if name in _WITH_ERRNO:
        return _ACTIONS[name] | ((errno.EPERM if code is None else code) & 0xFFFF)
    return _ACTIONS[name]


def _add(library: ctypes.CDLL, context: ctypes.c_void_p, action: int, number: int, call: dict[str, Any]) -> bool:
    """One system call's rules."""
    wanted = [
        _Comparison(given["index"], _OPERATORS[given["op"]], given["value"], given.get("valueTwo") or 0)
        for given in call.get("args") or ()
    ]
    groups = [wanted]
    if len({comparison.arg for comparison in wanted}) < len(wanted):
        groups = [[comparison] for comparison in wanted]  # of one argument any may hold, as runc and crun read it
    for group in groups:
        array = (_Comparison * len(group))(*group)
        added = library.seccomp_rule_add_array(
            context, ctypes.c_uint32(action), ctypes.c_int(number), ctypes.c_uint(len(group)), array
        )
        if added not in (0, -errno.EEXIST):
            return False
    return True


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        if library.seccomp_export_bpf(context, fd) != 0:
            raise OSError(errno.EINVAL, "libseccomp gives no filter")
        return os.pread(fd, _MOST * _INSTRUCTION.size, 0)
    finally:
        os.close(fd)


def _prefix(largest: int) -> bytes:
    """What answers ENOSYS above the number *largest*, and goes on to what follows otherwise."""
    refused = _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
    # (code, argument, how many instructions to leave out if it holds, and if not)
    rows = [
        (_LOAD, _ARCHITECTURE, 0, 0),
        (_EQUAL, _AARCH64, 0, 3),
        (_LOAD, _NUMBER, 0, 0),
        (_GREATER, largest, 0, 1),
        (_RETURN, refused, 0, 0),
    ]
    if os.uname().machine == "x86_64":
        rows = [
            (_LOAD, _ARCHITECTURE, 0, 0),
            (_EQUAL, _X86_64, 3, 0),
            (_EQUAL, _I386, 0, 6),
            (_LOAD, _NUMBER, 0, 0),
            (_GREATER, largest if largest >= _COMMON else 0xFFFFFFFF, 3, 4),
            (_LOAD, _NUMBER, 0, 0),
            (_AT_LEAST, _X32_BIT, 2, 0),
            (_GREATER, largest, 0, 1),
            (_RETURN, refused, 0, 0),
        ]
    return b"".join(_INSTRUCTION.pack(code, yes, no, argument) for code, argument, yes, no in rows)
