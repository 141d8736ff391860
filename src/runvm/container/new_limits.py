"""What `update` makes of new limits: completed by what holds already, and what of them holds on the host where the
guest doesn't take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runvm.cgroup.limits import DEFAULT_SHARES, host_limits

if TYPE_CHECKING:
    from runvm.cgroup.cgroup import Cgroup

_LEAST_US, _GREATEST_PERIOD_US = 1000, 1_000_000
"""What a kernel takes as quota and period (kernel's sched-bwc.rst)."""
_LEAST_SHARES = 2


def complete(resources: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """An OCI resources object in which a quota has a period and a period a quota: the one that isn't given is that of
    *kept* (of a `cpu` object), as under runc. The guest's runtime would take its default for it."""
    cpu = resources.get("cpu", {})
    for given, missing in (("quota", "period"), ("period", "quota")):
        if cpu.get(given) and not cpu.get(missing) and kept.get(missing):
            return {**resources, "cpu": {**cpu, missing: kept[missing]}}
    return resources


def without_guest(
    resources: dict[str, Any], kept: dict[str, Any], cgroup: Cgroup, *, overhead_mib: int
) -> dict[str, Any]:
    """What of *resources* holds around the virtual machine though the guest doesn't take it: what is lower than what
    is *kept* (of a `cpu` object) or than *cgroup* has, and what is the host's alone. More is not given: the container
    may not be able to use it, and a value that no kernel takes would end the limit that there is."""
    cpu = resources.get("cpu", {})
    found = {key: cpu[key] for key in ("cpus", "mems") if cpu.get(key)}
    quota, period = cpu.get("quota") or 0, cpu.get("period") or 100_000
    had = (kept.get("quota") or 0) / (kept.get("period") or 100_000)
    if quota >= _LEAST_US and _LEAST_US <= period <= _GREATEST_PERIOD_US and (had <= 0 or quota / period < had):
        found |= {"quota": quota, "period": period}
    if _LEAST_SHARES <= (cpu.get("shares") or 0) < (kept.get("shares") or DEFAULT_SHARES):
        found["shares"] = cpu["shares"]
    lower: dict[str, Any] = {"cpu": found}
    if "blockIO" in resources:
        lower["blockIO"] = resources["blockIO"]
    before, needed = cgroup.memory()
    memory = host_limits(resources, overhead_mib=overhead_mib).memory
    if memory and needed <= memory < before:
        lower["memory"] = resources["memory"]
    return lower
