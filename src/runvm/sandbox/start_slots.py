"""Slots for starts of virtual machines: many at once on a busy host would all be too slow for their deadlines."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from runvm.errors import DeadlineError
from runvm.linux import files

_AT_ONCE = 2
"""Starts under way for each processor: some of a start is waiting."""
_SECONDS = 600.0
_INTERVAL = 0.05


def count() -> int:
    """How many there are."""
    return _AT_ONCE * (os.cpu_count() or 1)


def take(state_dir: str) -> int:
    """Wait for a slot: a descriptor that holds it until it is closed, or the process ends.

    Record locks, since a process that is forked meanwhile doesn't have them (fcntl(2)). Raises: DeadlineError, OSError.
    """
    files.make_directories(state_dir, 0o711, exist_ok=True)
    fd = os.open(f"{state_dir}/start-slots", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _SECONDS
        while True:
            for number in range(count()):
                try:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EAGAIN):
                        raise
                else:
                    return fd
            if time.monotonic() > deadline:
                raise DeadlineError(f"timed out after {_SECONDS:.0f} s waiting for other virtual machines to start")
            time.sleep(_INTERVAL)
    except BaseException:
        os.close(fd)
        raise
