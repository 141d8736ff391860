"""What a virtual machine takes of the host beside what its containers use in it, for `events`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from runvm.protocol import messages
from runvm.records import NamedTuple
from runvm.sandbox import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runvm.sandbox.registry import Sandbox

_ROLES = ("vmm", "virtiofsd", "supervisor")


class Use(NamedTuple):
    """Nanoseconds of CPU time, bytes of memory (pages that several processes map count in parts), bytes read from and
    written to the host's block devices."""

    cpu: int = 0
    memory: int = 0
    read: int = 0
    written: int = 0


def of_vm(sandbox: Sandbox, containers_cpu: int, containers_memory: int) -> dict[str, Any]:
    """The VM's use by process and in total, and what of it isn't its containers', who use *containers_cpu* (ns) and
    *containers_memory* (bytes) together."""
    recorded = registry.processes(sandbox)
    uses = {role: _with_children(recorded[role].pid, _pids(recorded)) for role in _ROLES if role in recorded}
    cpu, memory = sum(use.cpu for use in uses.values()), sum(use.memory for use in uses.values())
    return {
        "cpu": {"total": cpu, "overhead": max(0, cpu - containers_cpu)},
        "memory": {"total": memory, "overhead": max(0, memory - containers_memory)},
        "blkio": {
            "read": sum(use.read for use in uses.values()),
            "written": sum(use.written for use in uses.values()),
        },
        "processes": {role: {"cpu": use.cpu, "memory": use.memory} for role, use in uses.items()},
    }


def containers(sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """The files of each running container's cgroup in the guest. Raises GuestError, NotRunningError."""
    for name in registry.call(sandbox, messages.Status()).get("containers", {}):
        yield registry.call(sandbox, messages.Stats(name))


def _pids(recorded: dict[str, Any]) -> set[int]:
    return {identity.pid for identity in recorded.values()}


def _with_children(pid: int, others: set[int]) -> Use:
    """A process and its children, but for those that are in *others* and so count themselves."""
    uses = [_use(pid)]
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        children = []
    uses += [_with_children(child, others) for child in children if child not in others]
    return Use._make(sum(values) for values in zip(*uses, strict=True))


def _use(pid: int) -> Use:
    """Of one process; nothing where it has ended (proc(5))."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            times = file.read().rpartition(")")[2].split()[11:13]
        memory = _field(f"/proc/{pid}/smaps_rollup", "Pss:") << 10
        read, written = _field(f"/proc/{pid}/io", "read_bytes:"), _field(f"/proc/{pid}/io", "write_bytes:")
    except (OSError, ValueError):
        return Use()
    ticks = sum(int(text) for text in times)
    return Use(ticks * 10**9 // os.sysconf("SC_CLK_TCK"), memory, read, written)


def _field(path: str, name: str) -> int:
    with open(path) as file:
        return next((int(line.split()[1]) for line in file if line.startswith(name)), 0)
