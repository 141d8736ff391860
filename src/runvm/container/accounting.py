"""Which cgroup of a pod on the host its virtual machine is in: engines read a container's figures there.

The machine is the pod's, and one cgroup has it. With one container beside the pod's own ("pause") that is this
container's, whose figures are then those of the machine; with more of them it is the pod's own container's again. The
pod's figures, which are those of the cgroup above, have it in any case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.cgroup.cgroup import Cgroup
from runvm.linux import process
from runvm.sandbox import placement, registry

if TYPE_CHECKING:
    from runvm.config import Config
    from runvm.sandbox.registry import Sandbox


def settle(config: Config, sandbox: Sandbox) -> None:
    """Put the virtual machine of a pod where it belongs now that a container has come. The sandbox's lock is held."""
    members = [member for member in placement.all_members(config) if member.sandbox.name == sandbox.name]
    recorded = registry.processes(sandbox)
    if not members or "supervisor" not in recorded or not process.alive(recorded["supervisor"]):
        return
    first, *beside = members
    owner = beside[0] if len(beside) == 1 else first
    Cgroup(owner.cgroups).take(process.descendants(recorded["supervisor"].pid))
