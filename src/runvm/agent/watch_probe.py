"""Tells which processes of the guest begin to watch files by inotify: a probe in the kernel's inotify_add_watch(2).

It costs nothing where nobody watches, unlike a look at all processes from time to time. The kernel keeps some hundred
calls until they are read (kernel's kprobetrace.rst, ftrace.rst).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from runvm.linux import files, syscalls
from runvm.linux.loop import IN, Loop

_TRACING = "/sys/kernel/tracing"
# where it returns: the watch is there by then
_PROBES = (
    "r:runvm/watch __x64_sys_inotify_add_watch",
    "r:runvm/watch32 __ia32_sys_inotify_add_watch",
    "r:runvm/watcharm __arm64_sys_inotify_add_watch",
)
_BUFFER_KIB = "64"
_READ = 64 << 10
_PAUSE_SECONDS = 0.1
"""How long calls are collected: a program that watches a tree makes thousands."""


class WatchProbe:
    """*on_watch* gets the threads that have begun to watch something; None stands for those that were too many to
    tell."""

    def __init__(self, loop: Loop, on_watch: Callable[[set[int] | None], None]) -> None:
        self._loop = loop
        self._on_watch = on_watch

    def set_up(self) -> None:
        """Begin. Raises OSError where the kernel can't."""
        syscalls.mount("tracefs", _TRACING, "tracefs")
        files.write(f"{_TRACING}/buffer_size_kb", _BUFFER_KIB)
        files.write(f"{_TRACING}/buffer_percent", "0")
        found = False
        for probe in _PROBES:
            with suppress(OSError):  # a kernel without 32-bit programs
                _append(f"{_TRACING}/kprobe_events", probe)
                files.write(f"{_TRACING}/events/{probe.split()[0][2:]}/enable", "1")
                found = True
        if not found:
            raise OSError("no function of inotify's to probe")
        self._fd = os.open(f"{_TRACING}/trace_pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._wait()

    def _wait(self) -> None:
        self._loop.watch(self._fd, IN, lambda events: self._read())

    def _read(self) -> None:
        self._loop.forget(self._fd)
        self._loop.call_later(_PAUSE_SECONDS, self._wait)
        found: set[int] | None = set()
        try:
            while data := os.read(self._fd, _READ):
                threads = callers(data)
                found = None if threads is None or found is None else found | threads
        except BlockingIOError:
            pass
        if found is None or found:
            self._on_watch(found)


def callers(lines: bytes) -> set[int] | None:
    """The threads that lines of trace_pipe are of: `name-NUMBER [cpu] …: watch: (…)`; None where some were lost."""
    found = set()
    for line in lines.splitlines():
        if b"LOST" in line and b": watch" not in line:
            return None
        before, bracket, _ = line.partition(b": watch")[0].rpartition(b" [")
        number = before.rstrip().rpartition(b"-")[2]
        if bracket and number.isdigit():
            found.add(int(number))
    return found


def _append(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
