"""A container's VM as the host sees it: its processes, and the memory that they and the guest take."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NamedTuple

from framework import process

if TYPE_CHECKING:
    from bench.runner import Bench


class Vm(NamedTuple):
    """Process ids by role: shim, supervisor, vmm, virtiofsd."""

    pids: dict[str, int]


def vm_of(bench: Bench, cid: str) -> Vm:
    """The VM of a running container."""
    with open(f"{bench.scratch}/root/{cid}/state.json", encoding="utf-8") as file:
        state = json.load(file)
    with open(f"{bench.state_dir}/sandboxes/{state['sandbox']}/processes.json", encoding="utf-8") as file:
        found = {role: int(identity[0]) for role, identity in json.load(file).items()}
    return Vm({"shim": int(state["shim"][0]), **found})


def guest_mib(vm: Vm) -> float:
    """The guest's memory: what its files hold, whether or not a process has it mapped. They are all that is in the
    tmpfs that is the hypervisor's root."""
    status = os.statvfs(f"/proc/{vm.pids['vmm']}/root/")
    return (status.f_blocks - status.f_bfree) * status.f_frsize / (1 << 20)


def process_mib(vm: Vm) -> dict[str, float]:
    """Each process's proportional share (PSS) of memory, without the guest's (proc(5), smaps), and its page tables.
    The guest's programs are processes where User Mode Linux is the hypervisor."""
    device = os.stat(f"/proc/{vm.pids['vmm']}/root/").st_dev
    guest = f"{os.major(device):02x}:{os.minor(device):02x}"
    found = {role: _process_mib(pid, guest) for role, pid in vm.pids.items()}
    programs = [_process_mib(pid, guest) for pid in process.descendants(vm.pids["vmm"])]
    return found | ({"programs": sum(programs)} if programs else {})


def _process_mib(pid: int, guest: str) -> float:
    """Of one process; *guest* is the device of files that are the guest's memory."""
    kib = 0
    of_guest = False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if " " in name or "-" in name:
                of_guest = line.split()[3] == guest
            elif name == "Pss" and not of_guest:
                kib += int(rest.split()[0])
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        kib += sum(int(line.split()[1]) for line in file if line.startswith("VmPTE:"))
    return kib / 1024
