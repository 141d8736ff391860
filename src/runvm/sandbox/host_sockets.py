"""Sockets of the host that are mounted in a container: who connects there is connected to the host's, byte for byte.

A server learns who its client is from the kernel (SO_PEERCRED, unix(7)), and many decide by that. So the connection is
made by a process with the ids of the container's process, as under runc: the guest tells them. It is the enemy, but its
root could have any of them anyway; with a user namespace only those that are mapped are taken.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

from runvm.errors import HostError
from runvm.linux import mounts, process, sockets
from runvm.linux.loop import IN, Loop
from runvm.log import log
from runvm.protocol import frames
from runvm.protocol.messages import Dial, Dialled, Done, Failed
from runvm.protocol.relay import Relay
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from runvm.protocol.frames import Frame
    from runvm.protocol.messages import Json
    from runvm.sandbox.guest_link import GuestLink

_MAX = 128
"""Connections of one VM at once, and as many to its own servers; one more is closed."""
_MAX_OPENING = 32
"""Those of them that are being made, each by a process."""
_MAX_GROUPS = 64
_CONNECT_SECONDS = 10.0
"""How long a server whose queue is full is waited for."""
_NOBODY = 0xFFFFFFFF
"""No id: setresuid(2) takes it for "leave it as it is"."""


class Ids(NamedTuple):
    """Who connects."""

    uid: int
    gid: int
    groups: list[int]


class Sockets(NamedTuple):
    """Those of one container: descriptors by number, and the ids of the host's that its user namespace maps."""

    files: dict[int, int]
    kinds: dict[int, int]
    """SOCK_STREAM, or another type that a server has, by number."""
    uids: list[range]
    gids: list[range]

    @classmethod
    def open(cls, paths: Json, linux: Json, pid: int) -> Sockets:
        """The sockets at *paths*, by number, as process *pid* sees them; *linux* is that part of the OCI spec. Raises
        HostError, OSError."""
        sources = [mounts.Source(str(path), recursive=False, overlay="") for path in paths.values()]
        files = dict(zip(map(int, paths), mounts.clone_from(pid, sources, scratch=""), strict=True))
        found = cls.of(files, linux)
        for number, fd in files.items():
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                found.close()
                raise HostError(f"mount {paths[str(number)]}: it isn't a socket any more")
        return found

    @classmethod
    def of(cls, files: dict[int, int], linux: Json) -> Sockets:
        """The sockets with these descriptors."""
        return cls(files, {}, _mapped(linux, "uidMappings"), _mapped(linux, "gidMappings"))

    def owners(self) -> Json:
        """What the guest's sockets are to have, by number: mode, user and group."""
        found = {number: os.fstat(fd) for number, fd in self.files.items()}
        return {str(number): [stat.S_IMODE(it.st_mode), it.st_uid, it.st_gid] for number, it in found.items()}

    def ids(self, request: Dial) -> Ids | None:
        """Whom the host's server is to see; None for one who can't be in the container."""
        if not _has(self.uids, request.uid) or not _has(self.gids, request.gid):
            return None
        groups = [group for group in request.groups if type(group) is int and _has(self.gids, group)]
        return Ids(request.uid, request.gid, groups[:_MAX_GROUPS])

    def close(self) -> None:
        """No more connections are made; those that there are go on."""
        for fd in self.files.values():
            os.close(fd)
        self.files.clear()


def _mapped(linux: Json, kind: str) -> list[range]:
    mappings = linux.get(kind) or [{"hostID": 0, "size": _NOBODY}]
    return [range(mapping["hostID"], mapping["hostID"] + mapping["size"]) for mapping in mappings]


def _has(mapped: list[range], number: int) -> bool:
    return number != _NOBODY and any(number in ids for ids in mapped)


class HostSockets:
    """All such connections of one VM, each on a channel of its own that *number* gives."""

    def __init__(self, loop: Loop, guest: GuestLink, number: Callable[[], int]) -> None:
        self._loop = loop
        self._guest = guest
        self._number = number
        self._relay = Relay(loop, guest.send, says=frames.STDIN, told=frames.STDOUT, gate=guest.gate)
        self._opening = 0
        self._adopted = Relay(loop, guest.send, says=frames.STDIN, told=frames.STDOUT, gate=guest.gate)
        self._expected = 0
        self.on_failure: Callable[[str, int], None] = lambda container, socket: None
        """Called where nobody could be connected to a container's socket of that number."""

    def frame(self, frame: Frame) -> bool:
        """Take a frame of the guest's; False where it is of no connection."""
        return self._relay.frame(frame) or self._adopted.frame(frame)

    def close(self) -> None:
        """End all of them: the VM ends."""
        self._relay.close()
        self._adopted.close()

    def expect(self) -> bool:
        """Whether there may be one more connection to a server of the guest's; then adopt() or expect_no_more() has to
        follow. Who connects is another VM's container: these are none of those that this one may make."""
        if len(self._adopted) + self._expected >= _MAX:
            return False
        self._expected += 1
        return True

    def expect_no_more(self) -> None:
        """The one that was expected doesn't come."""
        self._expected -= 1

    def adopt(self, channel: int, fd: int, *, whole: bool) -> None:
        """Carry the connection that was expected, *fd* (owned), to which the guest has connected *channel*."""
        self._expected -= 1
        self._adopted.add(channel, fd, whole=whole, read=self._read)

    def dial(self, known: Sockets | None, request: Dial) -> None:
        """Connect to the one of a container's *known* sockets that the guest asks for; a wrong request is refused."""
        file = None if known is None else known.files.get(request.socket)
        ids = None if known is None else known.ids(request)
        full = self._opening >= _MAX_OPENING or len(self._relay) + self._opening >= _MAX
        if known is None or file is None or ids is None or full:
            self._refuse(request)
            return
        kind = known.kinds.get(request.socket, socket.SOCK_STREAM)
        try:
            sock = socket.socket(socket.AF_UNIX, kind)
        except OSError:  # no descriptors are left
            self._refuse(request)
            return
        self._opening += 1

        def connected(error: int) -> None:
            if error:
                self._opening -= 1
                sock.close()
                log.debug(f"container {request.container}: a socket of the host's: {os.strerror(error)}")
                self._refuse(request)
                self.on_failure(request.container, request.socket)
                return
            channel = self._number()

            def taken(answer: Done | Failed) -> None:
                self._opening -= 1
                if isinstance(answer, Failed):
                    sock.close()
                else:
                    whole = kind == socket.SOCK_SEQPACKET
                    self._relay.add(channel, sock.detach(), whole=whole, read=self._read)

            self._guest.ask(Dialled(request.number, channel), taken)

        try:
            _connect(self._loop, sock, file, ids, connected)
        except OSError as error:  # no process can be made
            connected(error.errno or 1)

    def _read(self, fd: int, size: int) -> bytes:
        try:
            return sockets.read_without_descriptors(fd, size)
        except sockets.DescriptorError as error:
            log.warning(f"a connection to a socket of the host's has ended: {error.strerror}")
            raise

    def _refuse(self, request: Dial) -> None:
        self._guest.tell(Dialled(request.number, 0))


def _connect(loop: Loop, sock: socket.socket, file: int, ids: Ids, connected: Callable[[int], None]) -> None:
    """Connect *sock* to the socket *file* by a process that has *ids*; *connected* gets 0 or the errno. Raises
    OSError."""

    parent = os.getpid()

    def run() -> None:
        # nobody is to wait for this process who waits for the supervisor's end by its sockets
        process.close_above(2, (sock.fileno(), file))
        try:
            sockets.take_ids(*ids)
            process.die_with_parent(parent)  # a change of ids would undo it (prctl(2))
            sockets.connect_to(sock, file)
        except OSError as error:
            raise SystemExit(min(error.errno or 1, 255)) from None

    pid = process.fork(run)
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        process.end_child(pid, "the process that was to connect")
        raise
    timer = loop.call_later(_CONNECT_SECONDS, lambda: signal.pidfd_send_signal(fd, signal.SIGKILL))

    def ended(events: int) -> None:
        loop.cancel(timer)
        loop.forget(fd)
        os.close(fd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        connected(code if code >= 0 else 1)

    loop.watch(fd, IN, ended)
