"""Servers of a VM's own containers that listen in a mounted directory: other VMs' containers that have the same
directory reach them.

To the host the socket file of a guest's server leads nowhere, as those of the host do in a guest. A socket of the
host's can't take its place: the container would find another file than its own. So one that stands for it is in the
VM's directory in the state directory, named by the file's device and inode, with the file's mode and owner. There
another VM's supervisor looks for it (offered()), which finds the file without a server.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.linux import sockets
from runvm.linux.loop import IN, Loop
from runvm.log import log
from runvm.protocol.messages import ConnectServer, Done, Failed, FindServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.sandbox.guest_link import GuestLink
    from runvm.sandbox.host_sockets import HostSockets

_MAX = 64
"""Servers of one VM."""
_DIRECTORY = "served"
_BACKLOG = 64

Key = tuple[int, int]
"""A file's device and inode."""


class OwnServers:
    """Those of the VM whose directory in the state directory is *sandbox*. *next_channel* numbers a new channel."""

    def __init__(
        self, loop: Loop, guest: GuestLink, sockets: HostSockets, sandbox: str, next_channel: Callable[[], int]
    ) -> None:
        self._loop = loop
        self._guest = guest
        self._sockets = sockets
        self._directory = f"{sandbox}/{_DIRECTORY}"
        self._next_channel = next_channel
        self._offered: dict[Key, _Offer] = {}

    def consider(self, container: str, mount: int, path: str, status: os.stat_result) -> None:
        """Offer the server at *path* of a container's mount, if one of the guest's is there; *status* is its file's."""
        key = (status.st_dev, status.st_ino)
        known = self._offered.get(key)
        if known is not None:
            known.own(status)
            return

        def found(answer: Done | Failed) -> None:
            kind = answer.result.get("kind") if isinstance(answer, Done) else 0
            if kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET) and len(self._offered) < _MAX:
                self._offer(key, (container, mount, path), socket.SocketKind(kind), status)

        self._guest.ask(FindServer(container, mount, path), found)

    def withdraw(self, container: str, mount: int = -1, path: str = "") -> None:
        """The file isn't there any more, or none of the container's."""
        for key, offer in list(self._offered.items()):
            if offer.place == (container, mount, path) or (mount < 0 and offer.place[0] == container):
                offer.close()
                del self._offered[key]

    def close(self) -> None:
        """The VM ends."""
        for offer in self._offered.values():
            offer.close()
        self._offered.clear()

    def is_own(self, key: Key) -> bool:
        """Whether the file is that of a server which is offered."""
        return key in self._offered

    def _offer(self, key: Key, place: tuple[str, int, str], kind: socket.SocketKind, status: os.stat_result) -> None:
        if key in self._offered:
            return
        self.withdraw(*place)  # of a file that was there before
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            offer = _Offer(self._loop, f"{self._directory}/{_name(key)}", place, kind, self._accepted)
            offer.own(status)
        except OSError as error:
            log.warning(f"container {place[0]}: its server at {place[2]!r} can't be offered: {error}")
            return
        self._offered[key] = offer

    def _accepted(self, offer: _Offer, accepted: socket.socket) -> None:
        whole = accepted.type == socket.SOCK_SEQPACKET
        channel = self._next_channel()

        def answered(answer: Done | Failed) -> None:
            if isinstance(answer, Done):
                self._sockets.adopt(channel, accepted.detach(), whole=whole)
                return
            accepted.close()
            log.debug(f"container {offer.place[0]}: its server at {offer.place[2]!r}: {answer.error}")
            self.withdraw(*offer.place)

        self._guest.ask(ConnectServer(*offer.place, channel, *sockets.peer(accepted)), answered)


class _Offer:
    """A listening socket at *path* for the server at *place*; *accepted* gets each connection."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        place: tuple[str, int, str],
        kind: socket.SocketKind,
        accepted: Callable[[_Offer, socket.socket], None],
    ) -> None:
        self.place = place
        self._loop = loop
        self._path = path
        self._accepted = accepted
        self._socket = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        with suppress(FileNotFoundError):
            os.unlink(path)
        sockets.bind(self._socket, path)
        self._socket.listen(_BACKLOG)
        loop.watch(self._socket.fileno(), IN, self._ready)

    def own(self, status: os.stat_result) -> None:
        """Have the mode and the owner of the server's file. Raises OSError."""
        os.chown(self._path, status.st_uid, status.st_gid)
        os.chmod(self._path, stat.S_IMODE(status.st_mode))

    def close(self) -> None:
        """Listen no more."""
        self._loop.forget(self._socket.fileno())
        self._socket.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _ready(self, events: int) -> None:
        try:
            accepted, _ = self._socket.accept()
        except OSError:
            return
        self._accepted(self, accepted)


def offered(sandbox: str, key: Key) -> int:
    """A descriptor (O_PATH) of the socket by which another VM than that in *sandbox* offers the server of the file
    *key*; -1 where none does."""
    top = os.path.dirname(sandbox)
    with suppress(OSError):
        for name in os.listdir(top):
            if name != os.path.basename(sandbox):
                with suppress(OSError):
                    return os.open(f"{top}/{name}/{_DIRECTORY}/{_name(key)}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    return -1


def _name(key: Key) -> str:
    return f"{key[0]:x}-{key[1]:x}"
