"""What the User Mode Linux driver needs of the host, for `runvm doctor`: a kernel, and the right to trace processes."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from runvm.errors import HostError
from runvm.guest import uml_kernel
from runvm.hypervisor.driver import Finding

if TYPE_CHECKING:
    from runvm.config import Config

_PTRACE_TRACEME = 0


def findings(config: Config) -> list[Finding]:
    """Two findings: the kernel, and ptrace."""
    try:
        kernel = uml_kernel.find(config)
        found = [Finding("kernel for User Mode Linux", True, f"{kernel.path}: Linux {kernel.release}")]
    except HostError as error:
        found = [Finding("kernel for User Mode Linux", False, error.message, error.do)]
    if may_trace():
        return [*found, Finding("ptrace", True, "a process may trace its children")]
    fix = "sysctl kernel.yama.ptrace_scope=1, or lift what else forbids ptrace"
    return [*found, Finding("ptrace", False, "a process may not trace its children", fix)]


def may_trace() -> bool:
    """Whether a process may be traced by its parent, tried by one."""
    pid = os.fork()
    if not pid:
        os._exit(0 if ctypes.CDLL(None).ptrace(_PTRACE_TRACEME, 0, 0, 0) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0
