"""What a supervisor knows of its VM's containers: each a member, its processes tasks, who talks about them clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from runvm.protocol import messages
from runvm.protocol.connection import Connection
from runvm.protocol.frames import MESSAGE
from runvm.protocol.messages import Done, Failed

if TYPE_CHECKING:
    from runvm.sandbox.notify import Notifier


class Task:
    """One process in the guest, by its channel: a container's init (key 'init') or an exec."""

    def __init__(self, member: Member, key: str, channel: int) -> None:
        self.member = member
        self.key = key
        self.channel = channel
        self.shim: Connection | None = None
        self.running = False
        self.ended = False


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
        self.built = False
        self.dropping: list[Callable[[], None]] = []

    @property
    def alive(self) -> bool:
        """Whether its init may still run, or is about to."""
        init = self.tasks.get("init")
        return init is not None and not init.ended


class Client:
    """A connection to the control socket: a command's, or after `Attach` a shim's."""

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.task: Task | None = None
        self.building = ""

    def reply(self, number: int, answer: Done | Failed) -> None:
        """Answer request *number*."""
        if self.connection is not None:
            self.connection.send(MESSAGE, 0, messages.encode(answer, number))
