"""What a supervisor knows of its VM's containers: each a member, its processes tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runvm.protocol import messages
from runvm.protocol.frames import MESSAGE

if TYPE_CHECKING:
    from runvm.protocol.connection import Connection
    from runvm.sandbox.host_sockets import Sockets
    from runvm.sandbox.notify import Notifier

INIT = "init"
"""The key of a container's own process."""


class Task:
    """One process in the guest, by its channel: a container's init (key INIT) or an exec."""

    def __init__(self, member: Member, key: str, channel: int) -> None:
        self.member = member
        self.key = key
        self.channel = channel
        self.shim: Connection | None = None
        self.running = False
        self.ended = False
        self.outside = False
        """It isn't in the container but beside the agent, for `runvm debug`."""

    def end(self, code: int) -> None:
        """Its process has ended with that *code*."""
        self.running, self.ended = False, True
        if self.key != INIT and not self.outside and code == 0:
            self.member.healthy = True

    def tell_end(self, code: int, number: int) -> bool:
        """Have its shim end with *code*, caused by signal *number* (0: none). False where that has gone."""
        if self.shim is not None:
            self.shim.send(MESSAGE, 0, messages.encode(messages.Exited(0, code, number)))
        return self.shim is not None


class Member:
    """A container of this VM."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.place = name
        """Its directory in the share."""
        self.tasks: dict[str, Task] = {}
        self.cgroups: tuple[str, ...] = ()
        self.limit_mib = 0
        self.pod_mib = 0
        self.notifier: Notifier | None = None
        self.sockets: Sockets | None = None
        """The host's that are mounted in it."""
        self.requested = False
        """Its CreateContainer has come."""
        self.passed = False
        """Its process has descriptors of the caller's beyond stdio."""
        self.updated = False
        """Its limits aren't those of its config.json any more."""
        self.healthy = False
        """A process that exec has started has ended with 0: by then the container works, if that was a health check."""
        self.created = False
        """The guest has made it."""
        self.deleting: list[Callable[[], None]] = []

    @property
    def alive(self) -> bool:
        """Whether its init may still run, or is about to."""
        init = self.tasks.get(INIT)
        return init is not None and not init.ended
