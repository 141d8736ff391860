"""Unix sockets by their paths, which may be longer than the 107 bytes that an address holds (unix(7)): a state
directory, or a container's id, may be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket

_MAX_BYTES = 107


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
