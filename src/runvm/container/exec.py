"""`exec`: a further process in a running container."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from runvm.container import environment, guest_spec, interrupts, passed, shim, state, terminal
from runvm.container.launching import Launch
from runvm.errors import StateError
from runvm.linux import process, syscalls
from runvm.log import log
from runvm.oci import rules
from runvm.protocol import messages, names
from runvm.sandbox import cpu_limits, registry

if TYPE_CHECKING:
    from typing import Any

    from runvm.container.context import Context
    from runvm.container.gate import StartedShim
    from runvm.container.options import ExecOptions
    from runvm.container.state import ContainerRecord


_PAUSED_SECONDS = 0.05
"""How often a paused container is looked at by who waits for its resume."""


def base_process(ctx: Context, cid: str) -> dict[str, Any]:
    """The process object of the container's config.json, as it was at its `create`. Raises RunvmError."""
    state.load(ctx, cid)
    return state.load_config(ctx, cid).get("process") or {}


def exec_process(ctx: Context, cid: str, options: ExecOptions, *, outside: bool = False) -> int:
    """The process's exit code, or 0 once it runs detached; *outside*, it runs in the VM beside the agent.

    Raises: StateError unless the container runs, GuestError.
    """
    with interrupts.caught():
        pid, master = _launch(ctx, cid, options, outside=outside)
        if options.detach:
            return 0
        from runvm.container.run import wait_foreground

        log.debug("exec: shim released")
        interrupts.forward(pid)
        return wait_foreground(pid, master)


def _launch(ctx: Context, cid: str, options: ExecOptions, *, outside: bool) -> tuple[int, int]:
    """Pid of the shim, and the master of the terminal, or -1. See exec_process."""
    with ExitStack() as held:
        with interrupts.raising():
            launch, started = _begin(ctx, cid, options, held, outside=outside)
        master = launch.release(
            started, console_socket=options.console_socket, pid_file=options.pid_file, pidfd_socket=options.pidfd_socket
        )
    return started.pid, master


def _begin(
    ctx: Context, cid: str, options: ExecOptions, held: ExitStack, *, outside: bool
) -> tuple[Launch, StartedShim]:
    """The process in the guest, and its shim at its gate."""
    record = _ready(ctx, cid, paused=outside, wait=options.ignore_paused)
    for warning in rules.capability_warnings(options.process):
        log.warning(warning)
    guest_spec.note_affinity(options.process)
    described = guest_spec.with_limits(guest_spec.without_hosts(options.process))
    if not outside:
        uid = int((described.get("user") or {}).get("uid") or 0)
        described["env"] = environment.complete(described.get("env") or (), environment.home_of(record.pid, uid))
    wants_terminal = bool(described.get("terminal"))
    terminal.check(wants_terminal, options.console_socket, own=not options.detach)
    size = described.get("consoleSize") or {}
    rows, columns = int(size.get("height") or 0), int(size.get("width") or 0)
    if wants_terminal and not options.detach:  # as in plans.plan()
        described[names.PLAIN_NEWLINES] = True
        if not (rows and columns):
            rows, columns = terminal.callers_size()
    handed = passed.inspect(options.preserve_fds)
    if not options.detach:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
    key = os.urandom(8).hex()
    namespaces = shim.Namespaces(0, (), -1 if outside else _pid_namespace(record, held), False)
    console_size = (rows, columns) if wants_terminal else None
    held.enter_context(cpu_limits.lifted(sandbox))
    if not outside:
        cpu_limits.begin(sandbox, cid)  # in a container that hasn't been started yet, too
    launch = Launch(sandbox, cid, key, held, console_size=console_size)
    request = messages.ExecProcess(cid, key, described, options.cgroup, rows, columns, list(handed.ways), outside)
    # the guest begins while the shim is made; should that fail, the supervisor ends what the guest has made
    with registry.begin(sandbox, request) as asked:
        try:
            started = launch.start(
                title=[str(word) for word in described.get("args", [])],
                namespaces=namespaces,
                cgroup_procs=tuple(f"{directory}/cgroup.procs" for directory in record.cgroups),
                view=None,
                last=False,
                passed=handed,
                oom_score=described.get("oomScoreAdj"),
                waits=not options.detach,
            )
        except OSError:
            if process.alive(record.shim):
                raise
            raise StateError("cannot exec in a stopped container") from None
        log.debug("exec: shim started")
        try:
            registry.finish(asked, request)
        except BaseException:
            os.close(started.gate)
            raise
    log.debug("exec: process started in the guest")
    return launch, started


def _ready(ctx: Context, cid: str, *, paused: bool, wait: bool) -> ContainerRecord:
    """The container, once it can take a process: not while it is *paused*, unless that is all the same. To *wait* for
    its resume has no deadline, as under runc, whose process would hang in the frozen cgroup. Raises StateError."""
    while True:
        record = state.load(ctx, cid)
        if record.pid == 0:
            raise StateError("cannot exec in a stopped container")
        if record.status != "paused" or paused:
            return record
        if not wait:
            do = f"resume it by 'runvm resume {cid}'"
            raise StateError("cannot exec in a paused container (use --ignore-paused to override)", do=do)
        time.sleep(_PAUSED_SECONDS)


def _pid_namespace(record: ContainerRecord, held: ExitStack) -> int:
    """The container's on the host: what its own process takes with it when it ends. *held* closes the descriptor.

    Raises: StateError where that has ended.
    """
    try:
        fd = process.open_namespace(record.shim, "pid")
    except OSError:
        raise StateError("cannot exec in a stopped container") from None
    held.callback(os.close, fd)
    return fd
