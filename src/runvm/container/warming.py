"""What `start` leaves behind where a container asks for warm starts and is the first: a process that waits until it is
ready, and takes the checkpoint that later ones go on from."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from runvm.cgroup.cgroup import Cgroup
from runvm.checkpoint import warmed
from runvm.container import stats, wishes
from runvm.container.checkpoint import CheckpointOptions, checkpoint
from runvm.errors import HostError, NotRunningError, RunvmError, UnsupportedError
from runvm.linux import process, syscalls
from runvm.log import log
from runvm.protocol import messages
from runvm.sandbox import registry

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.container.context import Context
    from runvm.container.state import ContainerRecord
    from runvm.container.wishes import Wish
    from runvm.sandbox.registry import Sandbox

_READY_SECONDS = 1800.0
"""How long a program may take until it is ready, beside the quiet that was asked for."""
_LOOK_SECONDS = 0.2
_AGAIN_SECONDS = 2.0
"""Until a checkpoint is tried again that couldn't be taken at that moment."""
_TRIES = 30
_BUSY = 0.02
"""The part of a processor's time that a quiet program may still use."""


def begin(ctx: Context, record: ContainerRecord) -> None:
    """Leave that process behind."""
    process.orphan(lambda: _main(ctx, record))


def _main(ctx: Context, record: ContainerRecord) -> None:
    sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
    try:
        _settle(sandbox, record)
        with warmed.making(ctx.config, record.warm) as wanted:
            if wanted:
                _make(ctx, sandbox, record)
    except (RunvmError, OSError) as error:
        log.warning(f"container {record.id} isn't kept for warm starts: {error}")
    os._exit(0)


def _settle(sandbox: Sandbox, record: ContainerRecord) -> None:
    """Have nothing of the command's, whose caller may wait for the end of its streams, and end with the container."""
    process.join_cgroups(Cgroup(record.cgroups).procs)
    os.setsid()
    syscalls.set_name("runvm-warm")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    out = os.open(f"{sandbox.directory}/supervisor.log", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    process.redirect(out)
    process.close_above(2)
    log.keep_to_stderr()
    os.chdir("/")


def _make(ctx: Context, sandbox: Sandbox, record: ContainerRecord) -> None:
    """Raises RunvmError, OSError."""
    wanted = wishes.read(record.annotations)
    _await_ready(sandbox, record, wanted)
    options = CheckpointOptions(warmed.directory(ctx.config, record.warm), leave_running=True, layer=record.upper)
    for left in reversed(range(_TRIES)):
        try:
            checkpoint(ctx, record.id, options)
            break
        except (HostError, UnsupportedError):
            raise
        except RunvmError as error:  # execs run, say, as a health check does now and then
            if left == 0 or not process.alive(record.shim):
                raise
            log.debug(f"warm: tried again: {error}")
        time.sleep(_AGAIN_SECONDS)
    os.sync()  # the layer's files
    warmed.trim(ctx.config)


def _await_ready(sandbox: Sandbox, record: ContainerRecord, wanted: Wish) -> None:
    """Raises NotRunningError where it ends before, RunvmError."""
    deadline = time.monotonic() + _READY_SECONDS + wanted.quiet_s
    is_ready = _sign(sandbox, record.id, wanted)
    while time.monotonic() < deadline:
        if not process.alive(record.shim):
            raise NotRunningError()
        if is_ready():
            return
        time.sleep(_LOOK_SECONDS)
    raise RunvmError(f"it wasn't ready within {_READY_SECONDS:.0f} s")


def _sign(sandbox: Sandbox, cid: str, wanted: Wish) -> Callable[[], bool]:
    """What tells whether the container is ready; it raises RunvmError."""
    if wanted.path:
        return lambda: registry.call(sandbox, messages.FindFile(cid, wanted.path)).get("there") is True
    if wanted.quiet_s:
        return _Quiet(sandbox, cid, wanted.quiet_s).lasted
    return lambda: cid in registry.call(sandbox, messages.Status())["healthy"]


class _Quiet:
    """Whether a container has hardly used the processor for so many *seconds*."""

    def __init__(self, sandbox: Sandbox, cid: str, seconds: int) -> None:
        self._sandbox = sandbox
        self._cid = cid
        self._seconds = seconds
        self._since = time.monotonic()
        self._used = 0.0

    def lasted(self) -> bool:
        """Look once more."""
        now = time.monotonic()
        used = stats.cpu_seconds(registry.call(self._sandbox, messages.Stats(self._cid)))
        if used - self._used > _BUSY * self._seconds:
            self._since, self._used = now, used
        return now - self._since >= self._seconds
