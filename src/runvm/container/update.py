"""`update`: other limits for a container that lives, in the guest and around the VMM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runvm.cgroup.cgroup import Cgroup
from runvm.cgroup.limits import host_limits
from runvm.container import guest_spec, new_limits, state, vm_use
from runvm.container.stats import memory_use
from runvm.errors import DeadlineError, GuestError, NotRunningError, RunvmError, StateError
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.sandbox.registry import Sandbox


def update(ctx: Context, cid: str, resources: dict[str, Any]) -> None:
    """Apply an OCI resources object. A guest that refuses it keeps no lower limit from the host. Raises
    NotRunningError, StateError for a memory limit below what is in use, GuestError, DeadlineError."""
    with state.lock(ctx, cid):
        record = state.load(ctx, cid)
        if record.pid == 0:
            raise NotRunningError()
        sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
        kept = {**_configured(ctx, cid), **cpu_limits.of(sandbox, cid)}
        resources = new_limits.complete(resources, kept)
        guests = guest_spec.resources(resources)
        guests.pop("devices", None)
        overhead_mib, cgroup = ctx.config.overhead_mib, Cgroup(record.cgroups)
        with cpu_limits.lifted(sandbox):
            failure = _tell_guest(sandbox, cid, guests)
            if failure is not None:
                resources = new_limits.without_guest(resources, kept, cgroup, overhead_mib=overhead_mib)
            cpu_limits.change(sandbox, cid, record.cgroups, resources.get("cpu", {}), begun=record.started)
        if record.scope:
            from runvm.cgroup import scope

            host = host_limits(resources, overhead_mib=overhead_mib)
            scope.change(record.scope, host if record.started else host._replace(quota=0, shares=0))
        cgroup.limit(resources, overhead_mib=overhead_mib)
        cpu_limits.settle(sandbox)
    if failure is not None:
        raise failure


def _configured(ctx: Context, cid: str) -> dict[str, Any]:
    """linux.resources.cpu of config.json; each of these may be null."""
    found = state.load_config(ctx, cid)
    for key in ("linux", "resources", "cpu"):
        found = found.get(key) or {}
    return found


def _tell_guest(sandbox: Sandbox, cid: str, resources: dict[str, Any]) -> RunvmError | None:
    """Have the guest enforce its part; what it answers if it doesn't. Raises NotRunningError, StateError."""
    limit = resources.get("memory", {}).get("limit") or 0
    try:
        if limit > 0:
            _check_memory(sandbox, registry.call(sandbox, messages.Stats(cid)), limit)
        registry.call(sandbox, messages.Update(cid, resources))
    except (GuestError, DeadlineError) as error:
        return error
    return None


def _check_memory(sandbox: Sandbox, files: dict[str, str], limit: int) -> None:
    """A limit below what is in use and can't be freed would be met by killing; cgroups of version 1, and so runc there,
    refuse it. A guest that says it uses more than its virtual machine has is not believed. Raises StateError with
    runc's message."""
    use = memory_use(files)
    if limit < use.needed and limit < vm_use.of_vm(sandbox, 0, 0)["memory"]["total"]:
        raise StateError(
            f"unable to set memory limit to {limit} (current usage: {use.current}, peak usage: {use.peak})"
        )
