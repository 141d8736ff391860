"""A container's control group in the guest (version 2; kernel's cgroup-v2.rst)."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from runvm.linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runvm.protocol.messages import Json

ROOT = "/sys/fs/cgroup"
ALL = f"{ROOT}/containers"
"""The group that every container's lies in; agent.memory watches it."""
_DEFAULTS = {
    "cpu.max": "max 100000",
    "cpu.weight": "100",
    "cpuset.cpus": "\n",
    "memory.max": "max",
    "memory.high": "max",
    "memory.low": "0",
    "memory.min": "0",
    "memory.swap.max": "max",
    "pids.max": "max",
    "io.weight": "default 100",
}
"""The limits that a config.json may set, as they are in a new group (cgroup-v2.rst)."""
_SHOWN = ("cpu.stat", "memory.", "pids.", "io.stat", "io.pressure", "cpu.max", "cpu.pressure", "hugetlb.")


def path(container: str) -> str:
    """Where a container's group is."""
    return f"{ALL}/{container}"


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
    if number == signal.SIGKILL:
        try:
            files.write(f"{cgroup}/cgroup.kill", "1")
            return
        except OSError:  # Linux before 5.14, or no such group
            pass
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
    files.write(f"{cgroup}/cgroup.freeze", "1" if frozen else "0")


def is_frozen(cgroup: str) -> bool:
    """Whether all of its processes stand still; one that is in the middle of a system call may take a moment. Raises
    OSError."""
    return "frozen 1" in files.read(f"{cgroup}/cgroup.events")


def hold_back(resources: Json) -> dict[str, int]:
    """Take quota and period out of an OCI resources object: what makes a container shall not be held up by what the
    container may use."""
    cpu = resources.get("cpu", {})
    if not cpu.get("quota"):
        return {}
    held = {key: int(cpu[key]) for key in ("quota", "period") if cpu.get(key)}
    resources["cpu"] = {key: value for key, value in cpu.items() if key not in held}
    return held


def limit_cpu(cgroup: str, held: dict[str, int]) -> None:
    """Put what hold_back() has taken into force. Raises OSError."""
    quota = held.get("quota", 0)
    files.write(f"{cgroup}/cpu.max", f"{quota if quota > 0 else 'max'} {held.get('period', 100_000)}")


def lift_limits(cgroup: str) -> None:
    """Have a group as one is that was given no limits. Raises OSError."""
    for name, value in _DEFAULTS.items():
        with suppress(FileNotFoundError):  # a controller that this kernel doesn't have
            files.write(f"{cgroup}/{name}", value)


def oom_kills(cgroup: str) -> int:
    """How many processes the kernel has killed there for the memory limit."""
    try:
        lines = files.read(f"{cgroup}/memory.events").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError, IndexError):
        return 0


def contents(cgroup: str) -> dict[str, str]:
    """What its files of use and limits say. Raises OSError."""
    found = {}
    for name in sorted(os.listdir(cgroup)):
        if name.startswith(_SHOWN):
            try:
                found[name] = files.read(f"{cgroup}/{name}", 8192)
            except OSError:
                continue  # one that can't be read, like memory.reclaim
    found["cgroup.procs"] = " ".join(str(pid) for pid in pids(cgroup)[:1024])
    return found
