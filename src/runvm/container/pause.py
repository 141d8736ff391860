"""`pause` and `resume`: the guest's cgroup freezer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.container import state
from runvm.errors import StateError
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from runvm.container.context import Context


def pause(ctx: Context, cid: str) -> None:
    """Raises: StateError unless the container runs."""
    _freeze(ctx, cid, frozen=True)


def resume(ctx: Context, cid: str) -> None:
    """Raises: StateError unless the container is paused."""
    _freeze(ctx, cid, frozen=False)


def _freeze(ctx: Context, cid: str, *, frozen: bool) -> None:
    with state.lock(ctx, cid):
        record = state.load(ctx, cid)
        if frozen and record.status not in ("running", "created"):
            raise StateError("container not running")
        if not frozen and record.status != "paused":
            raise StateError("container not paused")
        sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
        with cpu_limits.lifted(sandbox):
            registry.call(sandbox, messages.Freeze(cid, frozen))
        state.save(ctx, record._replace(paused=frozen))
