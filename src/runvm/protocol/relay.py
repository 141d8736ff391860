"""Sockets carried over frames, each on a channel of its own: the same code at both ends of a forwarded connection."""

from __future__ import annotations

import os
from collections.abc import Callable

from runvm.linux.loop import Loop
from runvm.protocol import frames
from runvm.protocol.frames import Frame
from runvm.protocol.gate import Gate
from runvm.protocol.streams import Send, Sink, StreamSource


class Relay:
    """All sockets of one end. What they say goes out as frames of the kind *says*, what they are told comes as *told*:
    STDIN is toward the guest, STDOUT toward the host. They wait at *gate*, of the connection that *send* is of."""

    def __init__(self, loop: Loop, send: Send, *, says: int, told: int, gate: Gate) -> None:
        self._loop = loop
        self._gate = gate
        self._send = send
        self._says = says
        self._told = told
        self._open: dict[int, tuple[StreamSource, Sink]] = {}

    def __len__(self) -> int:
        """How many sockets there are; those that both sides have ended don't count."""
        self._forget_ended()
        return len(self._open)

    def add(self, channel: int, fd: int, *, whole: bool = False, read: Callable[[int, int], bytes] = os.read) -> None:
        """Carry the connected socket *fd* (owned) until both sides have ended; *whole* and *read* as for Source."""
        self._forget_ended()
        os.set_blocking(fd, False)
        try:
            other = os.dup(fd)
        except OSError:  # no descriptors are left: to the other end both sides have ended
            os.close(fd)
            self._send(self._says, channel, b"")
            self._send(self._told, channel, b"")
            return
        sink = Sink(self._loop, other, self._told, channel, self._send, half=True)
        source = StreamSource(
            self._loop, fd, self._says, channel, self._send, lambda: None, whole=whole, read=read, gate=self._gate
        )
        self._open[channel] = (source, sink)

    def close(self) -> None:
        """End all sockets, without a word to the other end."""
        for source, sink in self._open.values():
            source.close(silent=True)
            sink.close()
        self._open.clear()

    def frame(self, frame: Frame) -> bool:
        """Take a frame of the other end's; False where it is of no socket here. Raises FrameError."""
        pair = self._open.get(frame.channel)
        if pair is None:
            return False
        source, sink = pair
        if frame.kind == frames.CREDIT_KIND:
            stream, count = frames.decode_credit(frame)
            if stream == self._says:
                source.credit(count)
        elif frame.kind == self._told:
            sink.write(frame.payload)
        elif frame.kind == self._says and not frame.payload:
            source.close(silent=True)
        self._forget_ended()
        return True

    def _forget_ended(self) -> None:
        for channel, (source, sink) in list(self._open.items()):
            if not source.open and not sink.open:
                del self._open[channel]
