"""One per VM: the parent of the VMM and of virtiofsd, owner of the agent's line, the share, the network and the control
socket.

Forked by `create`, it outlives the command and ends with the VM's last container. When it dies, what it started dies
with it (PR_SET_PDEATHSIG), and each shim sees its connection close. Its parts: Clients (connections and requests),
Containers (what they are about), VmLife (the VM).
"""

from __future__ import annotations

import gc
import signal
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from runvm.linux.loop import Loop
from runvm.log import log
from runvm.protocol import messages
from runvm.sandbox import cpu_limits
from runvm.sandbox.clients import Clients
from runvm.sandbox.containers import Containers
from runvm.sandbox.vm_life import VmLife

if TYPE_CHECKING:
    import socket

    from runvm.sandbox.clients import Client, Reply
    from runvm.sandbox.plan import VmPlan
    from runvm.sandbox.vm_life import Start
    from runvm.shares.tree import Tree

_MAX_REPORTS = 100
_FIRST_SECONDS = 60.0
"""How long a VM waits for its first container."""
_END_SECONDS = 5.0
"""How long the limits of CPU time don't hold for the end of a container: what is left to do is the agent's and ours."""


class Supervisor:
    """The event loop of one VM, which *start* starts: now, and again without a template if that proves broken."""

    def __init__(self, plan: VmPlan, listener: socket.socket, share: Tree, start: Start) -> None:
        self.loop = Loop(on_error=_Reports())
        self.containers = Containers(self.loop, share)
        self._cpu = cpu_limits.QuotaKeeper(self.loop, plan.sandbox)
        self.life = VmLife(
            self.loop,
            plan,
            start,
            on_event=self._guest_event,
            on_frame=self.containers.guest_frame,
            on_restart=self.containers.before_restart,
        )
        self.containers.life = self.life
        self.containers.checkpoints.awaited = plan.restore is not None
        self._clients = Clients(
            self.loop,
            listener,
            {
                messages.Attach: self.containers.attach,
                messages.CreateContainer: self.containers.create,
                messages.ExecProcess: self.containers.exec,
                messages.DeleteContainer: self.containers.delete,
                messages.Start: self.containers.start,
                messages.Signal: self._signal,
                messages.Update: self.containers.update,
                messages.Freeze: self.containers.pass_on,
                messages.Stats: self.containers.pass_on,
                messages.FindFile: self.containers.pass_on,
                messages.FindMemory: self.containers.checkpoints.find_memory,
                messages.Checkpoint: self.containers.checkpoints.begin,
                messages.EndCheckpoint: self.containers.checkpoints.end,
                messages.RestoreContainer: self.containers.checkpoints.restore,
                messages.Status: self.containers.status,
            },
            on_frame=self.containers.shim_frame,
            on_gone=self._client_gone,
        )

    def run(self) -> None:
        """Serve until the last container has gone."""
        gc.freeze()
        self.loop.call_later(_FIRST_SECONDS, self.containers.end_if_empty)
        try:
            self.loop.run()
        finally:
            self.close()

    def _guest_event(self, message: Any) -> None:
        if isinstance(message, messages.Exited) and self.containers.is_init(message.channel):
            self._cpu.lift(_END_SECONDS)
        self.containers.guest_event(message)

    def _signal(self, client: Client, request: messages.Signal, reply: Reply) -> None:
        if request.number == signal.SIGKILL:
            self._cpu.lift(_END_SECONDS)
        self.containers.signal(client, request, reply)

    def _client_gone(self, client: Client) -> None:
        self.containers.client_gone(client)
        self._cpu.settle()

    def close(self) -> None:
        """End the VM and what belongs to it."""
        self.containers.close()
        with ExitStack() as undo:  # what fails doesn't spare the rest
            undo.callback(self._clients.close)
            undo.callback(self.life.close)


class _Reports:
    """Tells of faults of ours in the loop's callbacks, after which the containers go on. Not of all: should a guest
    find one, it may cause it as often as it likes."""

    def __init__(self) -> None:
        self._left = _MAX_REPORTS

    def __call__(self, error: Exception) -> None:
        if self._left:
            import traceback

            self._left -= 1
            log.error(f"internal error: {type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
