"""flock(2) with a deadline: containers, templates and guest images are each written by one process at a time."""

from __future__ import annotations

import fcntl
import time
from typing import TYPE_CHECKING

from runvm.errors import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable


def lock(
    fd: int, *, deadline: float, timeout_message: str, interval: float = 0.01, waiting: Callable[[], None] | None = None
) -> None:
    """Lock *fd* exclusively, looking every *interval* seconds; *waiting* is called once if another process holds it.

    Raises: DeadlineError with *timeout_message*.
    """
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DeadlineError(timeout_message) from None
        if waiting is not None:
            waiting()
            waiting = None
        time.sleep(interval)
