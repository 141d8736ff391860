"""`checkpoint`: a running container saved as an image, by saving its virtual machine."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from runvm import __version__
from runvm.checkpoint import image, layer, support
from runvm.container import shape, state
from runvm.errors import HostError, NotRunningError, RunvmError, StateError, reason
from runvm.hypervisor.driver import Machine
from runvm.linux import files, process
from runvm.log import log
from runvm.protocol import frames, messages, version
from runvm.records import NamedTuple
from runvm.sandbox import registry
from runvm.sandbox.checkpointing import MemoryFiles, Stopped
from runvm.shares import virtiofs

if TYPE_CHECKING:
    import socket

    from runvm.container.context import Context
    from runvm.hypervisor.driver import Driver
    from runvm.sandbox.registry import Sandbox


_EARLY = "early"
"""The layer as it was while the container ran, in the image that is being written."""
_FLUSH_SECONDS = 12.0
"""Longer than a shim waits for whoever takes its output."""


class CheckpointOptions(NamedTuple):
    """`runvm checkpoint`: the image's directory, absolute, whether the container goes on, and whether its memory is
    compressed.

    With *layer*, the upper directory of the root's overlay is saved, too; the checkpoint is to be one that many can
    start from: it fails while processes of exec run or input is on its way.
    """

    image_path: str
    leave_running: bool = False
    layer: str = ""
    compress: bool = False


def checkpoint(ctx: Context, cid: str, options: CheckpointOptions) -> None:
    """Raises: StateError unless the container runs, UnsupportedError where it can't be saved; it goes on then."""
    with ExitStack() as held:
        held.enter_context(state.lock(ctx, cid))
        record = state.load(ctx, cid)
        if record.status not in ("running", "paused"):
            raise StateError(f"container cannot be checkpointed in {record.status} state")
        driver = support.check(ctx.config._replace(arch=record.arch), "checkpoint", record.hypervisor)
        sandbox = registry.locate(ctx.config.state_dir, record.sandbox)
        try:
            with image.Writer(options.image_path) as writer:
                _copy_memory(writer, sandbox, messages.FindMemory(cid, bool(options.layer)))
                early = _save_early(options.layer, f"{writer.path}/{_EARLY}")
                request = messages.Checkpoint(cid, bool(options.layer))
                with registry.begin(sandbox, request) as connection:
                    stopped = Stopped(**registry.finish(connection, request))
                    _catch_up(writer, stopped, options, early, connection)
                    if options.leave_running:
                        _end(connection, keep=True)
                    else:
                        # its answer shows that the VM was there until now: the memory of one that has ended is zeros
                        registry.call(sandbox, messages.Status())
                    manifest = _manifest(ctx, cid, driver, stopped)
                    if options.leave_running:
                        held.close()  # what is left to do needs no container: others may have it
                    files.remove_tree(f"{writer.path}/{_EARLY}")
                    writer.pack_memory(compress=options.compress)
                    writer.finish(manifest)
                    if not options.leave_running:
                        _end(connection, keep=False)
        except OSError as error:
            raise HostError(f"write the checkpoint {options.image_path}: {reason(error)}") from error
        if stopped.execs:
            log.warning(f"{stopped.execs} processes that exec had started in the container were ended")
    if not options.leave_running:
        from runvm.container.delete import delete

        # its shim may have output to write yet
        process.wait_gone(record.shim, deadline=time.monotonic() + _FLUSH_SECONDS)
        delete(ctx, cid, force=True)  # as runc does: the container is the image now


def cpu_of(machine: Machine) -> str:
    """The host's processor where it is the guest's, too."""
    from runvm.hypervisor import template

    return template.processor(files.read("/proc/cpuinfo")) if machine.accelerator == "kvm" else ""


def _copy_memory(writer: image.Writer, sandbox: Sandbox, request: messages.FindMemory) -> None:
    """While the VM runs; from the supervisor's mount namespace, which alone has it. Raises RunvmError, OSError."""
    found = MemoryFiles(**registry.call(sandbox, request))
    root = f"/proc/{found.pid}/root"
    try:
        writer.copy_memory(f"{root}{found.ram}", f"{root}{found.more}")
    except OSError:
        if os.path.exists(f"{root}{found.ram}"):
            raise
        raise NotRunningError() from None
    log.debug("checkpoint: memory copied")


def _save_early(upper: str, target: str) -> layer.Early | None:
    """The layer, while the container runs; None where there is none, or that changes what is just looked at. Raises
    UnsupportedError."""
    try:
        return layer.save(upper, target) if upper else None
    except OSError as error:
        log.debug(f"checkpoint: the layer is copied while the container stands still: {error}")
        return None


def _catch_up(
    writer: image.Writer,
    stopped: Stopped,
    options: CheckpointOptions,
    early: layer.Early | None,
    connection: socket.socket,
) -> None:
    """While it stands still: what has changed in the memory and the layer, and the device state. Raises RunvmError,
    OSError."""
    if options.layer:
        if stopped.input or stopped.input_ended:
            raise RunvmError("input is on its way to the container")
        layer.save(options.layer, f"{writer.path}/{layer.NAME}", early)
    changed = writer.catch_up()
    try:
        writer.add_state(f"/proc/{stopped.pid}/root{stopped.state}")
    except FileNotFoundError:
        _end(connection, keep=True)  # it has been given up, and here is said why
        raise
    log.debug(f"checkpoint: {changed >> 10} KiB of memory had changed")


def _end(connection: socket.socket, *, keep: bool) -> None:
    request = messages.EndCheckpoint(keep)
    try:
        connection.sendall(frames.encode(frames.MESSAGE, 0, messages.encode(request, 2)))
    except OSError as error:
        raise RunvmError("the container ended while its checkpoint was taken") from error
    registry.finish(connection, request)


def _manifest(ctx: Context, cid: str, driver: Driver, stopped: Stopped) -> image.Manifest:
    machine = Machine(**stopped.machine)
    config = state.load_config(ctx, cid)
    return image.Manifest(
        format=image.FORMAT,
        release=__version__,
        protocol=version.PROTOCOL,
        driver=driver.name,
        vmm=driver.release(),
        daemon=virtiofs.release(ctx.config),
        hardware=driver.hardware(machine),
        cpu=cpu_of(machine),
        guest=machine.image_key,
        container=cid,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        shape=shape.of(config),
        resources=(config.get("linux") or {}).get("resources") or {},
        vm=stopped._asdict(),
        files={},
    )
