"""Back-pressure of a connection: what reads bytes to send them on stops while much waits to be sent already."""

from __future__ import annotations

from collections.abc import Callable

from runvm.linux.loop import Loop

_HIGH = 4 << 20
_LOW = 1 << 20
"""Bytes in the queue from which on it is closed, and down to which it stays so: less than a stream's window each, which
a hundred streams together would make hundreds of MiB of."""


class Gate:
    """Of one connection on *loop*, which tells how much is queued."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[Callable[[], None], None] = {}
        self.closed = False

    def wait(self, again: Callable[[], None]) -> None:
        """Call *again* once it is open; once, however often it has been asked."""
        self._waiting[again] = None

    def update(self, queued: int) -> None:
        """So many bytes are queued now."""
        if queued > _HIGH:
            self.closed = True
        elif self.closed and queued <= _LOW:
            self.closed = False
            self._loop.call_later(0, self._let_go)

    def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for again in waiting:
            again()
