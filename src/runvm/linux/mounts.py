"""Mounts of another process taken over: the supervisor shares what a container's process on the host sees."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runvm.linux.syscalls import CLONE_NEWNS, MNT_DETACH, clone_tree, mount, setns, unmount
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Source(NamedTuple):
    """What is to be bound: the file or directory *path*, or where *overlay* isn't empty an overlay of these options."""

    path: str
    recursive: bool
    overlay: str


def clone_from(pid: int, sources: list[Source], *, scratch: str) -> list[int]:
    """A bind of each source as process *pid* sees it, mounted nowhere yet: descriptors for syscalls.attach_tree().
    *scratch* is an empty directory, the same for both.

    The mounts that an engine makes for one container may not be there in anybody's mount namespace that is older
    (Podman keeps its own private), and what hooks mount in the container's is there only. For a process with one
    thread; its working directory is / afterwards. Raises OSError, naming the path.
    """
    found: list[int] = []

    def clone() -> None:
        # one by one, so that those before a failure are closed
        found.extend(_overlay(source, scratch) if source.overlay else _bind(source) for source in sources)

    try:
        _as_seen_by(pid, clone)
    except OSError:
        for fd in found:
            os.close(fd)
        raise
    return found


def tables_of(pid: int, tops: list[str]) -> list[dict[str, frozenset[str]]]:
    """What is mounted below each path of *tops* as process *pid* sees it: the path from there, and the mount's options.
    For a process with one thread; its working directory is / afterwards. Raises OSError."""
    found = []

    def look() -> None:
        for top in map(os.path.realpath, tops):
            below = f"{top.rstrip('/')}/"
            found.append({each.point.removeprefix(below): each.options for each in table(top)})

    _as_seen_by(pid, look)
    return found


def _as_seen_by(pid: int, action: Callable[[], None]) -> None:
    """Run *action* in the mount namespace of a process. Raises OSError."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    theirs = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(theirs, CLONE_NEWNS)
        try:
            action()
        finally:
            try:
                setns(home, CLONE_NEWNS)
            except OSError:
                # to go on would mean to see the mounts of one container while serving the next
                os.abort()
    finally:
        os.close(home)
        os.close(theirs)


def _bind(source: Source) -> int:
    return clone_tree(source.path, recursive=source.recursive)


def _overlay(source: Source, scratch: str) -> int:
    # not by fsopen(2): its strings end at 256 bytes, which a list of layers soon has
    mount(source.path, scratch, "overlay", 0, source.overlay)
    try:
        return clone_tree(scratch, recursive=False)
    finally:
        unmount(scratch, MNT_DETACH)


class Mounted(NamedTuple):
    """A line of mountinfo: the file system's device and the directory of it that is mounted, where, with which options
    of the mount; its *number* is no other's as long as it is there."""

    device: str
    root: str
    point: str
    options: frozenset[str]
    number: int = 0

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through it."""
        return "ro" in self.options


def table(top: str) -> list[Mounted]:
    """The mounts at and below the path *top*, in the mount namespace of this process, in the order in which they were
    made (proc(5), mountinfo). One that is covered by another at the same place is left out."""
    found: dict[str, Mounted] = {}
    # looked for by its octal escapes, which spare the lines of others being taken apart
    wanted = _escaped(top)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ", 6)
            if fields[4] == wanted or fields[4].startswith(f"{wanted}/"):
                point = _unescaped(fields[4])
                found[point] = Mounted(
                    fields[2], _unescaped(fields[3]), point, frozenset(fields[5].split(",")), int(fields[0])
                )
    return list(found.values())


_REMOTE = ("nfs", "fuse", "cifs", "smb", "9p", "ceph", "afs", "lustre", "gluster", "virtiofs", "autofs")


def remote_below(top: str) -> list[str]:
    """The mount points below *top* of file systems that somebody else serves, who may not answer."""
    below = f"{_escaped(top)}/"
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = line.split(" ", 5)[4]
            if point.startswith(below) and line.partition(" - ")[2].startswith(_REMOTE):
                found.append(_unescaped(point))
    return found


def private() -> list[str]:
    """The mount points of this process's mounts that neither get what happens elsewhere nor pass it on, in the order in
    which they were made (mount_namespaces(7))."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [
            _unescaped(line.split(" ", 5)[4])
            for line in file
            if " shared:" not in (before := line.partition(" - ")[0]) and " master:" not in before
        ]


def _escaped(path: str) -> str:
    return "".join(f"\\{ord(letter):03o}" if letter in " \t\n\\" else letter for letter in path)


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    first, *rest = text.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


class FileSystem(NamedTuple):
    """What is mounted somewhere: the type, the file system's own options, and what it was mounted from."""

    kind: str
    options: tuple[str, ...]
    source: str = ""


def file_system(point: str) -> FileSystem | None:
    """Of the mount at *point*, the last one there; None where nothing is mounted. Raises OSError."""
    wanted = _escaped(point)
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.split(" ", 5)[4] == wanted:
                kind, source, options = line.rstrip("\n").partition(" - ")[2].split(" ", 2)
                found = FileSystem(kind, tuple(map(_unescaped, options.split(","))), _unescaped(source))
    return found
