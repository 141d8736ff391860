"""A scope of systemd's as a container's host cgroup (--systemd-cgroup), asked for by busctl, which is part of systemd.

A scope begins with a process in it: a placeholder, until the container's own process has joined. It ends by itself
when its last process has gone (systemd.scope(5)).
"""

from __future__ import annotations

import os
import signal
import time

from runvm.errors import DeadlineError, HostError, SpecError, UnsupportedError
from runvm.linux import process

_RUNNING = "/run/systemd/system"
"""Where systemd is process 1 (sd_booted(3))."""
_SECONDS = 30.0


def names(path: str, cid: str) -> tuple[str, str]:
    """(slice, scope) of cgroupsPath `slice:prefix:name`; '' is runvm's scope in the slice of the system's services.

    Raises: SpecError in runc's words.
    """
    parts = path.split(":") if path else ["", "runvm", cid]
    if len(parts) != 3:
        raise SpecError(f'expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "{path}"')
    slice_name, prefix, name = parts
    return slice_name or "system.slice", f"{prefix}-{name}.scope" if prefix else f"{name}.scope"


def arguments(slice_name: str, scope: str, cid: str, pid: int) -> list[str]:
    """busctl's argv that starts *scope* with process *pid* in it (org.freedesktop.systemd1(5), StartTransientUnit)."""
    manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    properties = (
        *("Description", "s", f"container {cid}"),
        *("Slice", "s", slice_name),
        *("Delegate", "b", "true"),
        *("DefaultDependencies", "b", "false"),
        *("CollectMode", "s", "inactive-or-failed"),
        *("PIDs", "au", "1", str(pid)),
    )
    call = ("StartTransientUnit", "ssa(sv)a(sa(sv))", scope, "fail", "6", *properties, "0")
    return ["busctl", "--quiet", "call", *manager, *call]


class Scope:
    """A started scope: *path* is its cgroup, the same below each hierarchy."""

    def __init__(self, path: str, placeholder: int) -> None:
        self.path = path
        self._placeholder = placeholder

    def joined(self) -> None:
        """The container's process is in it: the placeholder goes."""
        process.end_child(self._placeholder, "the scope's placeholder")


def start(cgroups_path: str, cid: str) -> Scope:
    """Raises: UnsupportedError where systemd doesn't run, SpecError, HostError where it refuses, DeadlineError."""
    import subprocess

    if not os.path.isdir(_RUNNING):
        raise UnsupportedError("systemd not running on this host, cannot use systemd cgroups manager")
    slice_name, scope = names(cgroups_path, cid)
    parent = os.getpid()

    def wait() -> None:
        process.die_with_parent(parent)
        signal.pause()

    pid = process.fork(wait)
    try:
        command = arguments(slice_name, scope, cid, pid)
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        if done.returncode:
            raise HostError(f"systemd doesn't start {scope}: {done.stderr.strip()}")
        return Scope(_wait_in(pid, scope), pid)
    except BaseException as error:
        process.end_child(pid, "the scope's placeholder")
        if isinstance(error, subprocess.TimeoutExpired):
            raise DeadlineError(f"timed out after {_SECONDS:.0f} s waiting for systemd to start {scope}") from None
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
