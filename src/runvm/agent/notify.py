"""The guest's end of a container's $NOTIFY_SOCKET: what the container says there goes to the host (sd_notify(3)).

A socket of the host's that is bound into the container leads nowhere: its other end is in another kernel.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from runvm.linux import sockets
from runvm.linux.loop import IN, Loop
from runvm.protocol.names import notify_socket

_LARGEST = 4096


class Notify:
    """A listening socket of container *name*; *said* gets each datagram."""

    def __init__(self, loop: Loop, name: str, said: Callable[[str], None]) -> None:
        self._loop = loop
        self._path = notify_socket(name)
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        self._said = said
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sockets.bind(self._socket, self._path)
        os.chmod(self._path, 0o777)  # whoever the container's process is
        loop.watch(self._socket.fileno(), IN, self._ready)

    def close(self) -> None:
        """Nothing more is heard."""
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        os.unlink(self._path)
        os.rmdir(os.path.dirname(self._path))

    def _ready(self, events: int) -> None:
        try:
            data = self._socket.recv(_LARGEST)
        except OSError:
            return
        self._said(data.decode(errors="replace"))
