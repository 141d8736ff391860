"""`pause` and `resume`: the guest's cgroup freezer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.container import state
from runvm.errors import GuestError, NotRunningError, StateError
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.container.state import ContainerRecord


def pause(ctx: Context, cid: str) -> None:
    """Raises: StateError unless the container runs, HostError, GuestError, DeadlineError."""
    with state.lock(ctx, cid):
        record = state.load(ctx, cid)
        if record.status not in ("running", "created"):
            raise StateError("container not running")
        # written down first: should this be killed half-way, or the guest be late, `resume` mends it
        state.save(ctx, record._replace(paused=True))
        try:
            _freeze(ctx, record, frozen=True)
        except (GuestError, NotRunningError):
            state.save(ctx, record)
            raise


def resume(ctx: Context, cid: str) -> None:
    """Raises: StateError unless the container is paused, HostError, GuestError, DeadlineError."""
    with state.lock(ctx, cid):
        record = state.load(ctx, cid)
        if record.status != "paused":
            raise StateError("container not paused")
        written = state.prepare(ctx, record._replace(paused=False))
        _freeze(ctx, record, frozen=False)
        written()


def _freeze(ctx: Context, record: ContainerRecord, *, frozen: bool) -> None:
    sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
    with cpu_limits.lifted(sandbox):
        registry.call(sandbox, messages.Freeze(record.id, frozen))
