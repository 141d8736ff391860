"""What a VM takes of the host's memory: the first one, each further one; what a container that freed memory keeps."""

from __future__ import annotations

import os
import time

from bench.results import Curve, Figure
from bench.runner import Bench
from bench.vms import guest_mib, process_mib, vm_of

FAMILY = "memory"
_MAX = 20
_USED_MIB = 500
_BACK_SECONDS = 20.0


def run(bench: Bench) -> None:
    """All figures of the family."""
    _idle_vms(bench)
    _given_back(bench)


def _idle_vms(bench: Bench) -> None:
    count = 4 if bench.quick else _MAX
    ids: list[str] = []
    totals: list[tuple[float, float]] = []
    guests: list[tuple[float, float]] = []
    free = [_available_mib()]
    try:
        for number in range(1, count + 1):
            ids.append(bench.launch(bench.runvm, bench.bundle("sleep", "1000")))
            if number in (1, 2, 3, 5, 10, 15, count):
                time.sleep(3)
                vms = [vm_of(bench, cid) for cid in ids]
                guest = sum(guest_mib(vm) for vm in vms)
                totals.append((number, guest + sum(sum(process_mib(vm).values()) for vm in vms)))
                guests.append((number, guest))
                free.append(_available_mib())
                bench.say(f"{FAMILY}: {number} VMs take {totals[-1][1]:.0f} MiB, their guests {guest:.0f} MiB of it")
        shares = process_mib(vm_of(bench, ids[-1])) | {"guest": guest_mib(vm_of(bench, ids[-1]))}
    finally:
        for cid in ids:
            bench.delete(bench.runvm, cid)
    bench.curves.append(Curve(f"{FAMILY}: idle VMs", "VMs", "MiB", {"all": totals, "of it the guests'": guests}))
    how = "guests' memory files, and PSS and page tables of all processes of all VMs"
    first = totals[0][1]
    bench.add(Figure(FAMILY, "memory of the first idle VM, MiB", first, "MiB", how))
    further = (totals[-1][1] - first) / (count - 1)
    parts = {label: [mib] for label, mib in shares.items()}
    bench.add(
        Figure(
            FAMILY,
            "unique memory of each further idle VM (everything counted), MiB",
            further,
            "MiB",
            f"the same: ({count} VMs - 1 VM) / {count - 1}; the medians are the last VM's parts",
            80,
            parts,
            sample_unit="MiB",
        )
    )
    value = (free[1] - free[-1]) / (count - 1)
    how = f"MemAvailable's fall from 1 VM to {count}, by {count - 1}: caches and other work count as well"
    bench.add(Figure(FAMILY, "the same, by the host's available memory, MiB", value, "MiB", how))


def _given_back(bench: Bench) -> None:
    script = (
        f"dd if=/dev/zero of=/dev/shm/big bs=1M count={_USED_MIB} 2>/dev/null; echo full >/tmp/step;"
        " while [ ! -e /tmp/free ]; do sleep 0.1; done; rm /dev/shm/big; sleep 1000"
    )
    bundle = bench.bundle("sh", "-c", script)
    bundle.config["annotations"] = {"io.runvm.memory_mib": "1024"}
    for mount in bundle.config["mounts"]:
        if mount["destination"] == "/dev/shm":
            mount["options"] = ["nosuid", "noexec", "nodev", "mode=1777", f"size={_USED_MIB + 50}m"]
    bundle.save()
    small = bench.bundle("sleep", "1000")
    small.config["annotations"] = dict(bundle.config["annotations"])
    small.save()
    idle = bench.launch(bench.runvm, small)
    before = guest_mib(vm_of(bench, idle))
    bench.delete(bench.runvm, idle)
    cid = bench.launch(bench.runvm, bundle)
    try:
        vm = vm_of(bench, cid)
        deadline = time.monotonic() + 60
        while not os.path.exists(f"{bundle.rootfs}/tmp/step") and time.monotonic() < deadline:
            time.sleep(0.1)
        peak = guest_mib(vm)
        with open(f"{bundle.rootfs}/tmp/free", "w", encoding="ascii"):
            pass
        deadline = time.monotonic() + _BACK_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1)
        after = guest_mib(vm)
    finally:
        bench.delete(bench.runvm, cid)
    samples = {"idle": [before], "with 500 MiB used": [peak], "20 s after it freed them": [after]}
    value = (peak - after) / (peak - before) * 100
    name = f"of {_USED_MIB} MiB that a container used and freed, the host has back, %"
    how = f"(peak - {_BACK_SECONDS:.0f} s after) / (peak - idle) of the guest's memory file"
    bench.add(Figure(FAMILY, name, value, "%", how, None, samples, sample_unit="MiB", higher_is_better=True))


def _available_mib() -> float:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("MemAvailable"))
