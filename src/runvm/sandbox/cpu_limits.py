"""The CPU limits around a VM, quota and weight, and when they don't hold: while runvm itself has work to do in it.

A guest that boots, or serves a request, under its container's quota of a hundredth of a processor takes minutes. So the
limits hold from the container's `start` on, and are lifted while a command waits for the guest: for a time that is
bounded, whatever the guest does. The guest's own limit on its container holds all the while.

`<sandbox>/cpu.d/` has a file for each container with such limits. Whoever lifts them holds a shared lock (flock(2)) on
`<sandbox>/cpu.lock`, and the last one to let go puts them back. For a command that was killed meanwhile, the supervisor
does.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from runvm.linux import files
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runvm.linux.loop import Loop
    from runvm.sandbox.registry import Sandbox

LIFTED_SECONDS = 10.0
"""How long a command may keep the limits lifted, should the guest not answer."""
_LOCK_SECONDS = 2.0
_INTERVAL = 0.002
_AGAIN_SECONDS = 1.0
_KEYS = ("quota", "period", "shares", "idle")


class LimitEntry(NamedTuple):
    """A container's limits: the *directories* of its cgroup, and of its *cpu* (an OCI object) what _KEYS name, and
    whether they hold: *begun* is set by its `start`."""

    directories: tuple[str, ...]
    cpu: dict[str, int]
    begun: bool


def note(sandbox: Sandbox, cid: str, directories: tuple[str, ...], cpu: dict[str, Any]) -> None:
    """Write down a new container's limits, if it has any. Raises OSError."""
    found = _of(cpu)
    if not directories or not found:
        return
    _write(sandbox, cid, LimitEntry(directories, found, begun=False))


def change(sandbox: Sandbox, cid: str, directories: tuple[str, ...], cpu: dict[str, Any], *, begun: bool) -> None:
    """Other limits for a container, those that *cpu* names; they hold when they are put back. Raises OSError."""
    found = _of(cpu)
    if not found or not directories:
        return
    entry = _read(sandbox, cid) or LimitEntry(directories, {}, begun)
    _write(sandbox, cid, entry._replace(cpu={**entry.cpu, **found}))


def begin(sandbox: Sandbox, cid: str) -> None:
    """From now on the container's limits hold, whenever nobody has lifted them. Raises OSError."""
    entry = _read(sandbox, cid)
    if entry is not None and not entry.begun:
        _write(sandbox, cid, entry._replace(begun=True))


def of(sandbox: Sandbox, cid: str) -> dict[str, int]:
    """Quota, period and shares of a container; {} where it has none."""
    entry = _read(sandbox, cid)
    return {} if entry is None else entry.cpu


def forget(sandbox: Sandbox, cid: str) -> None:
    """The container has gone."""
    with suppress(OSError):
        os.unlink(f"{sandbox.directory}/cpu.d/{cid}")


def settle(sandbox: Sandbox) -> bool:
    """Put the limits back unless somebody has lifted them; whether they hold now."""
    try:
        fd = os.open(f"{sandbox.directory}/cpu.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True  # there are none
    return _release(sandbox, fd)


class Lift:
    """The limits of a VM don't hold from now until release()."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._fd = -1
        try:
            fd = os.open(f"{sandbox.directory}/cpu.lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return  # there are none
        if not _share(fd):
            os.close(fd)
            return  # somebody has stopped while putting them back: it's slow then, but works
        self._fd = fd
        from runvm.cgroup.cgroup import Cgroup

        for entry in _entries(sandbox):
            Cgroup(entry.directories).lift_cpu(entry.cpu)

    @property
    def held(self) -> bool:
        """Whether there is anything to put back."""
        return self._fd >= 0

    def release(self) -> None:
        """Let go: the limits hold again, unless somebody else has lifted them as well."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            _release(self._sandbox, fd)


@contextmanager
def lifted(sandbox: Sandbox, *, seconds: float = LIFTED_SECONDS) -> Iterator[None]:
    """For a command: without limits for as long as it waits for the guest, but *seconds* at most.

    The time is kept by SIGALRM, which needs no thread: the wait goes on after it.
    """
    lift = Lift(sandbox)
    if not lift.held:
        yield
        return
    import signal

    before = signal.signal(signal.SIGALRM, lambda number, frame: lift.release())
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        lift.release()


class QuotaKeeper:
    """The supervisor's part: it lifts the limits for the end of a container, and puts them back for a command that was
    killed before it could."""

    def __init__(self, loop: Loop, sandbox: Sandbox) -> None:
        self._loop = loop
        self._sandbox = sandbox
        self._lift: Lift | None = None

    def lift(self, seconds: float) -> None:
        """Without limits for so long; once at a time."""
        if self._lift is None:
            self._lift = Lift(self._sandbox)
            self._loop.call_later(seconds, self._let_go)

    def settle(self) -> None:
        """A command has gone. One that is just ending may have its lock a moment longer than its connection."""
        if self._lift is None and not settle(self._sandbox):
            self._loop.call_later(_AGAIN_SECONDS, self._settle_again)

    def _settle_again(self) -> None:
        if self._lift is None:
            settle(self._sandbox)

    def _let_go(self) -> None:
        if self._lift is not None:
            self._lift.release()
            self._lift = None


def _of(cpu: dict[str, Any]) -> dict[str, int]:
    return {key: int(cpu[key]) for key in _KEYS if cpu.get(key)}


def _share(fd: int) -> bool:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(_INTERVAL)


def _release(sandbox: Sandbox, fd: int) -> bool:
    """Close *fd*. Where no other process holds the lock, the limits hold again.

    flock(2) drops the shared lock before it tries for the exclusive one: of two that let go at once, the later gets it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        from runvm.cgroup.cgroup import Cgroup

        for entry in _entries(sandbox):
            if entry.begun:
                Cgroup(entry.directories).limit_cpu(entry.cpu)
        return True
    finally:
        os.close(fd)


def _entries(sandbox: Sandbox) -> list[LimitEntry]:
    try:
        names = os.listdir(f"{sandbox.directory}/cpu.d")
    except OSError:
        return []
    return [entry for name in names if (entry := _read(sandbox, name)) is not None]


def _read(sandbox: Sandbox, cid: str) -> LimitEntry | None:
    try:
        with open(f"{sandbox.directory}/cpu.d/{cid}") as file:
            directories, cpu, begun = json.load(file)
    except (OSError, ValueError):
        return None
    return LimitEntry(tuple(directories), cpu, begun)


def _write(sandbox: Sandbox, cid: str, entry: LimitEntry) -> None:
    directory = f"{sandbox.directory}/cpu.d"
    files.make_directories(directory, 0o700, exist_ok=True)
    temporary = f"{sandbox.directory}/.cpu-{os.getpid()}"
    with open(temporary, "w", opener=files.private) as file:
        json.dump(entry, file)
    os.rename(temporary, f"{directory}/{cid}")
    os.close(os.open(f"{sandbox.directory}/cpu.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
