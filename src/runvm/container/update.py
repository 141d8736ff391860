"""`update`: other limits for a container that lives, in the guest and around the VMM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runvm.cgroup.cgroup import Cgroup
from runvm.cgroup.limits import host_limits
from runvm.container import guest_spec, state
from runvm.container.stats import memory_use
from runvm.errors import GuestError, NotRunningError
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from runvm.container.context import Context


def update(ctx: Context, cid: str, resources: dict[str, Any]) -> None:
    """Apply an OCI resources object. Raises NotRunningError, GuestError."""
    with state.lock(ctx, cid):
        record = state.load(ctx, cid)
        if record.pid == 0:
            raise NotRunningError()
        guests = guest_spec.resources(resources)
        guests.pop("devices", None)
        sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
        limit = guests.get("memory", {}).get("limit") or 0
        with cpu_limits.lifted(sandbox):
            if limit > 0:
                _check_memory(registry.call(sandbox, messages.Stats(cid)), limit)
            registry.call(sandbox, messages.Update(cid, guests))
            cpu_limits.change(sandbox, cid, record.cgroups, resources.get("cpu", {}), begun=record.started)
        if record.scope:
            from runvm.cgroup import scope

            host = host_limits(resources, overhead_mib=ctx.config.overhead_mib)
            scope.change(record.scope, host if record.started else host._replace(quota=0, shares=0))
        Cgroup(record.cgroups).limit(resources, overhead_mib=ctx.config.overhead_mib)
        cpu_limits.settle(sandbox)


def _check_memory(files: dict[str, str], limit: int) -> None:
    """A limit below what is in use and can't be freed would be met by killing; cgroups of version 1, and so runc there,
    refuse it. Raises GuestError with runc's message."""
    use = memory_use(files)
    if limit < use.needed:
        raise GuestError(
            f"unable to set memory limit to {limit} (current usage: {use.current}, peak usage: {use.peak})"
        )
