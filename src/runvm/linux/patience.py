"""Goes where a file system may not answer: by a process of its own, which is given up then."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from runvm.linux import process

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_HANGING = 3
"""Items at which it hangs, after which the others aren't tried."""


def visit(items: list[T], action: Callable[[T], None], *, seconds: float) -> list[T]:
    """Run *action* for each of *items*, in another process; those for which it took longer than *seconds*, and all that
    were left then if there are several such. An OSError is no matter."""
    hanging: list[T] = []
    while items and len(hanging) < _HANGING:
        done = _run(items, action, seconds)
        hanging += items[done : done + 1]
        items = items[done + 1 :]
    return hanging + items


def _run(items: list[T], action: Callable[[T], None], seconds: float) -> int:
    """How many were done before one that hangs."""
    reader, writer = os.pipe()

    def run() -> None:
        process.close_above(2, (writer,))
        for item in items:
            with suppress(OSError):
                action(item)
            os.write(writer, b".")

    pid = process.fork(run)
    os.close(writer)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    done = 0
    while poll.poll(seconds * 1000) and os.read(reader, 1):
        done += 1
    os.close(reader)
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        process.wait_child(pid, deadline=time.monotonic() + 0.1)  # most can be ended
    return done
