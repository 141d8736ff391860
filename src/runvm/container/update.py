"""`update`: other limits for a container that lives, in the guest and around the VMM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runvm.container import guest_spec, state
from runvm.errors import NotRunningError
from runvm.protocol import messages
from runvm.sandbox import registry
from runvm.sandbox.resources import Cgroup

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
        registry.call(registry.locate(ctx.config.state_dir, record.sandbox), messages.Update(cid, guests))
        Cgroup(record.cgroups).limit(resources, overhead_mib=ctx.config.overhead_mib)
