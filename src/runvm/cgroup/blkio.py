"""linux.resources.blockIO in the container's cgroup on the host: the daemon that serves its files does the I/O."""

from __future__ import annotations

from typing import Any

from runvm.records import NamedTuple

_RATES = (
    # OCI's name, the file of cgroup v1, the key in io.max of v2 (kernel's blkio-controller.rst and cgroup-v2.rst)
    ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops"),
)


class Write(NamedTuple):
    """A line for a file of the cgroup. One that isn't *required* is left out where the kernel has no such file: weights
    depend on the device's scheduler."""

    file: str
    text: str
    required: bool


def writes(block_io: dict[str, Any], *, v2: bool) -> list[Write]:
    """What an OCI blockIO object is in files of cgroup v1 or v2; 0 is a weight that isn't set."""
    found = []
    if weight := block_io.get("weight"):
        found.append(Write("io.bfq.weight" if v2 else "blkio.bfq.weight", str(weight), False))
        # 10–1000 as 1–10000: the conversion that the OCI runtimes share (crun's documentation of cgroup v2)
        other = ("io.weight", f"default {1 + (weight - 10) * 9999 // 990}") if v2 else ("blkio.weight", str(weight))
        found.append(Write(*other, False))
    for device in block_io.get("weightDevice") or ():
        if weight := device.get("weight"):
            line = f"{device['major']}:{device['minor']} {weight}"
            found.append(Write("io.bfq.weight" if v2 else "blkio.bfq.weight_device", line, False))
    for name, file, key in _RATES:
        for device in block_io.get(name) or ():
            number, rate = f"{device['major']}:{device['minor']}", device["rate"]
            if v2:
                found.append(Write("io.max", f"{number} {key}={rate or 'max'}", True))  # 0 lifts the limit
            else:
                found.append(Write(file, f"{number} {rate}", True))
    return found
