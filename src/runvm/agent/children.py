"""Children of PID 1: programs that it runs, processes that these leave behind, and the VM's orphans."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

from runvm.linux.loop import Loop

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


_ASIDE = 900
"""Descriptors from here on are free: the agent itself has less, of the 1024 that process 1 may have."""


class Children:
    """Starts and reaps; each callback gets the status of wait(2)."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._programs: dict[int, Callable[[int], None]] = {}
        self._adopted: dict[int, Callable[[int], None]] = {}
        self._unclaimed: dict[int, int] = {}

    def spawn(self, argv: list[str], ended: Callable[[int], None], stdio: list[int] | None = None) -> int:
        """Start a program with the given descriptors as 0, 1, 2 and up (None: /dev/null); its pid. Raises OSError."""
        actions: list[tuple[Any, ...]] = []
        if stdio is None:
            actions.extend((os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in range(3))
        else:
            # first out of the way of the low numbers, which they may have themselves
            numbers = range(len(stdio))
            actions.extend((os.POSIX_SPAWN_DUP2, stdio[number], _ASIDE + number) for number in numbers)
            actions.extend((os.POSIX_SPAWN_DUP2, _ASIDE + number, number) for number in numbers)
            actions.extend((os.POSIX_SPAWN_CLOSE, _ASIDE + number) for number in numbers)
        pid = os.posix_spawn(
            argv[0],
            argv,
            _ENVIRONMENT,
            file_actions=actions,
            setsigdef=[signal.SIGCHLD, signal.SIGPIPE, signal.SIGINT],
        )
        self._programs[pid] = ended
        return pid

    def adopt(self, pid: int, ended: Callable[[int], None]) -> None:
        """Wait for a process that a program of spawn() has left behind; it may have ended already."""
        early = self._unclaimed.pop(pid, None)
        if early is None:
            self._adopted[pid] = ended
        else:
            ended(early)

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._programs.pop(pid, None) or self._adopted.pop(pid, None)
            if ended is not None:
                # the others are collected whatever is wrong with this one
                self._loop.guard(partial(ended, status))
            elif self._programs:
                # a program may end after the process that it leaves behind: keep the status until it is adopted
                self._unclaimed[pid] = status
            else:
                self._unclaimed.clear()
