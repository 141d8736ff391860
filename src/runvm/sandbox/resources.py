"""Sizes of a VM from its container's limits, and the host cgroup around its processes.

The limits hold in the guest (its crun, its cgroups) and again around the VMM on the host. Engines read `stats` and OOM
events off the host cgroup that cgroupsPath names, by the shim's pid.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from runvm.errors import HostError, UnsupportedError, words

if TYPE_CHECKING:
    from runvm.config import Config

_ROOT = "/sys/fs/cgroup"
_UNLIMITED = 1 << 50
"""Memory limits beyond this mean none (engines write the largest page-aligned number)."""
_VMM_MIB = 256
"""What the processes around the guest's RAM may take: VMM, virtiofsd, supervisor and shims."""
_VMM_LEAST_MIB = 128
"""What they take at least (an idle emulated VM: 78 MiB of the VMM's own, 20 MiB of the others')."""
_LEAST_MIB = 256
_STEP_MIB = 128
"""Memory grows by this, Linux' own step on x86."""
_LIMITED_BASE_MIB = 512
_BASE_MIB = 1024


class Limits(NamedTuple):
    """What a container's VM may take on the host, bytes and microseconds; 0 = no limit, or none that is given."""

    memory: int
    quota: int
    period: int
    shares: int

    @property
    def weight(self) -> int:
        """The shares as cgroup v2 has them (the conversion that crun's and runc's documentation give)."""
        return 1 + (max(2, min(self.shares, 262144)) - 2) * 9999 // 262142


def host_limits(resources: dict[str, Any], *, overhead_mib: int) -> Limits:
    """By the container's own limits; memory gets *overhead_mib* (the guest's) and _VMM_MIB on top."""
    memory = resources.get("memory", {}).get("limit") or 0
    cpu = resources.get("cpu", {})
    return Limits(
        memory=memory + ((overhead_mib + _VMM_MIB) << 20) if 0 < memory < _UNLIMITED else 0,
        quota=max(0, cpu.get("quota") or 0),
        period=cpu.get("period") or 100_000,
        shares=cpu.get("shares") or 0,
    )


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


def vcpus(config: Config, resources: dict[str, Any]) -> int:
    """Virtual CPUs for a container with those limits: its quota or its cpuset, else two, or as many as the host has."""
    if config.vcpus:
        return config.vcpus
    available = len(os.sched_getaffinity(0))
    return wanted_vcpus(resources.get("cpu", {}), available) or min(2, available)


def wanted_vcpus(cpu: dict[str, Any], available: int) -> int:
    """How many of the host's *available* CPUs a container with that *cpu* (of an OCI resources object) can keep busy,
    by its quota and its cpuset; 0 where it names none."""
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 100_000
    wanted = -(-quota // period) if quota > 0 else 0
    if cpu.get("cpus"):
        wanted = min(wanted or available, count_cpus(str(cpu["cpus"])))
    return int(min(wanted, available))


def most_mib(room_mib: int) -> int:
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


def base_mib(config: Config, limits: dict[str, Any], most_mib: int = 0) -> int:
    """The RAM in MiB that a VM starts with: one size for all *limits* of memory (of an OCI resources object), another
    for none, so that two templates do and what is started most needn't grow; *most_mib* of most_mib()."""
    usual = _LIMITED_BASE_MIB if limit_mib(limits) or config.memory_mib else _BASE_MIB
    return min(usual, config.memory_mib or config.default_memory_mib, most_mib or usual)


def limit_mib(resources: dict[str, Any]) -> int:
    """A container's memory limit in MiB, rounded up; 0 = none."""
    limit = resources.get("memory", {}).get("limit") or 0
    return -(-limit // (1 << 20)) if 0 < limit < _UNLIMITED else 0


def pod_mib(annotations: dict[str, str]) -> int:
    """The memory limit of a whole pod, as containerd's CRI tells it with the sandbox; 0 = none, or no such."""
    return limit_mib(of_vm(annotations, {}))


def memory_mib(config: Config, limits: list[int], most_mib: int = 0) -> int:
    """The RAM in MiB of a VM for containers with those limits (limit_mib()), which add up; *most_mib* of most_mib()."""
    wanted = config.memory_mib
    if not wanted:
        wanted = sum(limits) + (config.default_memory_mib if 0 in limits else config.overhead_mib)
        wanted = -(-wanted // _STEP_MIB) * _STEP_MIB
    return min(wanted, most_mib or wanted)


def count_cpus(cpus: str) -> int:
    """How many a cpuset list such as 0-2,7 names, 1 at least (cpuset(7), List format)."""
    total = 0
    for part in cpus.split(","):
        low, _, high = part.strip().partition("-")
        if low.isdigit():
            total += int(high or low) - int(low) + 1
    return max(1, total)


class Cgroup:
    """The host cgroup of a container: one directory per hierarchy (v1 and hybrid), or one (v2)."""

    def __init__(self, directories: tuple[str, ...]) -> None:
        self.directories = directories

    @property
    def procs(self) -> tuple[str, ...]:
        """The files that a process joins by."""
        return tuple(f"{directory}/cgroup.procs" for directory in self.directories)

    def limit(self, resources: dict[str, Any], *, overhead_mib: int) -> None:
        """Put host_limits() around the VM's processes."""
        limits = host_limits(resources, overhead_mib=overhead_mib)
        cpu = resources.get("cpu", {})
        v2 = len(self.directories) == 1
        if limits.memory:
            self._write("memory", "memory.max" if v2 else "memory.limit_in_bytes", str(limits.memory))
        if limits.quota and v2:
            self._write("cpu", "cpu.max", f"{limits.quota} {limits.period}")
        elif limits.quota:
            self._write("cpu", "cpu.cfs_period_us", str(limits.period))
            self._write("cpu", "cpu.cfs_quota_us", str(limits.quota))
        if limits.shares and v2:
            self._write("cpu", "cpu.weight", str(limits.weight))
        elif limits.shares:
            self._write("cpu", "cpu.shares", str(limits.shares))
        for key in ("cpus", "mems"):
            if cpu.get(key):
                self._write("cpuset", f"cpuset.{key}", str(cpu[key]), required=True)
        if block_io := resources.get("blockIO"):
            from runvm.sandbox import blkio

            for line in blkio.writes(block_io, v2=v2):
                self._write("blkio", line.file, line.text, required=line.required)

    def room_mib(self) -> int:
        """The least memory limit of the cgroups above, 0 for none: what a pod may take in all."""
        limits = []
        for directory in self.directories:
            path = os.path.dirname(directory)
            while path.startswith(f"{_ROOT}/"):
                for name in ("memory.limit_in_bytes", "memory.max"):
                    try:
                        with open(f"{path}/{name}") as file:
                            limits.append(int(file.read()))
                    except (OSError, ValueError):  # not there, or "max"
                        continue
                path = os.path.dirname(path)
        least = min(limits, default=0)
        return least >> 20 if least < _UNLIMITED else 0

    def processes(self) -> list[int]:
        """Every process in it and below."""
        found: set[int] = set()
        for directory in self.directories:
            for path, _, _ in os.walk(directory):
                try:
                    with open(f"{path}/cgroup.procs") as file:
                        found.update(int(line) for line in file)
                except OSError:
                    continue
        return sorted(found - {0})  # what is outside of our PID namespace

    def in_use(self) -> bool:
        """Whether others have it: what is in it, and the cgroups below, are then not for us to clear away."""
        for directory in self.directories:
            try:
                with os.scandir(directory) as entries:
                    if any(entry.is_dir(follow_symlinks=False) for entry in entries):
                        return True
            except FileNotFoundError:
                continue
        return bool(self.processes())

    def hand_over(self, directories: tuple[str, ...]) -> None:
        """Move every process in it to another one, which *directories* are."""
        for mine in self.directories:
            hierarchy = mine[len(_ROOT) + 1 :].partition("/")[0] + "/" if len(self.directories) > 1 else ""
            theirs = next((other for other in directories if other.startswith(f"{_ROOT}/{hierarchy}")), None)
            if theirs is None:
                continue
            for pid in Cgroup((mine,)).processes():
                try:
                    with open(f"{theirs}/cgroup.procs", "w") as file:
                        file.write(str(pid))
                except OSError:
                    continue  # it has ended

    def kill(self) -> None:
        """SIGKILL to whatever a crash has left in it, this process never; nor one that has taken the pid over since."""
        for pid in self.processes():
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if pid != os.getpid() and pid in self.processes():
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            except ProcessLookupError:
                continue
            finally:
                os.close(fd)

    def remove(self, *, timeout: float = 5.0) -> None:
        """Remove the directories, and those of ours above that are empty; waits for processes that are just ending."""
        deadline = time.monotonic() + timeout
        for directory in self.directories:
            for path, _, _ in os.walk(directory, topdown=False):
                while True:
                    try:
                        os.rmdir(path)
                        break
                    except FileNotFoundError:
                        break
                    except OSError:
                        if time.monotonic() > deadline:
                            break
                        time.sleep(0.01)

    def _write(self, controller: str, name: str, value: str, *, required: bool = False) -> None:
        for directory in self.directories:
            if len(self.directories) > 1 and controller not in directory[len(_ROOT) + 1 :].split("/")[0].split(","):
                continue
            try:
                with open(f"{directory}/{name}", "w") as file:
                    file.write(value)
            except OSError as error:
                if required:
                    raise HostError(f"set {name} to {value} in the host's cgroup: {words(error)}") from error


def planned(path: str, cid: str) -> Cgroup:
    """The host cgroup for a container, not made yet. *path* is cgroupsPath, or a scope's ('' = /runvm/<id>)."""
    relative = os.path.normpath("/" + (path or f"/runvm/{cid}")).strip("/")
    return Cgroup(tuple(f"{hierarchy}/{relative}".rstrip("/") for hierarchy in hierarchies()))


def make(cgroup: Cgroup, *, rootless: str = "false") -> Cgroup:
    """Make what planned() gave; those directories of it that this host lets us have.

    With *rootless* of --rootless a user that may make none has none. Raises: HostError where the host has no cgroups
    for us.
    """
    directories = []
    roots = hierarchies()
    for directory in cgroup.directories:
        hierarchy = next(root for root in roots if f"{directory}/".startswith(f"{root}/"))
        try:
            _make(hierarchy, directory[len(hierarchy) + 1 :])
        except OSError as error:
            if error.errno == errno.EROFS or error.errno == errno.EACCES and _users(rootless):
                continue  # a hierarchy that we may not write has nothing to hold
            raise HostError(f"make the host cgroup {directory}: {words(error)}") from error
        directories.append(directory)
    return Cgroup(tuple(directories))


def _users(rootless: str) -> bool:
    from runvm.linux import userns

    return rootless == "true" or rootless == "auto" and userns.limited()


def hierarchies() -> list[str]:
    """Where cgroups are mounted: a directory a hierarchy in v1 and hybrid, the root alone in v2."""
    if os.path.exists(f"{_ROOT}/cgroup.controllers"):
        return [_ROOT]
    try:
        names = sorted(os.listdir(_ROOT))
    except OSError:
        return []
    return [
        f"{_ROOT}/{name}"
        for name in names
        if not os.path.islink(f"{_ROOT}/{name}") and os.path.exists(f"{_ROOT}/{name}/cgroup.procs")
    ]


def _make(hierarchy: str, relative: str) -> None:
    path = hierarchy
    v2 = hierarchy == _ROOT
    for part in filter(None, relative.split("/")):
        if v2:
            _enable(path)
        parent, path = path, f"{path}/{part}"
        try:
            os.mkdir(path)
        except FileExistsError:
            continue
        if os.path.exists(f"{path}/cpuset.cpus") and not v2:
            # a v1 cpuset takes no process before it has processors and memory (cpusets(7))
            for name in ("cpuset.cpus", "cpuset.mems"):
                with open(f"{parent}/{name}") as source, open(f"{path}/{name}", "w") as target:
                    target.write(source.read())


def _enable(path: str) -> None:
    try:
        with open(f"{path}/cgroup.controllers") as file:
            controllers = file.read().split()
    except OSError:
        return
    for controller in controllers:
        try:
            with open(f"{path}/cgroup.subtree_control", "w") as file:
                file.write(f"+{controller}")
        except OSError:
            continue  # a cgroup with processes of its own passes none on: then there is no limit, but a container
