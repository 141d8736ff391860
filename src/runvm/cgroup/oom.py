"""The guest's OOM kills shown in the container's cgroup on the host, where engines watch for them.

containerd and conmon wait on memory.oom_control (cgroup v1) or memory.events (v2) of the container's own cgroup, which
only the host's kernel writes. So a sacrifice is made: a child joins the cgroup as its first choice to be killed, the
limit is lowered to what is in use, and the child asks for more.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from runvm.errors import RunvmError
from runvm.linux import process
from runvm.linux.loop import IN, Loop
from runvm.log import log
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = 3.0
_INTERVAL = 5.0
_LONGEST = 300.0
"""At most that often a container's kills are shown, which takes a moment of the host's time: the pause doubles while
they go on, since a guest may tell of them without end."""
_ROOM = 2 << 20
"""Bytes above what is in use: the VM's processes go on meanwhile."""
_PAGE = 64 << 10
"""Of any host: the file says what was written to it only if that is whole pages."""
_FILES = (("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current"))


class _Pause(NamedTuple):
    until: float
    seconds: float


class _Limit(NamedTuple):
    """A cgroup's: the file, what it said *before*, and what it says while a kill is shown."""

    path: str
    before: str
    lowered: str

    @classmethod
    def of(cls, path: str, usage: str) -> _Limit:
        before = _read(path)
        if before.isdecimal() and int(before) > 1 << 62:
            before = "-1"  # v1's way to say none can't be written back on every kernel
        return cls(path, before, str(int(_read(usage)) + _ROOM & -_PAGE))

    def restore(self) -> None:
        """Have what it was before, unless somebody has set another one meanwhile. Raises OSError."""
        if _read(self.path) == self.lowered:
            _write(self.path, self.before)


class Display:
    """Shows kills to a host's kernel, one at a time and not more often than it can: each lowers a cgroup's limit for a
    moment, which a second one would take for the limit to be restored. *loop* waits for the process that does it."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._busy = False
        self._pauses: dict[tuple[str, ...], _Pause] = {}
        self._waiting: list[Callable[[], None]] = []

    def show(self, cgroups: tuple[str, ...]) -> None:
        """Make the host's kernel kill a child in the memory cgroup among *cgroups* (directories). It takes up to some
        seconds, for which nobody waits. Where it can't be done, a line in the log is all."""
        if self._busy or time.monotonic() < self._pauses.get(cgroups, _Pause(0, 0)).until:
            return
        for directory in cgroups:
            for name, usage in _FILES:
                if os.path.exists(f"{directory}/{name}"):
                    self._pause(cgroups)
                    self._start(directory, name, usage)
                    return

    def _pause(self, cgroups: tuple[str, ...]) -> None:
        now = time.monotonic()
        last = self._pauses.get(cgroups)
        goes_on = last is not None and now < last.until + last.seconds
        seconds = min(2 * last.seconds, _LONGEST) if last is not None and goes_on else _INTERVAL
        self._pauses = {each: pause for each, pause in self._pauses.items() if now < pause.until + pause.seconds}
        self._pauses[cgroups] = _Pause(now + seconds, seconds)

    def when_shown(self, action: Callable[[], None]) -> None:
        """Call *action*: at once, or when the kill that is being shown has been, or can't be."""
        if self._busy:
            self._waiting.append(action)
        else:
            action()

    def _start(self, directory: str, name: str, usage: str) -> None:
        told, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            pid = process.fork(partial(_attempt, directory, name, usage, tell))
        finally:
            os.close(tell)
        fd = os.pidfd_open(pid)
        self._busy = True

        def ended(events: int) -> None:
            self._busy = False
            self._loop.forget(fd)
            os.close(fd)
            os.waitpid(pid, 0)
            with suppress(OSError):  # the cgroup has gone
                # it may have been killed before it did
                for line in os.read(told, 4096).decode().splitlines():
                    _Limit(f"{directory}/{name}", *line.split()).restore()
            os.close(told)
            waiting, self._waiting = self._waiting, []
            for action in waiting:
                action()

        self._loop.watch(fd, IN, ended)


def _attempt(directory: str, name: str, usage: str, tell: int) -> None:
    process.close_above(2, (tell,))  # who waits for the supervisor's end by its sockets must not wait for this process
    try:
        limit = _Limit.of(f"{directory}/{name}", f"{directory}/{usage}")
        os.write(tell, f"{limit.before} {limit.lowered}\n".encode())
        _sacrifice(directory, limit)
    except (OSError, ValueError, RunvmError) as error:
        log.warning(f"the guest's OOM kill can't be shown in the host's cgroup: {error}")


def _sacrifice(directory: str, limit: _Limit) -> None:
    import mmap  # most containers never come here

    spared = _spare(directory)
    go, ready = os.pipe2(os.O_CLOEXEC)

    def child() -> None:
        os.close(ready)
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
        with open(f"{directory}/cgroup.procs", "w") as file:
            file.write("0")
        os.read(go, 1)
        # caches give way first: at most everything else that is in there
        memory = mmap.mmap(-1, int(limit.lowered) + _ROOM)
        for offset in range(0, len(memory), mmap.PAGESIZE):
            memory[offset] = 1

    pid = process.fork(child)
    os.close(go)
    try:
        try:
            _write(limit.path, limit.lowered)
        finally:
            os.close(ready)
        status = process.wait_child(pid, deadline=time.monotonic() + _SECONDS)
        if status is None:
            process.end_child(pid, "the child that was to be killed")
            log.warning("the guest's OOM kill isn't shown in the host's cgroup: its kernel killed nothing in time")
    finally:
        limit.restore()
        for path, score in spared.items():
            with suppress(OSError):  # it has ended
                _write(path, score)


def _spare(directory: str) -> dict[str, str]:
    """Make what is in the cgroup no choice of its own to the kernel: the VM's processes have the container's
    oom_score_adj, which may be the child's. The files changed and what they said."""
    found = {}
    for pid in _read(f"{directory}/cgroup.procs").split():
        path = f"/proc/{pid}/oom_score_adj"
        with suppress(OSError):  # it has ended, or it may not be lowered
            score = _read(path)
            if int(score) > 0:
                _write(path, "0")
                found[path] = score
    return found


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
