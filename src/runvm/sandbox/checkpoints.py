"""The requests about checkpoints, which most supervisors never get: what carries them out is imported at the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import RunvmError
from runvm.linux import process
from runvm.protocol.messages import Done, Exited
from runvm.sandbox.members import INIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.linux.loop import Loop
    from runvm.protocol.messages import Checkpoint, EndCheckpoint, FindMemory, RestoreContainer
    from runvm.sandbox.checkpointing import Checkpointing
    from runvm.sandbox.clients import Client, Reply
    from runvm.sandbox.keeping import Keeper
    from runvm.sandbox.members import Task


class Checkpoints:
    """Of the VM whose containers *keeper* has."""

    def __init__(self, loop: Loop, keeper: Keeper, layout: Callable[[str], dict[str, str]]) -> None:
        """*layout* is that of the share's Tree."""
        self._loop = loop
        self._keeper = keeper
        self._layout = layout
        self._checkpointing: Checkpointing | None = None
        self.awaited = False
        """The guest comes from a checkpoint, and hasn't said yet that it knows."""
        self._start: Callable[[Reply], None] | None = None
        """What a container that was restored waits with for its Start."""

    def find_memory(self, client: Client, request: FindMemory, reply: Reply) -> None:
        """Tell where the VM's memory is, for a checkpoint."""
        self._loaded().find_memory(request, reply)

    def begin(self, client: Client, request: Checkpoint, reply: Reply) -> None:
        """Stop the VM for a checkpoint."""
        self._loaded().begin(client, request, reply)

    def _loaded(self) -> Checkpointing:
        if self._checkpointing is None:
            from runvm.sandbox.checkpointing import Checkpointing

            self._checkpointing = Checkpointing(self._loop, self._keeper, self._layout)
        return self._checkpointing

    def end(self, client: Client, request: EndCheckpoint, reply: Reply) -> None:
        """The VM goes on after a checkpoint, or ends."""
        if self._checkpointing is None:
            raise RunvmError("no checkpoint is being taken")
        self._checkpointing.end(client, request, reply)

    def client_gone(self, client: Client) -> None:
        """A connection has closed, maybe that of a checkpoint."""
        if self._checkpointing is not None:
            self._checkpointing.client_gone(client)

    def shim_answered(self, task: Task) -> None:
        """A shim has done what a checkpoint asked of it."""
        if self._checkpointing is not None:
            self._checkpointing.shim_answered(task)

    def restore(self, client: Client, request: RestoreContainer, reply: Reply) -> None:
        """Take up the container of the checkpoint that the VM comes from, once its shim has attached."""
        from runvm.sandbox import restoring

        restore = self._keeper.life.plan.restore
        if restore is None:
            raise RunvmError("the virtual machine doesn't come from a checkpoint")

        def attach(task: Task) -> None:
            if not request.at_start:
                restoring.attach(self._keeper, restore, request, task, reply, known)
                return
            # what its new shim sends is for the guest once that knows of it
            self._keeper.life.vm.agent.hold()
            self._start = lambda started: restoring.attach(self._keeper, restore, request, task, started, known)
            reply(Done({}))

        def known() -> None:
            self.awaited = False

        self._keeper.when_attached(request.container, INIT, attach, reply)

    def start(self, reply: Reply) -> bool:
        """Let a container that was restored, but not started yet, go on; False where there is none."""
        if self._start is None:
            return False
        start, self._start = self._start, None
        start(reply)
        return True

    def signal(self, channel: int, number: int, reply: Reply) -> bool:
        """Take a signal for a container that was restored, but not started yet: it hasn't got a process that could
        catch it. False where there is none."""
        if self._start is None:
            return False
        if process.ends_waiting(number):
            self._start = None
            self._keeper.guest_event(Exited(channel, 128 + number, number))
        reply(Done({}))
        return True
