"""`pause` and `resume`: the guest's cgroup freezer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.container import state
from runvm.errors import DeadlineError, RunvmError, StateError
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.container.state import ContainerRecord
    from runvm.sandbox.registry import Sandbox


def pause(ctx: Context, cid: str) -> None:
    """Raises: StateError unless the container runs, HostError, GuestError, DeadlineError, VersionError."""
    with state.lock(ctx, cid):
        record = state.load(ctx, cid)
        if record.status not in ("running", "created"):
            raise StateError("container not running")
        registry.connect(_sandbox(ctx, record)).close()  # another version's record isn't written anew
        # written down first: should this be killed half-way, or the guest be late, `resume` mends it
        state.save(ctx, record._replace(paused=True))
        try:
            _freeze(ctx, record, frozen=True)
        except DeadlineError:
            raise
        except RunvmError:
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
    sandbox = _sandbox(ctx, record)
    with cpu_limits.lifted(sandbox):
        registry.call(sandbox, messages.Freeze(record.id, frozen))


def _sandbox(ctx: Context, record: ContainerRecord) -> Sandbox:
    return registry.locate(ctx.config.state_dir, record.sandbox)
