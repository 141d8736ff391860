"""`ps`: the host's processes that stand for a container's: the shims of its init and of each exec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.cgroup.cgroup import Cgroup
from runvm.container import state

if TYPE_CHECKING:
    from runvm.container.context import Context


def pids(ctx: Context, cid: str) -> list[int]:
    """Host pids; none of a stopped container, as with runc. Raises ContainerNotFoundError."""
    record = state.load(ctx, cid)
    if record.pid == 0:
        return []
    found = {record.pid}
    for pid in Cgroup(record.cgroups).processes():
        try:
            with open(f"/proc/{pid}/comm") as file:
                if file.read().strip() == "runvm-shim":
                    found.add(pid)
        except OSError:
            continue
    return sorted(found)
