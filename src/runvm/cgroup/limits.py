"""What a container's limits are for its virtual machine's processes on the host."""

from __future__ import annotations

from typing import Any, NamedTuple

UNLIMITED = 1 << 50
"""Memory limits beyond this many bytes mean none (engines write the largest page-aligned number)."""
_VMM_MIB = 256
"""What the processes around the guest's RAM may take: VMM, virtiofsd, supervisor and shims."""


class Limits(NamedTuple):
    """What a container's VM may take on the host, bytes and microseconds; 0 = no limit, or none that is given."""

    memory: int
    quota: int
    period: int
    shares: int

    @property
    def weight(self) -> int:
        """The shares as cgroup v2 has them (the conversion that crun's and runc's documentation give)."""
        return 1 + (max(2, min(self.shares, 262144)) - 2) * 9999 // 262142


def host_limits(resources: dict[str, Any], *, overhead_mib: int) -> Limits:
    """By the container's own limits; memory gets *overhead_mib* (the guest's) and _VMM_MIB on top."""
    memory = resources.get("memory", {}).get("limit") or 0
    cpu = resources.get("cpu", {})
    return Limits(
        memory=memory + ((overhead_mib + _VMM_MIB) << 20) if 0 < memory < UNLIMITED else 0,
        quota=max(0, cpu.get("quota") or 0),
        period=cpu.get("period") or 100_000,
        shares=cpu.get("shares") or 0,
    )
