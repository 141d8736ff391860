"""The pipes of a process's standard streams."""

from __future__ import annotations

import fcntl
import os

from runvm.records import NamedTuple

_SIZE = 1 << 20
"""Bytes that a pipe may hold, the most that anybody may ask for (pipe(7)): with the usual 64 KiB the agent and the
process wait for each other at each frame."""


class Pipes(NamedTuple):
    """The agent's ends, which don't block, and the process's, in the order of its descriptors."""

    stdin: int
    stdout: int
    stderr: int
    theirs: tuple[int, int, int]


def make() -> Pipes:
    """New ones. Raises OSError."""
    stdin_read, stdin_write = os.pipe2(os.O_CLOEXEC)
    stdout_read, stdout_write = os.pipe2(os.O_CLOEXEC)
    stderr_read, stderr_write = os.pipe2(os.O_CLOEXEC)
    for fd in (stdin_write, stdout_read, stderr_read):
        os.set_blocking(fd, False)
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _SIZE)
    return Pipes(stdin_write, stdout_read, stderr_read, (stdin_read, stdout_write, stderr_write))
