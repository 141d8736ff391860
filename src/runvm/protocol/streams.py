"""A process's standard streams over frames, the same code at both ends: the shim on the host, the agent in the guest.

A Source reads a descriptor and sends what it gets, as far as the receiver has credited; a Sink writes what comes and
gives credit for what it has written. An empty payload in a stream's own direction is its end of file; against it, it
says that nobody reads any more.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable

from runvm.linux import syscalls
from runvm.linux.loop import HANGUP, IN, OUT, Loop
from runvm.protocol import frames
from runvm.protocol.gate import Gate

_SMALL = 4096
"""Bytes of a payload that waits together with others."""

Send = Callable[[int, int, bytes], None]
"""(kind, channel, payload): queues one frame to the other end."""


def _nothing() -> None:
    pass


class StreamSource:
    """Reads *fd* (owned) to its end into frames of *kind* on *channel*; *on_end* is called once when it is closed.

    What is read goes through *change* first, until that says that nothing more shall: it gets data, or nothing at the
    end, and gives what is to be sent. *whole*: what is read is a record, of which the part that doesn't fit would be
    lost. *read* reads instead of read(2). Nothing is read while *gate* is closed.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        kind: int,
        channel: int,
        send: Send,
        on_end: Callable[[], None],
        change: Callable[[bytes], tuple[bytes, bool]] | None = None,
        *,
        whole: bool = False,
        read: Callable[[int, int], bytes] = os.read,
        gate: Gate | None = None,
    ) -> None:
        self._loop, self._fd, self._kind, self._channel = loop, fd, kind, channel
        self._send, self._on_end, self._change = send, on_end, change
        self._window = frames.WINDOW
        self._least = frames.CHUNK if whole else 1
        self._paused = False
        self._take = read
        self._gate = gate
        self.due = sys.maxsize
        """How many bytes drain() has still to read."""
        self.open = True
        loop.watch(fd, IN, self._ready)

    @property
    def blocked(self) -> bool:
        """Whether the other end has to give credit, or to read what is queued, before drain() can read more."""
        return self.open and self.due > 0 and (not self._window or self._must_wait)

    @property
    def waiting(self) -> int:
        """How many bytes could be read now."""
        return struct.unpack("i", fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)))[0] if self.open else 0

    def credit(self, count: int) -> None:
        """The receiver can take *count* bytes more."""
        self._window = min(self._window + count, frames.WINDOW)
        if self.open and self._window >= self._least and not self._paused:
            self._loop.watch(self._fd, IN, self._ready)

    def discard(self) -> None:
        """Read on, and send nothing more."""
        self._send = lambda kind, channel, payload: self.credit(len(payload))
        self.credit(frames.WINDOW)

    def pause(self) -> None:
        """Read nothing more until resume()."""
        self._paused = True
        if self.open:
            self._loop.forget(self._fd)

    def resume(self) -> None:
        """Read again."""
        self._paused = False
        self.credit(0)

    def close(self, *, silent: bool = False) -> None:
        """End of file to the other end (unless *silent*: it asked for the end itself)."""
        if self.open:
            self.open = False
            self._loop.forget(self._fd)
            os.close(self._fd)
            if not silent:
                self.let_go()
                self._send(self._kind, self._channel, b"")
            self._on_end()

    def drain(self) -> None:
        """Read what is there now, *due* bytes at most, for a writer that has ended: nothing is waited for."""
        while self.open and self.due and not self.blocked and self._read():
            pass

    def let_go(self) -> None:
        """Send what *change* has held back until now."""
        if self._change is not None and (left := self._changed(b"")):
            self._window -= len(left)
            self._send(self._kind, self._channel, left)

    @property
    def _must_wait(self) -> bool:
        return self._gate is not None and self._gate.closed

    def _ready(self, events: int) -> None:
        if self._gate is not None and self._gate.closed:
            self._loop.forget(self._fd)
            self._gate.wait(self._go_on)
        else:
            self._read()

    def _go_on(self) -> None:
        self.credit(0)

    def _changed(self, data: bytes) -> bytes:
        assert self._change is not None
        data, more = self._change(data)
        if not more:
            self._change = None
        return data[: self._window]

    def _read(self) -> bool:
        try:
            data = self._take(self._fd, min(frames.CHUNK, self._window))
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:  # EIO: the last slave of a terminal is closed
            data = b""
        if not data:
            self.close()
            return False
        self.due = max(0, self.due - len(data))
        self.pass_on(data)
        return True

    def pass_on(self, data: bytes) -> None:
        """Send *data* as what was read next; the agent calls it too, with what a terminal held before."""
        if self._change is not None:
            data = self._changed(data)
        if data:
            self._window -= len(data)
            self._send(self._kind, self._channel, data)
            if self._window < self._least:
                self._loop.forget(self._fd)


class Sink:
    """Writes the frames of one stream to *fd* (owned, closed at end of file unless *keep*), giving credit as it goes.

    *on_gone* is called once if the reader of *fd* goes away first; what comes after is thrown away, but credited.
    With *careful* the
    descriptor may block (it couldn't be opened anew without blocking), so little is written at a time. *half*: it is a
    socket that has another descriptor for reading, so its writing side has to be ended by itself.
    """

    def __init__(
        self,
        loop: Loop,
        fd: int,
        kind: int,
        channel: int,
        send: Send,
        *,
        keep: bool = False,
        careful: bool = False,
        half: bool = False,
    ) -> None:
        self._loop, self._fd, self._kind, self._channel, self._send = loop, fd, kind, channel, send
        self._keep = keep
        self._limit = 4096 if careful else frames.CHUNK  # PIPE_BUF: what poll(2) promises to take (pipe(7))
        self._careful = careful
        self._half = half
        self._queue: deque[bytes | bytearray] = deque()
        self._written = 0
        """Bytes of the first of them."""
        self._ended = False
        self._owed = 0
        self._queued = 0
        self._carried = 0
        self.on_settled: Callable[[], None] = _nothing
        """Called whenever nothing is pending any more, or will be."""
        self.open = True

    @property
    def pending(self) -> int:
        """How many bytes still wait to be written."""
        return self._queued + self._carried

    @property
    def over(self) -> bool:
        """Whether nothing more will be written: all has been, or nobody reads."""
        return not self.pending and (self._ended or not self.open)

    def write(self, payload: bytes) -> None:
        """Take one frame's payload; an empty one ends the stream. Raises FrameError for more than was credited."""
        if not payload:
            self._ended = True
            if not self._queue:
                self._finish()
                self.on_settled()
            return
        if not self.open:
            self._credit(len(payload))
            return
        self._queued += len(payload)
        if self._queued > frames.WINDOW:
            raise frames.FrameError("more stream data than was credited")
        waits = bool(self._queue)
        self._enqueue(payload)
        if self._careful:
            self._loop.watch(self._fd, OUT, self._ready)
        elif not waits:
            self._flush()

    def _enqueue(self, payload: bytes) -> None:
        """What is small goes together: by itself it would take many times its size, which is all that is credited."""
        if not self._queue or len(payload) >= _SMALL:
            self._queue.append(payload)
            return
        last = self._queue[-1]
        if isinstance(last, bytearray) and len(last) < frames.CHUNK:
            last += payload
        else:
            self._queue.append(bytearray(payload))

    def change_sender(self) -> None:
        """From now on another sends, who knows nothing of what is pending: it is neither counted nor credited."""
        self._carried += self._queued
        self._queued = self._owed = 0

    def close(self) -> None:
        """Close the descriptor; what is pending is dropped."""
        if self.open:
            self.open = False
            self._loop.forget(self._fd)
            if self._half:
                syscalls.end_writing(self._fd)
            os.close(self._fd)
            self._credit(sum(map(len, self._queue)) - self._written)
            self._queue.clear()
            self._written = 0
            self._queued = self._carried = 0

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
        elif events & HANGUP:
            self._gone()

    def _gone(self) -> None:
        self.close()
        self._send(self._kind, self._channel, b"")
        self.on_settled()

    def _flush(self) -> None:
        try:
            while self._queue:
                head = self._queue[0]
                with memoryview(head) as view:
                    written = os.write(self._fd, view[self._written : self._written + self._limit])
                carried = min(written, self._carried)
                self._carried -= carried
                self._queued -= written - carried
                self._credit(written - carried)
                self._written += written
                if self._written == len(head):
                    self._queue.popleft()
                    self._written = 0
                if self._careful:
                    break
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # EPIPE, EIO: nobody reads
            self._gone()
            return
        if self._queue:
            self._loop.watch(self._fd, OUT, self._ready)
        else:
            self._loop.forget(self._fd)
            if self._ended:
                self._finish()
            self.on_settled()

    def _finish(self) -> None:
        if not self._keep:
            self.close()

    def _credit(self, count: int) -> None:
        self._owed += count
        if self._owed >= frames.WINDOW // 4:  # the sender never runs dry before: it has the other three quarters
            self._send(frames.CREDIT_KIND, self._channel, frames.CREDIT.pack(self._kind, self._owed))
            self._owed = 0
