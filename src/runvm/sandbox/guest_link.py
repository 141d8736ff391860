"""The supervisor's line to the agent: requests with answers, each under a deadline, and frames of streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runvm.linux.loop import Loop
from runvm.log import log, printable
from runvm.protocol import frames, messages
from runvm.protocol.connection import Connection
from runvm.protocol.frames import MESSAGE, Frame
from runvm.protocol.gate import Gate
from runvm.protocol.messages import Done, Failed

_REQUEST_SECONDS = 45.0
"""How long the guest may take for one request; below what commands wait (registry.ANSWER_SECONDS)."""

Answered = Callable[[Done | Failed], None]


class GuestLink:
    """Owns *fd*, the agent's port. *on_event* gets the guest's events, *on_frame* all frames but messages, *on_close*
    the reason of the end; *diagnosis* gives what was said last, for a request that isn't answered in time."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        *,
        on_event: Callable[[Any], None],
        on_frame: Callable[[Frame], None],
        on_close: Callable[[str], None],
        diagnosis: Callable[[], str],
    ) -> None:
        self._loop = loop
        self._on_event = on_event
        self._on_frame = on_frame
        self._on_close = on_close
        self._diagnosis = diagnosis
        self._requests: dict[int, Answered] = {}
        self._number = 0
        self._held: list[tuple[int, int, bytes]] | None = None
        self._connection = Connection(
            loop, fd, on_frame=self._frame, on_close=self._closed, max_message=frames.MAX_GUEST_MESSAGE
        )

    def send(self, kind: int, channel: int, payload: bytes) -> None:
        """Queue one frame."""
        if self._held is not None:
            self._held.append((kind, channel, payload))
        else:
            self._connection.send(kind, channel, payload)

    @property
    def gate(self) -> Gate:
        """Where those wait that send streams."""
        return self._connection.gate

    @property
    def busy(self) -> bool:
        """Whether the guest still owes an answer."""
        return bool(self._requests)

    def hold(self) -> None:
        """Send nothing but what is urgent until let_go(); the windows of the streams bound what comes together."""
        self._held = []

    @property
    def holding(self) -> bool:
        """Whether hold() is in force: the guest hears of nothing."""
        return self._held is not None

    @property
    def held(self) -> list[tuple[int, int, bytes]]:
        """The frames that wait for let_go(): kind, channel, payload."""
        return self._held or []

    def let_go(self) -> None:
        """Send what was held."""
        held, self._held = self.held, None
        for kind, channel, payload in held:
            self._connection.send(kind, channel, payload)

    def credit(self, frame: Frame) -> None:
        """Credit a stream's frame that goes nowhere, else the guest's process stalls until it is killed."""
        self.send(frames.CREDIT_KIND, frame.channel, frames.CREDIT.pack(frame.kind, len(frame.payload)))

    def tell(self, message: Any, number: int = 0) -> None:
        """An event to the guest."""
        self.send(MESSAGE, 0, messages.encode(message, number))

    def close(self) -> None:
        """Close the port; nobody is answered any more, nor is the end told."""
        self._requests.clear()
        self._on_close = lambda reason: None
        self._connection.close()

    def ask(self, message: Any, answered: Answered, *, timeout: float = _REQUEST_SECONDS, urgent: bool = False) -> None:
        """A request to the guest; *answered* gets its answer, or after *timeout* a failure that says what was waited
        for. An *urgent* one isn't held by hold()."""
        self._number = self._number % 0xFFFFFFFE + 1
        number = self._number
        name = type(message).__name__

        def late() -> None:
            waiting = self._requests.pop(number, None)
            if waiting is not None:
                reason = f"timed out waiting for the guest to answer {name}"
                waiting(Failed("\n".join([reason, self._diagnosis()]).strip()))

        timer = self._loop.call_later(timeout, late)

        def answer(result: Done | Failed) -> None:
            self._loop.cancel(timer)
            log.debug(f"supervisor: {name} answered by the guest")
            answered(result)

        self._requests[number] = answer
        log.debug(f"supervisor: {name} sent to the guest")
        if urgent:
            self._connection.send(MESSAGE, 0, messages.encode(message, number))
        else:
            self.tell(message, number)

    def fail(self, reason: str) -> None:
        """Answer all that is under way: the guest won't."""
        waiting = list(self._requests.values())
        self._requests.clear()
        for answered in waiting:
            answered(Failed(reason))

    def _closed(self, reason: str) -> None:
        self._on_close(reason)

    def _frame(self, frame: Frame) -> None:
        if frame.kind != MESSAGE:
            self._on_frame(frame)
            return
        number, message = messages.decode(frame.payload, messages.FROM_GUEST)
        if isinstance(message, (Done, Failed)):
            answered = self._requests.pop(number, None)
            if answered is not None:
                answered(Failed(printable(message.error)) if isinstance(message, Failed) else message)
        else:
            log.debug(f"supervisor: {type(message).__name__} from the guest")
            self._on_event(message)
