"""The guest's part in a checkpoint: to stand still while it is taken, and to find itself in another VM afterwards.

Between Quiesce and its end the agent serves the host's line alone. So whenever the guest's memory is saved, nothing is
under way on that line: a new host takes it up at the start of a frame.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.agent import cgroups, identity
from runvm.agent.errors import AgentError
from runvm.linux import files
from runvm.linux.syscalls import CLONE_NEWUTS, setns
from runvm.protocol.messages import Quiesce, Restored, Unquiesce

if TYPE_CHECKING:
    from runvm.agent.connections import Connections
    from runvm.agent.networks import GuestNetworks
    from runvm.agent.processes import Container
    from runvm.agent.runtime import Runtime
    from runvm.agent.watches import Watches
    from runvm.linux.loop import Loop
    from runvm.protocol.messages import Json

_FREEZE_SECONDS = 1.0
"""How long processes in the middle of a system call may take; those that don't stop go on until the VM does."""


class GuestCheckpoints:
    """*port* is the descriptor of the host's line."""

    def __init__(
        self,
        loop: Loop,
        port: int,
        runtime: Runtime,
        networks: GuestNetworks,
        connections: Connections,
        watches: Watches,
    ) -> None:
        self._loop = loop
        self._port = port
        self._runtime = runtime
        self._networks = networks
        self._connections = connections
        self._watches = watches
        self._container: Container | None = None
        self._was_frozen = False

    def serve(self, request: Quiesce | Unquiesce | Restored) -> Json:
        """Carry out one of the requests. Raises AgentError, OSError."""
        if isinstance(request, Quiesce):
            self._quiesce(request.container)
        elif self._container is None:
            raise AgentError("no checkpoint is being taken")
        elif isinstance(request, Unquiesce):
            self._go_on(self._container, frozen=self._was_frozen)
        else:
            self._restored(self._container, request)
        return {}

    def _quiesce(self, name: str) -> None:
        container = self._runtime.containers.get(name)
        if container is None:
            raise AgentError(f"no container {name} in this virtual machine")
        # each file that the kernel remembers is one that has to be found again on the host at a restore
        files.write("/proc/sys/vm/drop_caches", "2")
        self._was_frozen = files.read(f"{container.cgroup}/cgroup.freeze").strip() == "1"
        cgroups.freeze(container.cgroup, True)
        deadline = time.monotonic() + _FREEZE_SECONDS
        while not cgroups.is_frozen(container.cgroup) and time.monotonic() < deadline:
            time.sleep(0.002)
        self._container = container
        self._loop.narrow(self._port)

    def _restored(self, container: Container, request: Restored) -> None:
        if container.name != request.before:
            raise AgentError(f"the checkpoint is of the container {container.name}, not {request.before}")
        identity.become(request.clock_ns, bytes.fromhex(request.entropy))
        self._runtime.containers[request.container] = self._runtime.containers.pop(container.name)
        container.name = request.container
        if request.lift_limits:
            cgroups.lift_limits(container.cgroup)
        self._connections.close()
        self._networks.set(request.network, request.interfaces)
        if request.hostname and container.init is not None:
            with suppress(FileNotFoundError):  # it has ended, and that is all that is left to tell of it
                _set_hostname(container.init.pid, request.hostname)
        self._runtime.processes.attach_again()
        self._watches.tell_again()
        self._go_on(container, frozen=False)

    def _go_on(self, container: Container, *, frozen: bool) -> None:
        self._container = None
        self._loop.widen()
        cgroups.freeze(container.cgroup, frozen)


def _set_hostname(pid: int, name: str) -> None:
    """In the UTS namespace of a process; only the calling thread goes there. Raises OSError."""
    home = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    try:
        theirs = os.open(f"/proc/{pid}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(theirs, CLONE_NEWUTS)
        finally:
            os.close(theirs)
        with suppress(PermissionError):
            socket.sethostname(name)
        setns(home, CLONE_NEWUTS)
    finally:
        os.close(home)
