"""A container's VM as the host sees it: its processes, and the memory that they and the guest take."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NamedTuple

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
    """The guest's memory: what its files hold, whether or not a process has it mapped."""
    return sum(_blocks(vm, name) for name in ("ram", "more")) * 512 / (1 << 20)


def _blocks(vm: Vm, name: str) -> int:
    return os.stat(f"/proc/{vm.pids['vmm']}/root/{name}").st_blocks


def process_mib(vm: Vm) -> dict[str, float]:
    """Each process's proportional share (PSS) of memory, without the guest's (proc(5), smaps), and its page tables."""
    files = {str(os.stat(f"/proc/{vm.pids['vmm']}/root/{name}").st_ino) for name in ("ram", "more")}
    found = {}
    for role, pid in vm.pids.items():
        kib = 0
        guest = False
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
            for line in file:
                name, _, rest = line.partition(":")
                if " " in name or "-" in name:
                    fields = line.split()
                    guest = len(fields) > 5 and fields[4] in files
                elif name == "Pss" and not guest:
                    kib += int(rest.split()[0])
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            kib += sum(int(line.split()[1]) for line in file if line.startswith("VmPTE:"))
        found[role] = kib / 1024
    return found
