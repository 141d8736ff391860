"""A scope of systemd's as a container's host cgroup (--systemd-cgroup), asked for by busctl, which is part of systemd.

A scope begins with a process in it: a placeholder, until the container's own process has joined. It ends by itself
when its last process has gone (systemd.scope(5)).
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from runvm.cgroup import hierarchy, unit_properties
from runvm.cgroup.limits import NONE
from runvm.errors import DeadlineError, HostError, SpecError, UnsupportedError
from runvm.linux import process, userns

if TYPE_CHECKING:
    from runvm.cgroup.limits import Limits
    from runvm.cgroup.unit_properties import Property

_RUNNING = "/run/systemd/system"
"""Where systemd is process 1 (sd_booted(3))."""
_SYSTEM_BUS = "/run/dbus/system_bus_socket"
_SECONDS = 30.0
_INFINITY = str((1 << 64) - 1)
"""No limit, to systemd."""
_MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def names(path: str, cid: str) -> tuple[str, str]:
    """(slice, scope) of cgroupsPath `slice:prefix:name`; '' is runvm's scope in the slice of the system's services, or
    for a user in the user's.

    Raises: SpecError with runc's message.
    """
    parts = path.split(":") if path else ["", "runvm", cid]
    if len(parts) != 3:
        raise SpecError(f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{path}"')
    slice_name, prefix, name = parts
    default = "user.slice" if userns.limited() else "system.slice"
    return slice_name or default, f"{prefix}-{name}.scope" if prefix else f"{name}.scope"


def limit_properties(limits: Limits, *, unified: bool) -> list[Property]:
    """The limits as systemd knows them: those of the cgroup's files that it doesn't know of it sets back at a
    daemon-reload (systemd.resource-control(5))."""
    found: list[Property] = []
    if limits.memory:
        memory = _INFINITY if limits.memory == NONE else str(limits.memory)
        found.append(("MemoryMax" if unified else "MemoryLimit", "t", memory))
    if limits.quota == NONE:
        found.append(("CPUQuotaPerSecUSec", "t", _INFINITY))
    elif limits.quota:
        # in whole hundredths of a processor: others are refused
        each = -(-limits.quota * 1_000_000 // limits.period // 10_000) * 10_000
        found.append(("CPUQuotaPerSecUSec", "t", str(each)))
        found.append(("CPUQuotaPeriodUSec", "t", str(limits.period)))
    if limits.shares:
        found.append(("CPUWeight", "t", str(limits.weight)) if unified else ("CPUShares", "t", str(limits.shares)))
    return found


def arguments(slice_name: str, scope: str, cid: str, pid: int, more: list[Property]) -> list[str]:
    """busctl's argv that starts *scope* with process *pid* in it and *more* properties (org.freedesktop.systemd1(5),
    StartTransientUnit)."""
    properties: list[Property] = [
        ("Description", "s", f"container {cid}"),
        ("Slice", "s", slice_name),
        ("Delegate", "b", "true"),
        ("DefaultDependencies", "b", "false"),
        ("CollectMode", "s", "inactive-or-failed"),
        ("PIDs", "au", "1", str(pid)),
        *more,
    ]
    call = ("StartTransientUnit", "ssa(sv)a(sa(sv))", scope, "fail", *_listed(properties), "0")
    return [*_busctl(), *_MANAGER, *call]


def _listed(properties: list[Property]) -> tuple[str, ...]:
    return str(len(properties)), *(word for each in properties for word in each)


def _busctl() -> tuple[str, ...]:
    """For a user it is the user's own systemd that is asked."""
    return ("busctl", *(("--user",) if userns.limited() else ()), "--quiet", "--", "call")  # -- for numbers below 0


def change(name: str, limits: Limits) -> None:
    """Tell systemd of a running scope's new limits. Raises HostError, DeadlineError."""
    properties = limit_properties(limits, unified=hierarchy.unified())
    if properties:
        call = ("SetUnitProperties", "sba(sv)", name, "true", *_listed(properties))
        _run([*_busctl(), *_MANAGER, *call], f"systemd doesn't change {name}")


def stop(name: str) -> None:
    """Have systemd forget a scope of which no process is left: on cgroup v1 it doesn't always see that for itself
    (systemd.scope(5)). One that has gone is no error. Raises HostError, DeadlineError."""
    try:
        _run([*_busctl(), *_MANAGER, "StopUnit", "ss", name, "replace"], f"systemd doesn't stop {name}")
    except HostError as error:
        if "not loaded" not in error.message:
            raise


def _run(command: list[str], failure: str) -> None:
    import subprocess

    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DeadlineError(f"timed out after {_SECONDS:.0f} s waiting for systemd's answer: {failure}") from None
    if done.returncode:
        lacks_bus = not userns.limited() and not os.path.exists(_SYSTEM_BUS)
        raise HostError(f"{failure}: {done.stderr.strip()}", do="apt-get install dbus" if lacks_bus else "")


class Scope:
    """A started scope: *name* is the unit's, *path* its cgroup, the same below each hierarchy."""

    def __init__(self, name: str, path: str, placeholder: int) -> None:
        self.name = name
        self.path = path
        self._placeholder = placeholder

    def joined(self) -> None:
        """The container's process is in it: the placeholder goes."""
        process.end_child(self._placeholder, "the scope's placeholder")


def start(cgroups_path: str, cid: str, limits: Limits, annotations: dict[str, str]) -> Scope:
    """A new scope, with what *annotations* ask for beside the limits.

    Raises: UnsupportedError where systemd doesn't run, SpecError, HostError where it refuses, DeadlineError.
    """
    if not os.path.isdir(_RUNNING):
        raise UnsupportedError("systemd not running on this host, cannot use systemd cgroups manager")
    slice_name, scope = names(cgroups_path, cid)
    properties = [*unit_properties.of(annotations), *limit_properties(limits, unified=hierarchy.unified())]
    parent = os.getpid()

    def wait() -> None:
        process.die_with_parent(parent)
        signal.pause()

    pid = process.fork(wait)
    try:
        command = arguments(slice_name, scope, cid, pid, properties)
        _run(command, f"systemd doesn't start {scope}")
        return Scope(scope, _wait_in(pid, scope), pid)
    except BaseException:
        process.end_child(pid, "the scope's placeholder")
        raise


def _wait_in(pid: int, scope: str) -> str:
    """The cgroup of *pid* once it is in *scope*: systemd answers before that. Raises DeadlineError."""
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/cgroup") as file:
            for line in file:
                _, controllers, path = line.rstrip("\n").split(":", 2)
                if controllers in ("", "name=systemd") and path.rpartition("/")[2] == scope:
                    return path
        time.sleep(0.01)
    raise DeadlineError(f"timed out after {_SECONDS:.0f} s waiting for {scope} to take its process")
