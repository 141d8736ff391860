"""Unix sockets by their paths, which may be longer than the 107 bytes that an address holds (unix(7)): a state
directory, or a container's id, may be."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_MAX_BYTES = 107
_SO_PEERGROUPS = 59  # asm-generic/socket.h
_MAX_GROUPS = 64
_CREDENTIALS = struct.Struct("iII")  # struct ucred
_MOST_PASSED = 253
"""Descriptors in one message (kernel's SCM_MAX_FD)."""


def bind(sock: socket.socket, path: str) -> None:
    """Bind *sock* to *path*, whose last part has to be short. Raises OSError."""
    directory, name = os.path.split(path)
    if len(os.fsencode(path)) <= _MAX_BYTES:
        sock.bind(path)
        return
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def connect(sock: socket.socket, path: str) -> None:
    """Connect *sock* to the socket at *path*. Raises OSError."""
    if len(os.fsencode(path)) <= _MAX_BYTES:
        sock.connect(path)
        return
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def peer(sock: socket.socket) -> tuple[int, int, list[int]]:
    """User, group and supplementary groups (none where they are too many) of who has connected: unix(7). Raises
    OSError."""
    import socket

    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(raw)
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MAX_GROUPS)
    except OSError:
        raw = b""
    return uid, gid, list(struct.unpack(f"{len(raw) // 4}I", raw))


def peer_pid(fd: int) -> int:
    """The process that has connected the Unix socket *fd*; 0 for one that this process can't see. Raises OSError."""
    import socket

    sock = socket.socket(fileno=fd)
    try:
        return int(_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0])
    finally:
        sock.detach()


def server(file: int) -> int:
    """The type of socket (SOCK_STREAM, SOCK_SEQPACKET) of the server at the socket file with the descriptor *file*; 0
    where there is none, or it takes no connections. Raises OSError.

    To connect by another type fails without the server's notice: by that it is told from a file that is left over. So
    does to connect a socket that is connected already (EISCONN), which finds the type.
    """
    import socket

    if not stat.S_ISSOCK(os.fstat(file).st_mode):
        return 0
    path = f"/proc/self/fd/{file}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as probe:
        if probe.connect_ex(path) != errno.EPROTOTYPE:
            return 0
    connected, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    with connected, other:
        return socket.SOCK_SEQPACKET if connected.connect_ex(path) == errno.EPROTOTYPE else socket.SOCK_STREAM


def take_ids(uid: int, gid: int, groups: list[int]) -> None:
    """Have these ids from now on, which a server that this process connects to sees (SO_PEERCRED): for a process of its
    own, which keeps them. Raises OSError."""
    with suppress(PermissionError):  # a user namespace may not change them (user_namespaces(7))
        os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def connect_to(sock: socket.socket, file: int) -> None:
    """Connect *sock* to the socket file with the descriptor *file*. Raises OSError."""
    sock.connect(f"/proc/self/fd/{file}")


class DescriptorError(OSError):
    """Descriptors came with what was to be read."""


def read_without_descriptors(fd: int, size: int) -> bytes:
    """read(2) of the connected socket *fd*, to which nobody is to pass descriptors (unix(7), SCM_RIGHTS): those who do
    find the connection ended, instead of a peer that never gets them. Raises DescriptorError, OSError."""
    import socket

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
    try:
        data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(_MOST_PASSED * 4), socket.MSG_CMSG_CLOEXEC)
        passed = [raw for level, kind, raw in ancillary if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)]
        for raw in passed:
            for at in range(0, len(raw) - 3, 4):
                os.close(int.from_bytes(raw[at : at + 4], sys.byteorder))
        if passed:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            raise DescriptorError(errno.EPERM, "descriptors can't be passed between the host and a virtual machine")
        return data
    finally:
        sock.detach()
