"""Servers of a VM's own containers that listen in a mounted directory: other VMs' containers that have the same
directory reach them.

To the host the socket file of a guest's server leads nowhere, as those of the host do in a guest. A socket of the
host's can't take its place: the container would find another file than its own. So one that stands for it is in the
VM's directory in the state directory, named by the file's device and inode, with the file's mode and owner. There
another VM's supervisor looks for it (offered()), which finds the file without a server.

The guest may remove its file, and the file system give its inode to a socket of somebody else's. So the file is held
open for as long as it is offered, and it has to be where it was: else it is offered no more.
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
from runvm.records import NamedTuple

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

Place = tuple[str, int, str]
"""A container, its mount, and a path there."""


class _Held(NamedTuple):
    """A socket file without a server on the host: an open descriptor of it (O_PATH), its place, and what says whether
    it is still there."""

    file: int
    place: Place
    there: Callable[[int], bool]

    @property
    def still_there(self) -> bool:
        return self.there(self.file)

    def close(self) -> None:
        os.close(self.file)


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
        self._asked: dict[Key, _Held] = {}

    def consider(self, place: Place, file: int, there: Callable[[int], bool]) -> None:
        """Offer the server at *place*, if one of the guest's is there; *file* is its file's descriptor (O_PATH), and
        *there* says whether the file of a descriptor is still at that place."""
        status = os.fstat(file)
        key = (status.st_dev, status.st_ino)
        known = self._offered.get(key)
        if known is not None:
            if known.held.still_there:
                known.own(status)
                return
            self.withdraw(*known.held.place)  # it has been moved
        if key in self._asked or len(self._asked) + len(self._offered) >= _MAX:
            return
        held = self._asked[key] = _Held(os.dup(file), place, there)

        def found(answer: Done | Failed) -> None:
            if self._asked.get(key) is not held:
                return  # the container has gone
            del self._asked[key]
            kind = answer.result.get("kind") if isinstance(answer, Done) else 0
            if kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET) and held.still_there:
                self._offer(key, held, socket.SocketKind(kind))
            else:
                held.close()

        self._guest.ask(FindServer(*place), found)

    def withdraw(self, container: str, mount: int = -1, path: str = "") -> None:
        """The file isn't there any more, or none of the container's."""

        def gone(held: _Held) -> bool:
            return held.place == (container, mount, path) or (mount < 0 and held.place[0] == container)

        for key, offer in list(self._offered.items()):
            if gone(offer.held):
                del self._offered[key]
                offer.close()
        for key, held in list(self._asked.items()):
            if gone(held):
                del self._asked[key]
                held.close()

    def check(self) -> bool:
        """Offer no more what isn't where it was; False where nothing is offered, or may be soon."""
        for offer in list(self._offered.values()):
            if not offer.held.still_there:
                self.withdraw(*offer.held.place)
        return bool(self._offered or self._asked)

    def close(self) -> None:
        """The VM ends."""
        for offer in self._offered.values():
            offer.close()
        for held in self._asked.values():
            held.close()
        self._offered.clear()
        self._asked.clear()

    def is_own(self, key: Key) -> bool:
        """Whether the file is that of a server which is offered."""
        return key in self._offered

    def _offer(self, key: Key, held: _Held, kind: socket.SocketKind) -> None:
        self.withdraw(*held.place)  # of a file that was there before
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            offer = _Offer(self._loop, f"{self._directory}/{_name(key)}", held, kind, self._accepted)
        except OSError as error:
            container, _, path = held.place
            log.warning(f"container {container}: its server at {path!r} can't be offered: {error}")
            held.close()
            return
        self._offered[key] = offer

    def _accepted(self, offer: _Offer, accepted: socket.socket) -> None:
        place = offer.held.place
        if not offer.held.still_there:
            accepted.close()
            self.withdraw(*place)
            return
        who = sockets.peer(accepted)
        if not self._sockets.expect():
            accepted.close()
            log.debug(f"container {place[0]}: its server at {place[2]!r} has too many connections")
            return
        whole = accepted.type == socket.SOCK_SEQPACKET
        channel = self._next_channel()

        def answered(answer: Done | Failed) -> None:
            if isinstance(answer, Done):
                self._sockets.adopt(channel, accepted.detach(), whole=whole)
                return
            self._sockets.expect_no_more()
            accepted.close()
            log.debug(f"container {place[0]}: its server at {place[2]!r}: {answer.error}")
            self.withdraw(*place)

        self._guest.ask(ConnectServer(*place, channel, *who), answered)


class _Offer:
    """A listening socket at *path* for the server whose file is *held* (owned, once it is made); *accepted* gets each
    connection. Raises OSError."""

    def __init__(
        self,
        loop: Loop,
        path: str,
        held: _Held,
        kind: socket.SocketKind,
        accepted: Callable[[_Offer, socket.socket], None],
    ) -> None:
        self.held = held
        self._loop = loop
        self._path = path
        self._accepted = accepted
        self._socket = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
        with suppress(FileNotFoundError):
            os.unlink(path)
        sockets.bind(self._socket, path)
        self.own(os.fstat(held.file))
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
        self.held.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def _ready(self, events: int) -> None:
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError:  # no descriptors are left: the connection waits
            self._loop.rest(self._socket.fileno())
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
