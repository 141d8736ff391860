"""The host's books: what exists now, what is new since a snapshot, and which processes belong to a container.

Processes are those below this (subreaping) test process, so nothing escapes and nobody else's are counted; of mounts,
cgroups and sockets those are taken that bear a mark of the tests or of the runtime.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from framework import process
from framework.bundle import CGROUP_PARENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from framework.runtime import Container, Runtime

KEPT_CGROUPS = (
    CGROUP_PARENT,
    f"{CGROUP_PARENT}/docker",
    f"{CGROUP_PARENT}/podman",
    f"{CGROUP_PARENT}/cri",
)  # the parents of all containers stay
VERDICTS = frozenset(("kvm.json", "kvm.lock", "uml.json", "uml.lock"))
"""What was found out about the host stays until it reboots, whichever command asked first."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"
"""Tells a running kernel from another, which may be of the same release (random(4))."""
SETTLE_S = 3.0  # what ends a moment after the command that ended it is no leak


def boot_id() -> str:
    """That of this host's kernel."""
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


class Snapshot(NamedTuple):
    """Everything countable, as the text that a failing test shows; a process with the ancestor that is our child."""

    entries: dict[str, str]


class Host:
    """Compares the host with a snapshot. *watched* are the directories in which a runtime keeps its state."""

    def __init__(self, watched: tuple[str, ...], marks: tuple[str, ...]) -> None:
        self.watched = watched
        self.marks = (*marks, *watched, CGROUP_PARENT)
        self.start = self.snapshot()

    def snapshot(self) -> Snapshot:
        """What is there now."""
        process.reap_orphans()
        return Snapshot(dict.fromkeys(self._entries(), "") | self._processes())

    def mark(self) -> None:
        """From now on a leak is what came after this. Who reads the table of mounts while others mount may miss a line
        of it, hence two looks."""
        self.start = Snapshot(self.snapshot().entries | self.snapshot().entries)

    def leaks(self, settle: float = SETTLE_S) -> set[str]:
        """What is there and wasn't at the mark, once all had *settle* seconds to go.

        A process that a container of before has begun since is that container's.
        """
        before = self.start.entries
        deadline = time.monotonic() + settle * process.FACTOR
        while True:
            now = self.snapshot().entries
            left = {
                text
                for text, top in now.items()
                if text not in before and (not top or top not in before) and not _is_of_older_vm(text, before)
            }
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.1)

    def _entries(self) -> Iterator[str]:
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            # without the file system's own options: a remount of the host's disk changes those of every mount of it
            yield from (f"mount {line.split(' - ')[0]}" for line in file if self._marked(line))
        with open("/proc/net/unix", encoding="utf-8") as file:
            for line in file:
                fields = line.split()
                if len(fields) > 7 and self._marked(fields[7]):
                    yield f"socket {fields[7]}"
        # others' engines come and go on this host: runvm makes taps
        yield from (f"interface {name}" for name in os.listdir("/sys/class/net") if name.startswith("rvtap"))
        if os.path.isdir("/run/netns"):
            yield from (f"netns {name}" for name in os.listdir("/run/netns") if self._marked(name))
        yield from (f"cgroup {path}" for path in self._cgroups())
        for top in self.watched:
            for directory, _, names in os.walk(top):
                if directory != top:
                    yield f"directory {directory}"
                yield from (f"file {directory}/{name}" for name in names if name not in VERDICTS)

    def _processes(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for top in process.children(os.getpid()):
            if process.status(top) == "Z":
                continue  # a command of a running test, which collects it
            for pid in (top, *process.descendants(top)):
                if process.start_time(pid):
                    found[_process(pid)] = _process(top)
        return found

    def _cgroups(self) -> Iterator[str]:
        for directory, names, _ in os.walk("/sys/fs/cgroup"):
            if self._marked(directory) and not directory.endswith(KEPT_CGROUPS):
                yield directory
            if directory.count("/") > 9:
                names.clear()

    def _marked(self, text: str) -> bool:
        return any(mark in text for mark in self.marks)


def remove_cgroups() -> None:
    """The parents of the containers' cgroups, at the end of all tests."""
    for directory, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
        if CGROUP_PARENT in directory:
            try:
                os.rmdir(directory)
            except OSError:
                pass  # something lives in it: a test has said so


def _is_of_older_vm(text: str, before: dict[str, str]) -> bool:
    """Whether an entry is a file in the directory of a virtual machine that was there: it goes with that."""
    kind, _, path = text.partition(" ")
    head, mark, rest = path.partition("/sandboxes/")
    return bool(mark) and kind in ("file", "directory") and f"directory {head}{mark}{rest.split('/')[0]}" in before


def _process(pid: int) -> str:
    return f"process {pid} {process.command_line(pid)} (started {process.start_time(pid)})"


def cgroups_of(pid: int) -> dict[str, str]:
    """Controller (v2: '') to the path of the process's cgroup in it."""
    found = {}
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.strip().split(":", 2)
            for controller in controllers.split(","):
                found[controller] = path
    return found


def namespace(pid: int | str, kind: str) -> str:
    """The identity of a process's namespace, such as net:[4026531840]."""
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def processes_of_only_vm(runtime: Runtime) -> dict[str, int]:
    """The processes by role of the one VM that runs, whatever engine it is of: `supervisor`, `vmm`, `virtiofsd`."""
    directories = list(os.scandir(f"{runtime.state_dir}/sandboxes"))
    assert len(directories) == 1, directories
    with open(f"{directories[0].path}/processes.json", encoding="utf-8") as file:
        return {role: identity[0] for role, identity in json.load(file).items()}


def processes_of(container: Container) -> dict[str, int]:
    """A container's processes by role: `shim` (its pid), and of a VM `supervisor`, `vmm`, `virtiofsd`."""
    runtime = container.runtime
    found = {"shim": container.init_pid}
    if runtime.is_vm:
        with open(f"{runtime.root}/{container.id}/state.json", encoding="utf-8") as file:
            sandbox = json.load(file)["sandbox"]
        with open(f"{runtime.state_dir}/sandboxes/{sandbox}/processes.json", encoding="utf-8") as file:
            found |= {role: identity[0] for role, identity in json.load(file).items()}
    return found
