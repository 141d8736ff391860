"""linux.resources.blockIO as lines of the cgroup's files."""

from __future__ import annotations

from runvm.cgroup import blkio
from runvm.cgroup.blkio import Write

DEVICE = {"major": 8, "minor": 16}
BLOCK_IO = {
    "weight": 300,
    "weightDevice": [{**DEVICE, "weight": 500}],
    "throttleReadBpsDevice": [{**DEVICE, "rate": 1024}],
    "throttleWriteIOPSDevice": [{**DEVICE, "rate": 0}],
}


def test_version_1() -> None:
    """A file for each limit; a weight only where the kernel has such a file."""
    assert blkio.writes(BLOCK_IO, v2=False) == [
        Write("blkio.bfq.weight", "300", False),
        Write("blkio.weight", "300", False),
        Write("blkio.bfq.weight_device", "8:16 500", False),
        Write("blkio.throttle.read_bps_device", "8:16 1024", True),
        Write("blkio.throttle.write_iops_device", "8:16 0", True),
    ]


def test_version_2() -> None:
    """io.max takes all limits; 10 to 1000 becomes 1 to 10000."""
    assert blkio.writes(BLOCK_IO, v2=True) == [
        Write("io.bfq.weight", "300", False),
        Write("io.weight", f"default {1 + 290 * 9999 // 990}", False),
        Write("io.bfq.weight", "8:16 500", False),
        Write("io.max", "8:16 rbps=1024", True),
        Write("io.max", "8:16 wiops=max", True),
    ]


def test_nothing_is_nothing() -> None:
    """Docker sends a weight of 0 with every update."""
    assert blkio.writes({"weight": 0, "weightDevice": None}, v2=True) == []
