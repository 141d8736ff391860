"""`kill`: a signal to a container's init, or to all of its processes."""

from __future__ import annotations

from signal import SIGKILL
from typing import TYPE_CHECKING

from runvm.container import state
from runvm.errors import NOT_RUNNING, DeadlineError, GuestError, NotRunningError, VersionError
from runvm.linux import process
from runvm.log import log
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from runvm.container.context import Context


_KILL_SECONDS = 20.0
"""How long a supervisor may take to answer a SIGKILL: longer than it waits for its guest, after which it ends that."""


def kill(ctx: Context, cid: str, signal: int, *, all: bool) -> None:
    """Raises: NotRunningError, ContainerNotFoundError, GuestError, DeadlineError. With *all* a stopped container is no
    error (runc), nor with SIGKILL one that ends meanwhile."""
    record = state.load(ctx, cid)
    if record.pid == 0:
        if all:
            return
        raise NotRunningError()
    sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
    timeout = _KILL_SECONDS if signal == SIGKILL else registry.ANSWER_SECONDS
    try:
        with cpu_limits.lifted(sandbox):
            registry.call(sandbox, messages.Signal(cid, 0, signal, all), timeout=timeout)
    except VersionError:
        process.kill(record.shim, signal)  # the process that stands for it on the host passes signals on
    except DeadlineError as error:
        # its supervisor hangs: with this process the container has ended for the host, and for the guest once it can
        if signal != SIGKILL:
            raise
        process.kill(record.shim, signal)
        log.warning(str(error))
    except (NotRunningError, GuestError) as error:
        if error.message.partition(":")[0] != NOT_RUNNING or not all and signal != SIGKILL:
            raise
        if isinstance(error, NotRunningError) and signal == SIGKILL:
            # its virtual machine has ended, maybe by this; it may wait for somebody to take the last of its output
            process.kill(record.shim, signal)
