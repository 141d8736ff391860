"""A VM from a checkpoint, as its supervisor brings it up: the container's files are in the share before virtiofsd is
told where they were, the guest hears where it is, and its container is attached to a new shim."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from runvm.checkpoint import image
from runvm.errors import CheckpointError, RunvmError, words
from runvm.hypervisor import boot
from runvm.log import log
from runvm.protocol import messages
from runvm.protocol.frames import CHUNK, STDIN
from runvm.protocol.messages import Done, Failed, RestoreContainer
from runvm.sandbox import creation, limits

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from runvm.sandbox.clients import Reply
    from runvm.sandbox.keeping import Keeper
    from runvm.sandbox.members import Task
    from runvm.sandbox.plan import Restore, VmPlan
    from runvm.shares.tree import Tree

_SECONDS = 40.0
"""How long the guest may take to become another; below what the command waits."""


def show_files(restore: Restore, share: Tree) -> None:
    """Put the container's files where virtiofsd is told that they were. Raises CheckpointError, HostError, OSError."""
    creation.show_files(share, restore.place, restore.shares, restore.shim)
    layout = share.layout(restore.place)
    if layout != restore.layout:
        other = sorted(name for name in layout | restore.layout if layout.get(name) != restore.layout.get(name))
        raise CheckpointError(f"mounts with one source have several now, or the other way round: {', '.join(other)}")


def start_guest(plan: VmPlan, restore: Restore, tap: int, share: socket.socket) -> boot.Guest:
    """Start the VM and let it run; its guest still waits for Restored. Raises RunvmError, OSError."""
    deadline = time.monotonic() + plan.config.boot_timeout_s + restore.copy_seconds
    saved = image.Files(restore.directory)
    guest = boot.start(
        plan.driver,
        plan.machine,
        directory=plan.sandbox.directory,
        tap=tap,
        template=restore.directory,
        share=share.fileno(),
        fill=lambda ram, more: saved.fill(restore.hashes, ram, more),
        deadline=deadline,
    )
    log.debug("supervisor: VMM up and paused")
    try:
        guest.vm.resume(deadline=deadline)
    except BaseException:
        guest.kill()
        raise
    return guest


def attach(
    keeper: Keeper,
    restore: Restore,
    request: RestoreContainer,
    task: Task,
    reply: Reply,
    known: Callable[[], None],
) -> None:
    """The guest takes up its container, whose shim is *task*'s; *known* is called when it has. Raises RunvmError,
    OSError."""
    member, vm = task.member, keeper.life.vm
    member.requested = True
    member.place = restore.place
    member.cgroups = tuple(request.cgroups)
    member.limit_mib = request.limit_mib
    members = keeper.members.values()
    vm.growth.resume(members, restore.grown_mib, restore.extra_mib, watched=restore.watched)
    network = 0
    interfaces: dict[str, Any] = {}
    if request.network:
        network, interfaces = vm.networks.join(member.name, restore.shim)
    if network != restore.network:
        raise CheckpointError("bundle and checkpoint aren't alike in having a network namespace")
    # what was on its way to the container comes before the new shim's input, and is counted for nobody
    for start in range(0, len(restore.input), CHUNK):
        vm.agent.send(STDIN, task.channel, restore.input[start : start + CHUNK])
    if restore.input_ended:
        vm.agent.send(STDIN, task.channel, b"")

    def restored(answer: Done | Failed) -> None:
        if isinstance(answer, Failed):
            reply(answer)
            keeper.life.end(f"the guest can't be restored: {answer.error}")
            return
        known()
        vm.agent.let_go()
        keeper.life.follow_clock()
        member.created = True
        task.running = True
        if request.same_limits:
            reply(Done({}))
            return
        try:
            limits.enforce(vm, keeper.members.values(), member, request.resources, reply)
        except RunvmError as error:
            reply(Failed(words(error)))

    message = messages.Restored(
        restore.before,
        member.name,
        time.time_ns(),
        os.urandom(64).hex(),
        request.hostname,
        network,
        interfaces,
        not request.same_limits,
    )
    vm.agent.ask(message, restored, timeout=_SECONDS, urgent=True)
