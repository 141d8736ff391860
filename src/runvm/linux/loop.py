"""A small event loop on poll(2) for the shim, the supervisor and the agent: descriptors, timers, nothing else.

asyncio costs 60 ms to import, on the path of every start. poll(2), not epoll(7), because a container's stdio may be a
regular file, which epoll refuses and poll reports as ready.
"""

from __future__ import annotations

import gc
import heapq
import select
import time
from collections.abc import Callable

IN = select.POLLIN
OUT = select.POLLOUT
HANGUP = select.POLLHUP | select.POLLERR
_REST_SECONDS = 1.0
"""How long a descriptor is left alone whose callback has failed: it may be ready again at once, for ever."""
_DEAD_TIMERS = 1000
"""Cancelled timers that may wait for their time: who sets and cancels them may be a guest, as fast as it can."""


class Loop:
    """Calls back when descriptors are ready and when moments come, until stopped."""

    def __init__(self, *, on_error: Callable[[Exception], None] | None = None) -> None:
        """*on_error* gets what a callback raises, and the loop goes on; the descriptor that it was called for is left
        alone for a moment. Without *on_error* run() raises it."""
        self._on_error = on_error
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._masks: dict[int, int] = {}
        self._resting: set[int] = set()
        self._timers: list[tuple[float, int]] = []
        self._calls: dict[int, Callable[[], None]] = {}
        self._sequence = 0
        self._running = True
        self._only = -1

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call *callback(ready events)* whenever *fd* is ready for *events* (HANGUP is always reported)."""
        self._callbacks[fd] = callback
        if self._masks.get(fd) != events or fd in self._resting:
            self._masks[fd] = events
            self._resting.discard(fd)
            self._poll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other *events* on a watched *fd*."""
        if fd in self._masks and self._masks[fd] != events:
            self._masks[fd] = events
            if fd not in self._resting:
                self._poll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching *fd*; call it before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            del self._masks[fd]
            if fd in self._resting:
                self._resting.discard(fd)
            else:
                self._poll.unregister(fd)

    def call_later(self, seconds: float, callback: Callable[[], None]) -> int:
        """Call *callback* once after *seconds*; the number returned cancels it."""
        self._sequence += 1
        self._calls[self._sequence] = callback
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._sequence))
        return self._sequence

    def cancel(self, timer: int) -> None:
        """Drop a timer of call_later, and at once what its callback holds; one that has been called is no error."""
        self._calls.pop(timer, None)
        if len(self._timers) > 2 * len(self._calls) + _DEAD_TIMERS:
            self._timers = [entry for entry in self._timers if entry[1] in self._calls]
            heapq.heapify(self._timers)

    def narrow(self, fd: int) -> None:
        """Serve the watched descriptor *fd* alone, and no timers, until widen(): all else stands still."""
        self._only = fd

    def widen(self) -> None:
        """Serve everything again."""
        self._only = -1

    def stop(self) -> None:
        """End run() after the callbacks of this turn."""
        self._running = False

    def run(self) -> None:
        """Until stop()."""
        gc.enable()
        self._running = True
        while self._running:
            self.turn(None)

    def turn(self, timeout: float | None) -> None:
        """Wait at most *timeout* seconds (None: until something happens) and call what is due."""
        if self._only in self._masks:
            poll = select.poll()
            poll.register(self._only, self._masks[self._only])
            for fd, events in poll.poll(None if timeout is None else timeout * 1000):
                self._call(self._callbacks[fd], events, fd)
            return
        if self._timers:
            due = max(0.0, self._timers[0][0] - time.monotonic())
            timeout = due if timeout is None else min(timeout, due)
        for fd, events in self._poll.poll(None if timeout is None else timeout * 1000):
            callback = self._callbacks.get(fd)  # an earlier callback of this turn may have forgotten it
            if callback is not None:
                self._call(callback, events, fd)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, sequence = heapq.heappop(self._timers)
            call = self._calls.pop(sequence, None)
            if call is not None:
                self._call(lambda _, call=call: call(), 0, -1)  # type: ignore[misc]

    def guard(self, call: Callable[[], None]) -> bool:
        """Call *call* for a callback that has more to do after it, whatever that raises; False where it has failed."""
        try:
            call()
        except Exception as error:
            if self._on_error is None:
                raise
            self._on_error(error)
            return False
        return True

    def _call(self, callback: Callable[[int], None], events: int, fd: int) -> None:
        if not self.guard(lambda: callback(events)) and self._callbacks.get(fd) is callback:
            self.rest(fd)

    def rest(self, fd: int) -> None:
        """Leave the watched descriptor *fd* alone for a moment: it is ready, and nothing can be done about it now."""
        callback = self._callbacks.get(fd)
        if callback is None or fd in self._resting:
            return
        self._resting.add(fd)
        self._poll.unregister(fd)

        def again() -> None:
            if fd in self._resting and self._callbacks[fd] is callback:
                self.watch(fd, self._masks[fd], callback)

        self.call_later(_REST_SECONDS, again)
