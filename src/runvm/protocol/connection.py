"""Frames over a socket or the agent's port, without blocking: used by the supervisor, the shim, the agent and
(blocking) the commands."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from runvm.linux.loop import HANGUP, IN, OUT, Loop
from runvm.protocol import frames
from runvm.protocol.frames import Decoder, Frame, FrameError
from runvm.protocol.gate import Gate

_READ = 256 << 10
_OVERHEAD = 256
"""Bytes that a queued frame takes beyond its own."""


class Connection:
    """One end of a framed byte stream on *loop*; owns *fd*.

    *on_frame* is called for each frame, *on_close(reason)* once, when the peer has gone or broken the framing. Who has
    streams to send waits at *gate* while much is queued. What is queued all the same is bounded by *max_queue*: a peer
    that doesn't read is cut off.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        *,
        on_frame: Callable[[Frame], None],
        on_close: Callable[[str], None],
        max_message: int = frames.MAX_MESSAGE,
        max_queue: int = 64 << 20,
    ) -> None:
        self._loop = loop
        self.fd = fd
        self._on_frame = on_frame
        self._on_close = on_close
        self._decoder = Decoder(max_message=max_message)
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        self._max_queue = max_queue
        self.gate = Gate(loop)
        self._reading = IN
        self.open = True
        os.set_blocking(fd, False)
        loop.watch(fd, IN, self._ready)

    def send(self, kind: int, channel: int, payload: bytes) -> None:
        """Queue one frame; nothing happens on a closed connection."""
        self.send_raw(frames.encode(kind, channel, payload))

    def send_raw(self, data: bytes) -> None:
        """Queue whole encoded frames."""
        if not self.open:
            return
        self._queue.append(memoryview(data))
        self._queued += len(data) + _OVERHEAD
        if self._queued > self._max_queue:
            self.close("the peer doesn't read what it is sent")
            return
        self._flush()

    def wait_at(self, gate: Gate) -> None:
        """Read nothing more while *gate*, of the connection that what comes is sent on by, is closed."""
        if gate.closed and self._reading:
            self._reading = 0
            gate.wait(lambda: self._read_on(gate))
            self._watch()

    def _read_on(self, gate: Gate) -> None:
        self._reading = IN
        self._watch()

    def _watch(self) -> None:
        if self.open:
            self._loop.change(self.fd, self._reading | (OUT if self._queue else 0))

    def close(self, reason: str = "closed") -> None:
        """Close the descriptor and tell *on_close*."""
        if self.open:
            self.open = False
            self._loop.forget(self.fd)
            os.close(self.fd)
            self._queue.clear()
            self._on_close(reason)

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if self.open and events & (IN | HANGUP):
            self._receive()

    def _receive(self) -> None:
        try:
            data = os.read(self.fd, _READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(str(error))
            return
        if not data:
            self.close("the peer has gone")
            return
        try:
            for frame in self._decoder.feed(data):
                # a fault of ours in one of them doesn't spoil those after it
                self._loop.guard(lambda frame=frame: self._take(frame))  # type: ignore[misc]
                if not self.open:
                    return
        except FrameError as error:
            self.close(f"the peer broke the protocol: {error}")

    def _take(self, frame: Frame) -> None:
        try:
            self._on_frame(frame)
        except FrameError as error:
            self.close(f"the peer broke the protocol: {error}")

    def _flush(self) -> None:
        try:
            while self._queue:
                head = self._queue[0]
                written = os.write(self.fd, head)
                self._queued -= written
                if written == len(head):
                    self._queue.popleft()
                    self._queued -= _OVERHEAD
                else:
                    self._queue[0] = head[written:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self.close(str(error))
            return
        self.gate.update(self._queued)
        self._watch()
