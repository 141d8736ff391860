"""`kill`: a signal to a container's init, or to all of its processes."""

from __future__ import annotations

from signal import SIGKILL
from typing import TYPE_CHECKING

from runvm.container import state
from runvm.errors import NOT_RUNNING, GuestError, NotRunningError, VersionError
from runvm.linux import process
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from runvm.container.context import Context


def kill(ctx: Context, cid: str, signal: int, *, all: bool) -> None:
    """Raises: NotRunningError, ContainerNotFoundError, GuestError, DeadlineError. With *all* a stopped container is no
    error (runc)."""
    record = state.load(ctx, cid)
    if record.pid == 0:
        if all:
            return
        raise NotRunningError()
    sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
    try:
        with cpu_limits.lifted(sandbox):
            registry.call(sandbox, messages.Signal(cid, 0, signal, all))
    except VersionError:
        process.kill(record.shim, signal)  # the process that stands for it on the host passes signals on
    except (NotRunningError, GuestError) as error:
        if isinstance(error, NotRunningError) and signal == SIGKILL and process.kill(record.shim, signal):
            return  # its virtual machine has ended, and it waits for somebody to take the last of its output
        if not all or error.message.partition(":")[0] != NOT_RUNNING:
            raise
