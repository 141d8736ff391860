"""What a supervisor does to have a container made in the guest: its files shown, its network handed over, room made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from runvm.linux import process
from runvm.linux.process import Identity
from runvm.log import log
from runvm.protocol import messages
from runvm.protocol.messages import Done, Failed
from runvm.sandbox.host_sockets import Sockets
from runvm.sandbox.vm_life import BUSY_SECONDS
from runvm.shares.tree import Share

if TYPE_CHECKING:
    from collections.abc import Collection

    from runvm.errors import RunvmError
    from runvm.protocol.messages import CreateContainer, Json
    from runvm.sandbox.clients import Reply
    from runvm.sandbox.members import Member, Task
    from runvm.sandbox.running import RunningVm
    from runvm.sandbox.vm_life import VmLife
    from runvm.shares.tree import Tree


def make_in_guest(
    life: VmLife, tree: Tree, members: Collection[Member], request: CreateContainer, task: Task, created: Reply
) -> None:
    """Have the guest of *life* make the container that *request* describes, one of *members*, whose init is *task*;
    *created* gets the guest's answer. Raises RunvmError, OSError."""
    member, vm = task.member, life.vm
    shim = Identity(request.shim_pid, request.shim_start)
    show_files(tree, member.place, {name: Share(**share) for name, share in request.shares.items()}, shim)
    if request.notify and member.notifier is None:
        from runvm.sandbox.notify import Notifier

        member.notifier = Notifier(request.notify)
    if request.sockets and member.sockets is None:
        member.sockets = Sockets.open(request.sockets, request.spec["linux"], request.shim_pid)

    def resized(error: RunvmError | None, plugged: bool) -> None:
        if error is not None:
            log.warning(f"the virtual machine can't grow for container {member.name}: {error}")
        if plugged:
            vm.agent.ask(messages.UseCpus(vm.growth.vcpus), _warn)

    vm.growth.fit(members, request.spec["linux"]["resources"], resized)
    network, interfaces = 0, dict[str, Any]()
    if request.network:
        network, interfaces = vm.networks.join(member.name, shim)
    message = messages.Create(
        member.name,
        task.channel,
        request.spec,
        request.namespaces,
        network,
        interfaces,
        request.rows,
        request.columns,
        request.passed,
        bool(request.notify),
        {} if member.sockets is None else member.sockets.owners(),
    )
    vm.agent.ask(message, created, timeout=life.plan.config.boot_timeout_s + BUSY_SECONDS + 10)


def find_sockets(vm: RunningVm, member: Member, spec: Json) -> None:
    """Have the container, which the guest has made, find the sockets of the host's servers in its mounts."""
    try:
        mounts = mounts_of(vm.share, member.place)
        if mounts:
            vm.socket_directories.add(member, mounts, spec["linux"])
    except OSError as error:  # a container that only lacks these works but for them
        log.warning(f"container {member.name}: sockets in its mounts: {error}")


def mounts_of(share: str, place: str) -> dict[int, str]:
    """Where in *share* the mounts of the container at *place* are, by their numbers: those that are directories."""
    found = {}
    top = f"{share}/containers/{place}"
    with os.scandir(top) as entries:
        for entry in entries:
            if entry.name[:1] == "m" and entry.name[1:].isdecimal() and entry.is_symlink() and entry.is_dir():
                path = os.path.normpath(f"containers/{place}/{os.readlink(entry.path)}")
                found[int(entry.name[1:])] = path
    return found


def show_files(tree: Tree, place: str, shares: dict[str, Share], shim: Identity) -> None:
    """Put *shares*, as the shim sees them, in the guest's *place*. Raises OSError, HostError."""
    process.check_alive(shim)
    tree.add(place, shares, shim.pid)
    try:
        process.check_alive(shim)
    except ProcessLookupError:
        tree.remove(place)
        raise


def _warn(answer: Done | Failed) -> None:
    if isinstance(answer, Failed):
        log.warning(answer.error)
