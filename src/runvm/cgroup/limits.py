"""What a container's limits are for its virtual machine's processes on the host."""

from __future__ import annotations

from typing import Any

from runvm.records import NamedTuple

UNLIMITED = 1 << 50
"""Memory limits beyond this many bytes mean none (engines write the largest page-aligned number)."""
NONE = -1
"""A limit of memory or CPU time that is given as none: one that there was before goes."""
DEFAULT_SHARES = 1024
"""cpu.shares of a cgroup that nobody gave any (kernel's sched-design-CFS.rst)."""
DEFAULT_WEIGHT = 100
"""cpu.weight likewise (kernel's cgroup-v2.rst)."""
_VMM_MIB = 256
"""What the processes around the guest's RAM may take: VMM, virtiofsd, supervisor and shims."""


_VMM_CPU_SHARE = 20
"""They, the guest's kernel and its agent may take 1/20 of a processor, and 1/20 of the container's quota. Without it an
emulated guest, which doesn't know of the time that the host withholds, would count that as its container's use, and
hold the container to a fraction of its quota."""


class Limits(NamedTuple):
    """What a container's VM may take on the host, bytes and microseconds; 0 = not given, NONE = no limit."""

    memory: int
    quota: int
    period: int
    shares: int

    @property
    def weight(self) -> int:
        """The shares as cgroup v2 has them."""
        return weight_of(self.shares)


def weight_of(shares: int) -> int:
    """cpu.weight of cgroup v2 for cpu.shares of v1, as runc has it since 1.3.3 and 1.4: a curve through the least, the
    default and the greatest of both (2 and 1, 1024 and 100, 262144 and 10000)."""
    import math

    power = math.log2(max(2, min(shares, 262144)))
    return math.ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))


def host_limits(resources: dict[str, Any], *, overhead_mib: int) -> Limits:
    """By the container's own limits, with what the VM itself takes on top: of memory *overhead_mib* (the guest's) and
    _VMM_MIB, of processor time _VMM_CPU_SHARE."""
    memory = resources.get("memory", {}).get("limit") or 0
    if memory:
        memory = memory + ((overhead_mib + _VMM_MIB) << 20) if 0 < memory < UNLIMITED else NONE
    cpu = resources.get("cpu", {})
    quota, period = max(NONE, cpu.get("quota") or 0), cpu.get("period") or 100_000
    return Limits(
        memory=memory,
        quota=quota + (quota + period) // _VMM_CPU_SHARE if quota > 0 else quota,
        period=period,
        shares=cpu.get("shares") or 0,
    )
