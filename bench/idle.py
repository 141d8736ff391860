"""The processor time of a container that does nothing: of all processes of its VM."""

from __future__ import annotations

import os
import time

from bench.results import Figure, median
from bench.runner import Bench
from bench.vms import Vm, vm_of

FAMILY = "idle"


def run(bench: Bench) -> None:
    """The one figure."""
    seconds = 5 if bench.quick else 20
    ids = [bench.launch(bench.runvm, bench.bundle("sleep", "1000")) for _ in range(3)]
    try:
        vms = [vm_of(bench, cid) for cid in ids]
        time.sleep(5)  # what a start leaves to do: pages given back, timers
        before = [cpu_seconds(vm) for vm in vms]
        begun = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - begun
        percent = [(cpu_seconds(vm) - used) / passed * 100 for vm, used in zip(vms, before, strict=True)]
    finally:
        for cid in ids:
            bench.delete(bench.runvm, cid)
    how = f"processor time of a VM's processes in {seconds} s, median of {len(ids)} VMs"
    samples = {"runvm": percent}
    bench.add(Figure(FAMILY, "idle CPU of a VM, % of a core", median(percent), "%", how, 0.5, samples, sample_unit="%"))


def cpu_seconds(vm: Vm) -> float:
    """What the VM's processes have used (kernel's sched-stats.rst: nanoseconds, a line a task)."""
    total = 0
    for pid in vm.pids.values():
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
    return total / 1e9
