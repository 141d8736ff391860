"""`exec`: a further process in a running container."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING

from runvm.container import guest_spec, passed, shim, state, terminal
from runvm.container.create import write_pid_file
from runvm.errors import RunvmError, StateError, words
from runvm.linux import syscalls
from runvm.log import log
from runvm.oci import rules
from runvm.protocol import frames, messages
from runvm.sandbox import registry

if TYPE_CHECKING:
    from typing import Any

    from runvm.container.context import Context
    from runvm.container.options import ExecOptions


def base_process(ctx: Context, cid: str) -> dict[str, Any]:
    """The process object of the container's config.json. Raises RunvmError."""
    from runvm.oci import spec as oci

    record = state.load(ctx, cid)
    try:
        found: dict[str, Any] = json.loads(oci.read_bounded(record.config_path)).get("process") or {}
    except OSError as error:
        raise RunvmError(f"{record.config_path}: {words(error)}") from error
    except ValueError as error:
        raise RunvmError(f"{record.config_path}: {error}") from error
    return found


def exec_process(ctx: Context, cid: str, options: ExecOptions, *, outside: bool = False) -> int:
    """The process's exit code, or 0 once it runs detached; *outside*, it runs in the VM beside the agent.

    Raises: StateError unless the container runs, GuestError.
    """
    record = state.load(ctx, cid)
    if record.pid == 0:
        raise StateError("cannot exec in a stopped container")
    if record.status == "paused" and not outside:
        raise StateError("cannot exec in a paused container", do=f"runvm resume {cid}")
    for warning in rules.capability_warnings(options.process):
        log.warning(warning)
    described = guest_spec.with_limits(guest_spec.without_labels(options.process))
    wants_terminal = bool(described.get("terminal"))
    terminal.check(wants_terminal, options.console_socket, own=not options.detach)
    handed = passed.inspect(options.preserve_fds)
    if not options.detach:
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
    key = os.urandom(8).hex()
    size = described.get("consoleSize") or {}
    rows, columns = int(size.get("height") or 0), int(size.get("width") or 0)
    master = slave = -1
    if wants_terminal:
        master, slave = terminal.open_pair(rows, columns)
    execs = -1
    if not outside:
        execs = state.execs(ctx, cid)
        try:
            fcntl.flock(execs, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # its process is ending, which waits for no more of them
            raise StateError("cannot exec in a stopped container") from None
    with registry.connect(sandbox) as connection:
        connection.sendall(frames.encode(frames.MESSAGE, 0, messages.encode(messages.Attach(cid, key))))
        enter = messages.Enter(cid, key, described, options.cgroup, rows, columns, list(handed.ways), outside)
        # the guest begins while the shim is made; should that fail, the supervisor ends what the guest has made
        with registry.begin(sandbox, enter) as asked:
            started = shim.start(
                shim.Plan(
                    title=" ".join(str(word) for word in described.get("args", [])),
                    namespaces=shim.Namespaces(0, (), -1, False),
                    cgroup_procs=tuple(f"{directory}/cgroup.procs" for directory in record.cgroups),
                    terminal=slave,
                    rootfs="",
                    connection=connection.fileno(),
                    execs=execs,
                    last=False,
                    passed=handed,
                    oom_score=described.get("oomScoreAdj"),
                )
            )
            connection.close()
            if execs >= 0:
                os.close(execs)
            log.debug("exec: shim started")
            try:
                registry.finish(asked, enter)
            except RunvmError:
                os.close(started.gate)
                raise
    log.debug("exec: process started in the guest")
    shim.release(started)
    if slave >= 0:
        os.close(slave)
    if wants_terminal and options.console_socket:
        terminal.send(options.console_socket, master)
        os.close(master)
        master = -1
    if options.pid_file:
        write_pid_file(options.pid_file, started.pid)
    if options.detach:
        return 0
    from runvm.container.run import wait_foreground

    log.debug("exec: shim released")
    return wait_foreground(started.pid, master)
