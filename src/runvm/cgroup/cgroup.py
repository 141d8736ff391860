"""The host cgroup around a virtual machine's processes.

The limits hold in the guest (its crun, its cgroups) and again around the VMM on the host. Engines read `stats` and OOM
events off the host cgroup that cgroupsPath names, by the shim's pid.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress
from typing import Any

from runvm.cgroup import hierarchy
from runvm.cgroup.limits import DEFAULT_SHARES, DEFAULT_WEIGHT, NONE, UNLIMITED, Limits, host_limits
from runvm.errors import HostError, reason

_PASSES = 100
"""How often hand_over() looks for processes that were forked while it moved the others."""


class Cgroup:
    """The host cgroup of a container: a directory for each hierarchy (v1 and hybrid), or one (v2)."""

    def __init__(self, directories: tuple[str, ...]) -> None:
        self.directories = directories
        self._unified = hierarchy.unified()

    @property
    def procs(self) -> tuple[str, ...]:
        """The files that a process joins by."""
        return tuple(f"{directory}/cgroup.procs" for directory in self.directories)

    def limit(self, resources: dict[str, Any], *, overhead_mib: int) -> None:
        """Put host_limits() around the VM's processes, but for quota and weight, which limit_cpu() is for."""
        limits = host_limits(resources, overhead_mib=overhead_mib)
        v2 = self._unified
        if limits.memory:
            text = "max" if v2 and limits.memory == NONE else str(limits.memory)  # version 1 has -1 for it
            self._write("memory", "memory.max" if v2 else "memory.limit_in_bytes", text)
        for key in ("cpus", "mems"):
            if value := resources.get("cpu", {}).get(key):
                self._write("cpuset", f"cpuset.{key}", str(value), required=True)
        if block_io := resources.get("blockIO"):
            from runvm.cgroup import blkio

            for line in blkio.writes(block_io, v2=v2):
                self._write("blkio", line.file, line.text, required=line.required)

    def limit_cpu(self, cpu: dict[str, Any]) -> None:
        """Quota and weight of *cpu* (of an OCI resources object) hold from now on."""
        limits = host_limits({"cpu": cpu}, overhead_mib=0)
        if limits.quota or cpu.get("period"):  # which is for a quota that may come
            self._write_quota(limits.quota, limits.period)
        if limits.shares:
            self._write_shares(limits)
        if "idle" in cpu:
            self._write("cpu", "cpu.idle", str(cpu["idle"]))

    def lift_cpu(self, cpu: dict[str, Any]) -> None:
        """What limit_cpu() does, undone: no quota, and no smaller weight than the default."""
        limits = host_limits({"cpu": cpu}, overhead_mib=0)
        if cpu.get("idle"):
            self._write("cpu", "cpu.idle", "0")
        if limits.quota > 0:
            self._write_quota(NONE, limits.period)
        if 0 < limits.shares < DEFAULT_SHARES:
            self._write_shares(limits._replace(shares=0))

    def _write_quota(self, quota: int, period: int) -> None:
        """*quota* is NONE, or 0 where there was none before either."""
        if self._unified:
            self._write("cpu", "cpu.max", f"{quota if quota > 0 else 'max'} {period}")
            return
        self._write("cpu", "cpu.cfs_period_us", str(period))
        if quota:
            self._write("cpu", "cpu.cfs_quota_us", str(quota))

    def _write_shares(self, limits: Limits) -> None:
        """0 is what a cgroup has that nobody gave any."""
        if self._unified:
            self._write("cpu", "cpu.weight", str(limits.weight if limits.shares else DEFAULT_WEIGHT))
        else:
            self._write("cpu", "cpu.shares", str(limits.shares or DEFAULT_SHARES))

    def room_mib(self) -> int:
        """The least memory limit of the cgroups above, 0 for none: what a pod may take in all."""
        limits = []
        for directory in self.directories:
            path = os.path.dirname(directory)
            while path.startswith(f"{hierarchy.ROOT}/"):
                for name in ("memory.limit_in_bytes", "memory.max"):
                    try:
                        with open(f"{path}/{name}") as file:
                            limits.append(int(file.read()))
                    except (OSError, ValueError):  # not there, or "max"
                        continue
                path = os.path.dirname(path)
        least = min(limits, default=0)
        return least >> 20 if least < UNLIMITED else 0

    def memory(self) -> tuple[int, int]:
        """Its limit in bytes (UNLIMITED for none), and what of it is in use and couldn't be freed: a limit below that
        would be met by killing."""
        limit, needed = UNLIMITED, 0
        name = "memory.max" if self._unified else "memory.limit_in_bytes"
        kinds = ("anon", "shmem") if self._unified else ("total_rss", "total_shmem")
        for directory in self.directories:
            with suppress(OSError, ValueError), open(f"{directory}/{name}") as file:
                limit = int(file.read())
            with suppress(OSError), open(f"{directory}/memory.stat") as file:
                used = dict(line.split()[:2] for line in file)
                needed = sum(int(used.get(kind, "0")) for kind in kinds)
        return limit, needed

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

    def check_free(self) -> None:
        """Raise HostError with runc's message where a container can't have it: others are in it, or it is frozen, in
        which its processes would hang."""
        # of the hierarchies of version 1 runc looks at that of devices
        looked_at = (one for one in self.directories if self._unified or "devices" in hierarchy.controllers(one))
        if found := Cgroup(tuple(looked_at)).processes():
            raise HostError(f"container's cgroup is not empty: {len(found)} process(es) found")
        for directory in self.directories:
            for name, frozen in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
                with suppress(OSError), open(f"{directory}/{name}") as file:
                    if file.read().strip() == frozen:
                        raise HostError("container's cgroup unexpectedly frozen", do="thaw it first")

    def hand_over(self, directories: tuple[str, ...]) -> None:
        """Move every process in it to another one, which *directories* are; and those that they fork meanwhile."""
        for mine in self.directories:
            root = hierarchy.root_of(mine)
            theirs = Cgroup(tuple(other for other in directories if hierarchy.root_of(other) == root))
            for _ in range(_PASSES):
                pids = Cgroup((mine,)).processes()
                if not pids:
                    break
                theirs.take(pids)

    def take(self, pids: list[int]) -> None:
        """Move these processes here."""
        for directory in self.directories:
            for pid in pids:
                try:
                    with open(f"{directory}/cgroup.procs", "w") as file:
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
            if not self._unified and controller not in hierarchy.controllers(directory):
                continue
            try:
                with open(f"{directory}/{name}", "w") as file:
                    file.write(value)
            except OSError as error:
                if required:
                    raise HostError(f"set {name} to {value} in the host's cgroup: {reason(error)}") from error


def planned(path: str, cid: str) -> Cgroup:
    """The host cgroup for a container, not made yet. *path* is cgroupsPath, or a scope's ('' = /runvm/<id>)."""
    relative = os.path.normpath("/" + (path or f"/runvm/{cid}")).strip("/")
    return Cgroup(tuple(f"{root}/{relative}".rstrip("/") for root in hierarchy.roots()))


def make(cgroup: Cgroup, *, rootless: str = "false") -> Cgroup:
    """Make what planned() gave; those directories of it that this host lets us have.

    With *rootless* of --rootless a user that may make none has none. Raises: HostError where the host has no cgroups
    for us.
    """
    directories = []
    for directory in cgroup.directories:
        root = hierarchy.root_of(directory)
        try:
            _make(root, directory[len(root) + 1 :])
        except OSError as error:
            if error.errno == errno.EROFS or error.errno == errno.EACCES and _users(rootless):
                continue  # a hierarchy that we may not write has nothing to hold
            raise HostError(f"make the host cgroup {directory}: {reason(error)}") from error
        directories.append(directory)
    return Cgroup(tuple(directories))


def _users(rootless: str) -> bool:
    from runvm.linux import userns

    return rootless == "true" or rootless == "auto" and userns.limited()


def _make(root: str, relative: str) -> None:
    path = root
    v2 = root == hierarchy.ROOT
    for part in filter(None, relative.split("/")):
        if v2:
            _enable(path)
        parent, path = path, f"{path}/{part}"
        with suppress(FileExistsError):
            os.mkdir(path)
        if os.path.exists(f"{path}/cpuset.cpus") and not v2:
            # a v1 cpuset takes no process before it has processors and memory (cpusets(7)); who has made the cgroups
            # above may have left them without
            for name in ("cpuset.cpus", "cpuset.mems"):
                with open(f"{path}/{name}") as own:
                    if own.read().strip():
                        continue
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
