"""Puts a socket of the guest's over a socket file of the host's in a container, and takes it away.

The file is in a mounted directory, where the container may have put anything: the path is followed as in the
container's root, and what is there has to be the file that is meant.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from runvm.agent.errors import AgentError
from runvm.linux import handles, process, syscalls
from runvm.records import NamedTuple


class SocketPlace(NamedTuple):
    """A file of the host's: *path* below the directory that the agent has at *shared* and the container, in which the
    process *pid* is, at *mounted*."""

    shared: str
    mounted: str
    path: str
    pid: int


def put(own: str, place: SocketPlace) -> None:
    """Have who opens *place* find the socket *own*. Raises AgentError, OSError."""
    file = open_file(place)
    tree = syscalls.clone_tree(own, recursive=False)
    try:
        status = os.fstat(file)
        if not stat.S_ISSOCK(status.st_mode):
            raise AgentError("it is no socket any more")

        def attach() -> None:
            target = _enter(place)
            if os.path.samestat(os.fstat(target), status):
                syscalls.attach_tree(tree, target)

        _run(attach)
    finally:
        os.close(tree)
        os.close(file)


def take_away(own: str, place: SocketPlace) -> None:
    """What put() did."""
    status = os.stat(own)

    def detach() -> None:
        try:
            target = _enter(place)
        except OSError:
            return  # the file has gone, and with it what was over it
        if os.path.samestat(os.fstat(target), status):
            syscalls.unmount(f"/{place.mounted}/{place.path}", syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)

    _run(detach)


def open_file(place: SocketPlace) -> int:
    """A descriptor of the file, of which the kernel has forgotten what was there before: the guest may know it for a
    second, with what is mounted over it."""
    directory, name = os.path.split(place.path)
    top = os.open(place.shared, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parent = syscalls.open_beneath(top, directory, os.O_PATH | os.O_DIRECTORY) if directory else os.dup(top)
    finally:
        os.close(top)
    try:
        handles.look_up(parent, os.fsencode(name))
        return syscalls.open_beneath(parent, name, os.O_PATH | os.O_NOFOLLOW)
    finally:
        os.close(parent)


def _enter(place: SocketPlace) -> int:
    """Go to the container's mount namespace, and open the place there. For a process of its own. Raises OSError."""
    namespace = os.open(f"/proc/{place.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.setns(namespace, syscalls.CLONE_NEWNS)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return syscalls.open_in_root(root, f"{place.mounted}/{place.path}".lstrip("/"), os.O_PATH | os.O_NOFOLLOW)


def _run(work: Callable[[], None]) -> None:
    """In a process of its own. Raises AgentError."""
    pid = process.fork(work)
    if os.waitpid(pid, 0)[1]:
        raise AgentError("the socket can't be mounted in the container")
