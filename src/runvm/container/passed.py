"""Descriptors beyond stdio that a caller hands to a container's process: --preserve-fds and $LISTEN_FDS.

A descriptor of the host means nothing in a guest: its bytes are relayed, and the process has a pipe or a socket of the
guest in its place. What bytes can't stand for is refused.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat

from runvm.errors import HostError, UnsupportedError
from runvm.linux import files
from runvm.protocol import frames
from runvm.records import NamedTuple

_FIRST = 3
_KINDS = {stat.S_IFDIR: "a directory", stat.S_IFBLK: "a block device", stat.S_IFCHR: "a character device"}


class Passed(NamedTuple):
    """Descriptor 3 and up of the process: the host's, in order, and which way bytes go (frames.WAYS)."""

    fds: tuple[int, ...] = ()
    ways: tuple[str, ...] = ()


def listening() -> int:
    """How many descriptors a service manager hands to this very process (sd_listen_fds(3))."""
    count, pid = os.environ.get("LISTEN_FDS", ""), os.environ.get("LISTEN_PID", "")
    return int(count) if count.isdecimal() and pid == str(os.getpid()) else 0


def inspect(preserved: int, listened: int = 0) -> Passed:
    """What is to be handed on; hooks don't inherit it any more. *listened* come first, as in runc.

    Raises: HostError for one that isn't open, UnsupportedError for what can't be relayed, naming it.
    """
    count = preserved + listened
    if not count:
        return Passed()
    if count > frames.MAX_PASSED:
        raise UnsupportedError(f"{count} descriptors to be handed on: {frames.MAX_PASSED} is the most")
    fds = tuple(range(_FIRST, _FIRST + count))
    ways = []
    for index, fd in enumerate(fds):
        try:
            mode = os.fstat(fd).st_mode
        except OSError as error:
            words = f"stat /proc/self/fd/{fd}: no such file or directory"
            raise HostError(f"unable to stat preserved-fd {index} (of {count}): {words}") from error
        ways.append(_way(fd, mode))
        os.set_inheritable(fd, False)
    return Passed(fds, tuple(ways))


def environment(listened: int) -> list[str]:
    """What tells the process of them (sd_listen_fds(3)): it is number 1."""
    return [f"LISTEN_FDS={listened}", "LISTEN_PID=1"] if listened else []


def _way(fd: int, mode: int) -> str:
    kind = stat.S_IFMT(mode)
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if (files.is_null(fd) or kind in (stat.S_IFIFO, stat.S_IFREG)) and access != os.O_RDWR:
        return frames.IN if access == os.O_RDONLY else frames.OUT
    if kind == stat.S_IFSOCK:
        with socket.socket(fileno=os.dup(fd)) as sock:
            what = "a listening socket" if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else "a socket"
            if what == "a socket" and sock.type == socket.SOCK_STREAM and _connected(sock):
                return frames.BOTH
    else:
        what = _KINDS.get(kind, "a file open for reading and writing")
    raise UnsupportedError(
        f"descriptor {fd} is {what}, which can't be handed to a virtual machine",
        do="pipes, connected stream sockets, and files open for reading or for writing only can",
    )


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
