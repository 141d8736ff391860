"""Sizes of a virtual machine from its containers' limits: memory and virtual CPUs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from runvm.cgroup.limits import UNLIMITED
from runvm.errors import UnsupportedError

if TYPE_CHECKING:
    from runvm.config import Config

_VMM_LEAST_MIB = 128
"""What the processes around the guest's RAM take at least (an idle emulated VM: 78 MiB of the VMM's own, 20 MiB of the
others')."""
_LEAST_MIB = 256
_STEP_MIB = 128
"""Memory grows by this, Linux' own step on x86."""
_LIMITED_BASE_MIB = 512
_BASE_MIB = 1024
_MAX_VCPUS = 32
"""Each takes some hundred KiB of a guest's kernel, used or not, and a thread of the VMM's."""


def of_vm(annotations: dict[str, str], resources: dict[str, Any]) -> dict[str, Any]:
    """The limits that a new VM is sized by: a pod's as containerd's CRI tells them with its sandbox, else the
    container's own *resources*.

    A pod's sandbox has next to no limits itself; kubelet gives the sums of the containers' that will come.
    """
    if annotations.get("io.kubernetes.cri.container-type") != "sandbox":
        return resources
    found = {
        key: int(text)
        for key in ("memory", "cpu-quota", "cpu-period")
        if (text := annotations.get(f"io.kubernetes.cri.sandbox-{key}", "")).isdigit()
    }
    return {
        **resources,
        "memory": {**resources.get("memory", {}), "limit": found.get("memory", 0)},
        "cpu": {"quota": found.get("cpu-quota", 0), "period": found.get("cpu-period", 0)},
    }


def vcpus(config: Config, resources: dict[str, Any], *, available: int = 0) -> int:
    """Virtual CPUs for a container with those limits: its quota or its cpuset, else as many as the host has
    (*available*; 0: those that this process may use), _MAX_VCPUS at most. They are there from the beginning, since
    programs count them as they start."""
    if config.vcpus:
        return config.vcpus
    available = available or len(os.sched_getaffinity(0))
    return wanted_vcpus(resources.get("cpu", {}), available) or min(_MAX_VCPUS, available)


def wanted_vcpus(cpu: dict[str, Any], available: int) -> int:
    """How many of the host's *available* CPUs a container with that *cpu* (of an OCI resources object) can keep busy,
    by its quota and its cpuset; 0 where it names none."""
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 100_000
    wanted = -(-quota // period) if quota > 0 else 0
    if cpu.get("cpus"):
        wanted = min(wanted or available, count_cpus(str(cpu["cpus"])))
    return int(min(wanted, available))


def max_mib(room_mib: int) -> int:
    """The RAM in MiB that a VM may have where a cgroup above, a pod's, has but *room_mib* for VM and VMM; 0 = no bound.

    Raises UnsupportedError where that is too little for any VM.
    """
    if 0 < room_mib < _LEAST_MIB + _VMM_LEAST_MIB:
        raise UnsupportedError(
            f"the cgroup above the container's allows {room_mib} MiB of memory, and a virtual machine takes at least"
            f" {_LEAST_MIB + _VMM_LEAST_MIB} MiB",
            do="raise the pod's limit, or with Kubernetes set the RuntimeClass's overhead",
        )
    return (room_mib - _VMM_LEAST_MIB) // _STEP_MIB * _STEP_MIB if room_mib else 0


def base_mib(config: Config, limits: dict[str, Any], max_mib: int = 0) -> int:
    """The RAM in MiB that a VM starts with: one size for all *limits* of memory (of an OCI resources object), another
    for none, so that two templates do and what is started most needn't grow; *max_mib* of max_mib()."""
    usual = _LIMITED_BASE_MIB if limit_mib(limits) or config.memory_mib else _BASE_MIB
    return min(usual, config.memory_mib or config.default_memory_mib, max_mib or usual)


def fixed_mib(config: Config, limits: dict[str, Any], max_mib: int = 0) -> int:
    """The RAM in MiB of a VM that can't grow: for a container with those *limits*, but never less than
    fixed_memory_mib; *max_mib* of max_mib()."""
    wanted = memory_mib(config, [limit_mib(limits)], max_mib)
    least = 0 if config.memory_mib else config.fixed_memory_mib
    return max(wanted, min(least, max_mib or least))


def limit_mib(resources: dict[str, Any]) -> int:
    """A container's memory limit in MiB, rounded up; 0 = none."""
    limit = resources.get("memory", {}).get("limit") or 0
    return -(-limit // (1 << 20)) if 0 < limit < UNLIMITED else 0


def pod_mib(annotations: dict[str, str]) -> int:
    """The memory limit of a whole pod, as containerd's CRI tells it with the sandbox; 0 = none, or no such."""
    return limit_mib(of_vm(annotations, {}))


def memory_mib(config: Config, limits: list[int], max_mib: int = 0) -> int:
    """The RAM in MiB of a VM for containers with those limits (limit_mib()), which add up; *max_mib* of max_mib()."""
    wanted = config.memory_mib
    if not wanted:
        wanted = sum(limits) + (config.default_memory_mib if 0 in limits else config.overhead_mib)
        wanted = -(-wanted // _STEP_MIB) * _STEP_MIB
    return min(wanted, max_mib or wanted)


def count_cpus(cpus: str) -> int:
    """How many a cpuset list such as 0-2,7 names, 1 at least (cpuset(7), List format)."""
    total = 0
    for part in cpus.split(","):
        low, _, high = part.strip().partition("-")
        if low.isdigit():
            total += int(high or low) - int(low) + 1
    return max(1, total)
