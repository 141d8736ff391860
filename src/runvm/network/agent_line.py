"""What networking needs of the line to the guest's agent (sandbox.guest_link)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.protocol.gate import Gate
    from runvm.protocol.messages import Done, Failed


class AgentLine(Protocol):
    """Requests with an answer each, and frames."""

    def ask(self, message: Any, answered: Callable[[Done | Failed], None]) -> None:
        """A request; *answered* gets its answer, or a failure after a deadline."""

    @property
    def gate(self) -> Gate:
        """Where those wait that send streams."""

    def send(self, kind: int, channel: int, payload: bytes) -> None:
        """Queue one frame."""
