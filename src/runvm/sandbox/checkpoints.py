"""The requests about checkpoints, which most supervisors never get: what carries them out is imported at the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runvm.errors import RunvmError
from runvm.sandbox.members import INIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.linux.loop import Loop
    from runvm.protocol.messages import Checkpoint, EndCheckpoint, RestoreContainer
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

    def begin(self, client: Client, request: Checkpoint, reply: Reply) -> None:
        """Stop the VM for a checkpoint."""
        if self._checkpointing is None:
            from runvm.sandbox.checkpointing import Checkpointing

            self._checkpointing = Checkpointing(self._loop, self._keeper, self._layout)
        self._checkpointing.begin(client, request, reply)

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
            restoring.attach(self._keeper, restore, request, task, reply, known)

        def known() -> None:
            self.awaited = False

        self._keeper.when_attached(request.container, INIT, attach, reply)
