"""JSON that a caller gives by a pipe: `exec --process /dev/stdin`, `update --resources <(…)`."""

from __future__ import annotations

import os
import select
import time

SECONDS = 10.0
"""How long the next part of it may take."""


def read_to_end(fd: int, limit: int) -> bytes:
    """The bytes of a pipe that doesn't block, until its last writer has closed it; at most *limit*. Raises OSError."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    deadline = time.monotonic() + SECONDS
    while len(data) <= limit:  # a FIFO that has no writer yet reads as empty
        try:
            part = os.read(fd, 1 << 16)
        except BlockingIOError:
            part = None
        if part:
            data += part
            deadline = time.monotonic() + SECONDS
        elif part == b"" and data:
            return data
        else:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise OSError(0, f"timed out after {SECONDS:.0f} s waiting for who writes into it")
            if ready[0][1] == select.POLLHUP:
                return data
    raise OSError(0, f"larger than {limit} bytes")
