"""`delete`: remove a container, and whatever a crash may have left of it."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

from runvm.cgroup.cgroup import Cgroup
from runvm.container import state
from runvm.container.state import ContainerRecord
from runvm.errors import (
    ContainerNotFoundError,
    NotRunningError,
    RunvmError,
    StateError,
    UnsupportedError,
    VersionError,
)
from runvm.linux import files, process, syscalls
from runvm.log import log
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, placement, registry

if TYPE_CHECKING:
    from runvm.container.context import Context

_DELETE_SECONDS = 20.0
"""How long a supervisor may take to forget a container, which it may have to kill."""
_END_SECONDS = 10.0
"""How long a supervisor may take to end, and its VM."""


def delete(ctx: Context, cid: str, *, force: bool) -> None:
    """What a `create` that was killed has left is removed. Raises: StateError for a container that isn't stopped
    (unless *force*), ContainerNotFoundError (not with *force*), also for such a leftover."""
    try:
        lock = state.lock(ctx, cid)
    except ContainerNotFoundError:
        if force:
            return
        raise
    with lock:
        try:
            record = state.load(ctx, cid)
        except ContainerNotFoundError:
            raise
        except RunvmError as error:
            if not force:
                raise
            log.warning(str(error))
            _remove(ctx, cid)
            return
        if record.status == "creating" and not force:
            # who creates it holds its lock, so that one has been killed: there is no such container, as under runc
            clear(ctx, cid)
            raise ContainerNotFoundError()
        if record.status not in ("stopped", "created") and not force:
            raise StateError(f"cannot delete container {cid} that is not stopped: {record.status}")
        config = _config(ctx, cid)
        clear(ctx, cid)
    if config:
        from runvm.container.start import run_hooks

        run_hooks(record._replace(pid=0), config, "poststop", "stopped")


def _config(ctx: Context, cid: str) -> dict[str, Any]:
    try:
        return state.load_config(ctx, cid)
    except RunvmError as error:  # the container has to go all the same
        log.warning(str(error))
        return {}


def clear(ctx: Context, cid: str, *, failed: bool = False) -> None:
    """Take away everything of a container, in whatever state it is; for delete, and for a create that has *failed*.
    Raises DeadlineError."""
    try:
        record = state.load(ctx, cid)
    except RunvmError:
        _remove(ctx, cid)
        return
    ports = _saved_ports(ctx, record)  # its file goes with the VM
    orderly = not record.sandbox or _leave_sandbox(ctx, record)
    process.kill(record.shim, signal.SIGKILL)
    process.wait_gone(record.shim, deadline=time.monotonic() + 5)
    if not record.cgroup_shared:
        _clear_cgroup(ctx, record)
    if not orderly:
        _unwire(ctx, record, ports)
    if failed or not record.complete:
        _take_back(record, state.journal(ctx, cid))
    if not record.complete:
        # its create may have been killed while it booted a guest
        from runvm.hypervisor import proof, template

        template.sweep(ctx.config)
        proof.sweep(ctx.config)
    _remove(ctx, cid)


def _clear_cgroup(ctx: Context, record: ContainerRecord) -> None:
    """Nothing is left in a container's cgroup on the host, nor that itself; unless another container is in it, too."""
    cgroup = Cgroup(record.cgroups)
    if cgroup.processes():
        others = [member for member in placement.all_members(ctx.config) if member.container != record.id]
        if any(set(other.cgroups) & set(record.cgroups) for other in others):
            return
        heir = next((other for other in others if other.sandbox.name == record.sandbox), None)
        if heir is not None:
            cgroup.hand_over(heir.cgroups)  # it may hold the virtual machine, as that of the first container does
        else:
            cgroup.kill()
    cgroup.remove()
    if record.scope:
        from runvm.cgroup import scope

        try:
            scope.stop(record.scope)
        except RunvmError as error:
            log.warning(str(error))


def _take_back(record: ContainerRecord, journal: str) -> None:
    """Take what a warm start has brought out of the root again: who makes the container again finds it as it was."""
    if not os.path.exists(journal):
        return
    from runvm.checkpoint import layer
    from runvm.config import WARM

    try:
        layer.undo(record.rootfs, journal)
    except (OSError, UnsupportedError) as error:
        log.warning(f"{WARM}: what the warm container had written stays in {record.rootfs}: {error}")


def _remove(ctx: Context, cid: str) -> None:
    files.remove_tree(state.directory(ctx, cid))


def _saved_ports(ctx: Context, record: ContainerRecord) -> dict[int, tuple[int, int]]:
    if not record.namespaces.get("network"):
        return {}
    from runvm.network import ports

    return ports.saved(registry.locate(ctx.config.state_dir, record.sandbox).directory)


def _unwire(ctx: Context, record: ContainerRecord, ports: dict[int, tuple[int, int]]) -> None:
    """Leave the engines' network namespaces, of this container and of those that were in its VM, as they were before
    that; *ports* is of network.ports."""
    from runvm.network import tap

    # after one that was killed a new virtual machine may have come into the same namespace
    living = [member for member in placement.all_members(ctx.config) if member.sandbox.name != record.sandbox]
    taken = {member.namespaces.get("network", 0) for member in living}
    there = [record, *(other for other in state.load_all(ctx) if other.sandbox == record.sandbox)]
    for path in {each.namespaces.get("network", "") for each in there} - {""}:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # the engine has removed it
        if os.fstat(fd).st_ino in taken:
            os.close(fd)
            continue

        def unwire(path: str = path, fd: int = fd) -> None:
            try:
                inode = os.fstat(fd).st_ino
                syscalls.setns(fd, syscalls.CLONE_NEWNET)
                tap.unwire_all(ports.get(inode, tap.DEFAULT_PORTS))
            except OSError as error:
                log.warning(f"network namespace {path}: {error}")

        # a child: in a user namespace there is no way back
        os.waitpid(process.fork(unwire), 0)
        os.close(fd)


def _leave_sandbox(ctx: Context, record: ContainerRecord) -> bool:
    """Out of its VM, or with the VM where it was the last one there; False where the VM was killed, or has to be.

    Whether it was the last is the supervisor's to say. Where none answers, it is what lives beside it.
    """
    sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
    with registry.locked(sandbox) as there:
        if not there:
            return True
        supervisor = registry.processes(sandbox).get("supervisor")
        orderly, last = False, placement.other(sandbox, record.id) is None
        # the others there may not have noticed it yet; the VM has ended with it
        dead = supervisor is not None and not process.alive(supervisor)
        if supervisor is not None and not dead:
            try:
                with cpu_limits.lifted(sandbox):
                    answer = registry.call(sandbox, messages.DeleteContainer(record.id), timeout=_DELETE_SECONDS)
                orderly, last = True, answer.get("last") is True
            except NotRunningError:
                pass
            except VersionError:
                process.kill(record.shim, signal.SIGKILL)  # its supervisor kills what it stands for
            except RunvmError as error:
                log.warning(f"the virtual machine is ended by force: {error}")
        placement.discharge(sandbox, record.id)
        cpu_limits.forget(sandbox, record.id)
        if last:
            if orderly and supervisor is not None:
                orderly = process.wait_gone(supervisor, deadline=time.monotonic() + _END_SECONDS)
            registry.clear(sandbox)
        return orderly or not (last or dead)
