"""A container's control group in the guest (version 2; kernel's cgroup-v2.rst)."""

from __future__ import annotations

import os

ROOT = "/sys/fs/cgroup"
_SHOWN = ("cpu.stat", "memory.", "pids.", "io.stat", "cpu.max", "cpu.pressure", "hugetlb.")


def path(container: str) -> str:
    """Where a container's group is."""
    return f"{ROOT}/{container}"


def pids(cgroup: str) -> list[int]:
    """Processes of a cgroup and of those below it."""
    found: list[int] = []
    for directory, _, _ in os.walk(cgroup):
        try:
            with open(f"{directory}/cgroup.procs") as file:
                found += [int(line) for line in file]
        except OSError:
            continue
    return found


def signal_all(cgroup: str, number: int) -> None:
    """A signal to each process of a cgroup and of those below it."""
    for pid in pids(cgroup):
        kill(pid, number)


def kill(pid: int, number: int) -> None:
    """A signal to a process, which may have gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def freeze(cgroup: str, frozen: bool) -> None:
    """Stop every process of a cgroup, or let it go on. Raises OSError."""
    with open(f"{cgroup}/cgroup.freeze", "w") as file:
        file.write("1" if frozen else "0")


def oom_kills(cgroup: str) -> int:
    """How many processes the kernel has killed there for the memory limit."""
    try:
        with open(f"{cgroup}/memory.events") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def files(cgroup: str) -> dict[str, str]:
    """What its files of use and limits say. Raises OSError."""
    found = {}
    for name in sorted(os.listdir(cgroup)):
        if name.startswith(_SHOWN):
            try:
                with open(f"{cgroup}/{name}") as file:
                    found[name] = file.read(8192)
            except OSError:
                continue  # one that can't be read, like memory.reclaim
    found["cgroup.procs"] = " ".join(str(pid) for pid in pids(cgroup)[:1024])
    return found
