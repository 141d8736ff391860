"""A process's scheduling and I/O priority from the OCI process object, which crun 1.8 passes over.

Sources: sched_setattr(2), ioprio_set(2); glibc has no wrapper of either.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

_SYS_SCHED_SETATTR = 314
_SYS_IOPRIO_SET = 251
# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, and two clamps
_ATTRIBUTES = struct.Struct("=IIQiIQQQII")
_POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_SHIFT = 13

_libc = ctypes.CDLL(None, use_errno=True)


def apply(pid: int, process: dict[str, Any]) -> None:
    """Give *pid* what `scheduler` and `ioPriority` of *process* ask for. Raises OSError, naming the field."""
    scheduler, priority = process.get("scheduler"), process.get("ioPriority")
    if scheduler:
        flags = sum(_FLAGS[name] for name in set(scheduler.get("flags", ())))
        attributes = _ATTRIBUTES.pack(
            _ATTRIBUTES.size,
            _POLICIES[scheduler["policy"]],
            flags,
            scheduler.get("nice", 0),
            scheduler.get("priority", 0) & 0xFFFFFFFF,
            *(scheduler.get(name, 0) for name in ("runtime", "deadline", "period")),
            0,
            0,
        )
        _call("process.scheduler", _SYS_SCHED_SETATTR, pid, attributes, 0)
    if priority:
        value = _CLASSES[priority["class"]] << _IOPRIO_CLASS_SHIFT | priority["priority"]
        _call("process.ioPriority", _SYS_IOPRIO_SET, _IOPRIO_WHO_PROCESS, pid, value)


def inherited(process: dict[str, Any]) -> bool:
    """Whether a process's children have from it what *process* asks for: a deadline's may not even be forked."""
    scheduler = process.get("scheduler") or {}
    return scheduler.get("policy") != "SCHED_DEADLINE" and not scheduler.get("flags")


def _call(field: str, *arguments: int | bytes) -> None:
    if _libc.syscall(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{field}: {os.strerror(number)}")
