"""`run`: create and start; in the foreground also wait, pass signals on, and delete."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from runvm.container import interrupts
from runvm.container.delete import delete
from runvm.container.verbs import create, start
from runvm.errors import RunvmError
from runvm.linux import process, syscalls
from runvm.log import log

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.container.options import CreateOptions


def run(ctx: Context, cid: str, options: CreateOptions, *, detach: bool, keep: bool, no_subreaper: bool) -> int:
    """The container's exit code, or 0 once it runs detached. Raises RunvmError; nothing is left of the container
    then."""
    if not detach:
        # the container's process becomes our child by that, and nobody else could tell its exit code
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    master: list[int] = []
    with interrupts.caught():
        create(ctx, cid, options, terminal_master=None if detach else master)
        if no_subreaper:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)
        try:
            with interrupts.raising():
                start(ctx, cid)
        except BaseException:
            delete(ctx, cid, force=True)
            raise
        return 0 if detach else await_end(ctx, cid, master, keep=keep)


def run_restored(
    ctx: Context, cid: str, options: CreateOptions, image_path: str, *, detach: bool, no_subreaper: bool
) -> int:
    """`restore`: the container's exit code, or 0 once it runs detached. Raises as restore() does."""
    from runvm.container.restore import restore

    if not detach:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    master: list[int] = []
    with interrupts.caught():
        restore(ctx, cid, options, image_path, terminal_master=None if detach else master)
        if no_subreaper:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)
        return 0 if detach else await_end(ctx, cid, master, keep=False)


def await_end(ctx: Context, cid: str, master: list[int], *, keep: bool) -> int:
    """The exit code of a container whose process is our child, with the *master* of its terminal if it has one; it is
    deleted then, unless *keep*."""
    from runvm.container import state

    pid = state.load(ctx, cid).shim.pid
    interrupts.forward(pid)
    code = wait_foreground(pid, master[0] if master else -1)
    log.debug("run: shim ended")
    if not keep:
        try:
            delete(ctx, cid, force=True)
        except RunvmError as error:
            log.warning(str(error))
    return code


def wait_foreground(pid: int, master: int) -> int:
    """Wait for a shim that is our child, passing signals (and with *master*, the terminal) on; its exit code."""
    passed_on = frozenset(range(1, signal.NSIG)).difference(
        # 32 and 33 are the C library's own
        (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGWINCH, 32, 33)
    )
    if master >= 0:
        from runvm.container import terminal

        return process.exit_code(terminal.relay(master, pid, passed_on))
    for number in passed_on:
        signal.signal(number, lambda number, frame: interrupts.send(pid, number))
    return process.exit_code(os.waitpid(pid, 0)[1])
