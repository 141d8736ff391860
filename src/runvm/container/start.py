"""`start`: let a created container's process run."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from runvm.container import state
from runvm.errors import ContainerNotFoundError, HookError, NotRunningError, StateError
from runvm.linux import process
from runvm.log import log
from runvm.protocol import messages
from runvm.sandbox import cpu_limits, diagnosis, registry

if TYPE_CHECKING:
    from runvm.container.context import Context
    from runvm.container.state import ContainerRecord
    from runvm.oci.shapes import JsonObject


def start(ctx: Context, cid: str) -> ContainerRecord:
    """The container's record, as it was before. Raises: StateError unless the container is created, HookError for a
    poststart hook that failed, upon which the container is killed, ContainerNotFoundError, GuestError."""
    with state.lock(ctx, cid):
        record = state.load(ctx, cid)
        sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
        if record.status == "stopped":
            # one that has run ended by itself; its VM may not have quite ended
            reason, details = ("", "") if record.started else diagnosis.cause(sandbox)
            raise StateError("cannot start a container that has stopped", do=reason, details=details)
        if record.status == "creating":
            raise ContainerNotFoundError()  # who creates it holds its lock, so that one has been killed
        if record.status == "paused":
            raise StateError("cannot start a container in the paused state")
        if record.status != "created":
            raise StateError("cannot start an already running container")
        config = state.load_config(ctx, cid)
        written = state.prepare(ctx, record._replace(started=True))
        try:
            with cpu_limits.lifted(sandbox):
                cpu_limits.begin(sandbox, cid)
                registry.call(sandbox, messages.Start(cid))
        except NotRunningError as error:
            raise diagnosis.explained(error, sandbox) from None
        log.debug("start: container started in the guest")
        written()
        if record.scope:
            _limit_scope(ctx, record)
    try:
        run_hooks(record, config, "poststart", "running")
    except HookError:
        process.kill(record.shim, signal.SIGKILL)  # its supervisor kills what it stands for
        raise
    return record


def _limit_scope(ctx: Context, record: ContainerRecord) -> None:
    """Have systemd know of quota and shares, too, as they are by now: it sets them back at a daemon-reload else."""
    cpu = cpu_limits.of(registry.locate(ctx.config.state_dir, record.sandbox), record.id)
    if cpu:
        from runvm.cgroup import scope
        from runvm.cgroup.limits import host_limits

        scope.change(record.scope, host_limits({"cpu": cpu}, overhead_mib=0))


def run_hooks(record: ContainerRecord, config: JsonObject, kind: str, status: str) -> None:
    """Run the poststart or poststop hooks of *config*, the container's config.json. Failures of poststop are logged
    only. Raises HookError for the first poststart hook that fails, as runc does; in runtime.md it is so since 1.3."""
    if not (config.get("hooks") or {}).get(kind):
        return
    from runvm.oci import hooks
    from runvm.oci import spec as oci

    found = oci.parse_hooks(config["hooks"]).get(kind, ())
    described = hooks.state_json(
        cid=record.id,
        status=status,
        bundle=record.bundle,
        pid=record.pid,
        annotations=record.annotations,
        oci_version=record.oci_version,
    )
    if kind == "poststart":
        hooks.run(found, described, cwd=record.bundle, name=kind)
        return
    for error in hooks.run_all(found, described, cwd=record.bundle, name=kind):
        log.warning(str(error))
