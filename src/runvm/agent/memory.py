"""Memory on demand: the guest starts small, and tells the host when its containers need more, or less again.

All containers are in one cgroup, whose memory.high lies a little below what there is (kernel's cgroup-v2.rst): who goes
beyond is slowed down, not killed, and memory.events wakes the agent. So the host has the time to plug more in, and an
idle guest looks at nothing. Cached files alone are no need: what is beyond is taken from them first.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import Any

from runvm.agent import cgroups
from runvm.linux import files
from runvm.linux.loop import Loop
from runvm.protocol.messages import Json, MemoryFree, MemoryLow, UseMemory

_MIB = 1 << 20
_RESERVE = 64 * _MIB
_SHARE = 32
"""That is left to the kernel beside its own reserve, and 1/_SHARE of the memory: what is plugged in needs 1/64 of its
size for the kernel's account of it."""
_NEED = 0.7
"""How much of the containers' room has to be more than cached files before more is asked for."""
_QUIET_SECONDS = 0.3
"""How long nothing is looked at after the kernel has told of pressure: it may a hundred times a second."""
_LOOK_SECONDS = 0.02
_PLUG_SECONDS = 15.0
"""How long memory that the host promised may take to come, and the host to answer."""
_IDLE_SECONDS = 30.0
"""How often a guest that has grown looks for memory to give back."""
_IDLE_LOOKS = 2


class Memory:
    """Watches the memory of this guest's containers once the host has told that there is more. *event* queues a message
    to the host."""

    def __init__(self, loop: Loop, event: Callable[[Any], None]) -> None:
        self._loop = loop
        self._event = event
        self._fd = -1
        self._asked = 0
        self._final = False
        self._idle = 0
        self._base = 0
        self._watching_idle = False

    def use(self, request: UseMemory) -> Json:
        """The host's word: how much memory there is or is just being plugged in, and whether that is all."""
        self._asked = 0
        self._final = request.final
        if self._final:
            self._forget()
            _set_high(None)
            return {}
        if not self._base:
            self._base = _meminfo()["MemTotal"]
        self._follow(request.mib * _MIB, time.monotonic() + _PLUG_SECONDS)
        if request.mib * _MIB > self._base and not self._watching_idle:
            self._watching_idle = True
            self._loop.call_later(_IDLE_SECONDS, self._look_for_free)
        return {}

    def _follow(self, target: int, until: float) -> None:
        """Let the containers have what has come, until *target* bytes are there but for the kernel's own part."""
        if self._final or self._asked:
            return
        total = _meminfo()["MemTotal"]
        # what is to be taken back isn't theirs any more, though it is still there
        _set_high(_room(max(0, total - target)))
        if total >= target * 0.9 or time.monotonic() > until:
            self._watch()
        else:
            self._loop.call_later(_LOOK_SECONDS, lambda: self._follow(target, until))

    def _watch(self) -> None:
        if self._fd < 0:
            self._fd = os.open(f"{cgroups.ALL}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        os.pread(self._fd, 4096, 0)
        self._loop.watch(self._fd, select.POLLPRI, lambda events: self._pressed())

    def _forget(self) -> None:
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _pressed(self) -> None:
        """The containers have come to their limit."""
        self._loop.forget(self._fd)
        room = _room()
        _set_high(room)
        if _needed() > room * _NEED:
            self._asked += 1
            asked = self._asked
            self._event(MemoryLow())
            self._loop.call_later(_PLUG_SECONDS, lambda: self._unanswered(asked))
        else:
            self._loop.call_later(_QUIET_SECONDS, self._watch_again)

    def _watch_again(self) -> None:
        if not (self._final or self._asked):
            self._watch()

    def _unanswered(self, asked: int) -> None:
        """No word of the host's: nobody is to be held up for good."""
        if self._asked == asked:
            self._final = True
            self._forget()
            _set_high(None)

    def _look_for_free(self) -> None:
        """Whether most of what there is has been free for some time: the host takes a part of it back then."""
        found = _meminfo()
        total, free = found["MemTotal"], found["MemAvailable"]
        if total <= self._base + 64 * _MIB or self._final:
            self._watching_idle = False
            return
        self._idle = self._idle + 1 if free > total // 2 else 0
        if self._idle >= _IDLE_LOOKS:
            self._idle = 0
            self._event(MemoryFree(free // _MIB))
        self._loop.call_later(_IDLE_SECONDS, self._look_for_free)


def _meminfo() -> dict[str, int]:
    """Bytes by name (proc(5))."""
    found = {}
    for line in files.read("/proc/meminfo").splitlines()[:8]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) << 10
    return found


def _needed() -> int:
    """Bytes of the containers' that can't be freed by dropping cached files."""
    lines = dict(line.split(None, 1) for line in files.read(f"{cgroups.ALL}/memory.stat").splitlines())
    cached = int(lines.get("inactive_file", 0)) + int(lines.get("active_file", 0))
    return max(0, int(files.read(f"{cgroups.ALL}/memory.current")) - cached)


def _room(leaving: int = 0) -> int:
    """Bytes that the containers may use as things are, but for those that are *leaving*."""
    found, needed = _meminfo(), _needed()
    reserve = _RESERVE + found["MemTotal"] // _SHARE + leaving
    return max(needed // 2, needed + found["MemAvailable"] - reserve)


def _set_high(size: int | None) -> None:
    """Slow the containers down beyond *size* bytes; None: never."""
    files.write(f"{cgroups.ALL}/memory.high", "max" if size is None else str(size))
