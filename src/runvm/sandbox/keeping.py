"""What checkpoints ask of the one who keeps a VM's containers (sandbox.containers), which imports them itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.sandbox.clients import Reply
    from runvm.sandbox.members import Member, Task
    from runvm.sandbox.vm_life import VmLife


class Keeper(Protocol):
    """The containers of one VM."""

    members: dict[str, Member]
    life: VmLife

    def when_attached(self, container: str, key: str, action: Callable[[Task], None], reply: Reply) -> None:
        """Run *action* now, or when the shim has attached."""

    def guest_event(self, message: Any) -> None:
        """Take an event of the guest's."""
