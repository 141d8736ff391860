"""Sockets of the host's servers in mounted directories: found as a container is made, and as they come and go later.

For the guest a socket file in a shared directory leads nowhere, since its server is in another kernel. So where there
is a server, the guest gets a socket of its own over the file (agent.socket_mounts), and who connects there is connected
to the host's (sandbox.host_sockets). A file without a server is left alone: the container's own may be about to take
it, and is offered to other VMs (sandbox.own_servers). Looked for is not far below the mounted directory, where servers
put them, and no directory is read to its end that has thousands of files.

The directories are the container's as well: nothing is reached by a symlink.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import TYPE_CHECKING

from runvm.linux import syscalls
from runvm.linux.loop import IN, Loop
from runvm.linux.mounts import remote_below
from runvm.linux.sockets import server
from runvm.log import log
from runvm.protocol.messages import AddSocket, Done, DropSocket, Failed
from runvm.records import NamedTuple
from runvm.sandbox import own_servers
from runvm.sandbox.host_sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from runvm.linux import fanotify
    from runvm.protocol.messages import Json
    from runvm.sandbox.guest_link import GuestLink
    from runvm.sandbox.members import Member
    from runvm.sandbox.own_servers import OwnServers

_DEPTH = 3
"""Levels of directories: that which is mounted, those in it, and those in these."""
_MAX_ENTRIES = 4000
"""Names that are looked at below one mount."""
_MAX_DIRECTORIES = 64
"""Directories below one mount, which are watched."""
_MAX_SOCKETS = 64
"""In one container."""
_MAX_LOST = 200
"""Marks of directories that aren't watched any more and that can't be removed by themselves."""
_PAUSE_SECONDS = 0.2
"""How long changes are collected: most are of no socket."""
_LIVE_SECONDS = 1.0
"""How often is looked whether servers are still there: that one ends no event tells, and until the guest knows, the
container can't remove its file."""
_RETRY_SECONDS = 0.5
_TRIES = 4
"""How often, and after which time at first, a socket file without a server is looked at again."""
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_FIRST_NUMBER = 1 << 20
"""Above those of the sockets that are mounted by themselves, which have their mounts' numbers."""


class _Directory(NamedTuple):
    """A watched one: of which container, below which of its mounts, and where there ('' for its top)."""

    container: str
    mount: int
    path: str


class _Found(NamedTuple):
    """A socket: its server's type, which file it is, its mode and owner."""

    kind: int
    device: int
    inode: int
    mode: int
    uid: int
    gid: int


class _Known(NamedTuple):
    """One that the guest has been told of, and the number that it knows it by."""

    number: int
    file: _Found


class _Container:
    """What is known of one: its mounts' places in the share, by their numbers, the places of *remote* file systems
    below, its user namespace, its sockets by mount and path."""

    def __init__(self, member: Member, mounts: dict[int, str], remote: frozenset[str], linux: Json) -> None:
        self.member = member
        self.mounts = mounts
        self.remote = remote
        self.linux = linux
        self.found: dict[tuple[int, str], _Known] = {}
        self.watched: dict[int, int] = {}


class SocketDirectories:
    """Those of all containers of one VM, whose files are shared in the directory `share` of *sandbox*; *own* are its
    containers' own servers."""

    def __init__(self, loop: Loop, guest: GuestLink, sandbox: str, own: OwnServers) -> None:
        self._loop = loop
        self._guest = guest
        self._sandbox = sandbox
        self._share = f"{sandbox}/share"
        self._own = own
        self._containers: dict[str, _Container] = {}
        self._group: fanotify.Group | None = None
        self._watched: dict[fanotify.Directory, set[_Directory]] = {}
        self._timer = 0
        self._live: int | None = None
        self._number = _FIRST_NUMBER
        self._lost = 0

    def add(self, member: Member, mounts: dict[int, str], linux: Json) -> None:
        """Find the sockets of a container that the guest has made: *mounts* are the directories' places in the share,
        *linux* is that part of the OCI spec."""
        remote = frozenset(os.path.relpath(point, self._share) for point in remote_below(self._share))
        container = self._containers[member.name] = _Container(member, mounts, remote, linux)
        for mount in mounts:
            self._search(container, mount, "")

    def remove(self, name: str) -> None:
        """The container has gone."""
        container = self._containers.pop(name, None)
        if container is None:
            return
        self._own.withdraw(name)
        self._watch_no_more(container, lambda directory: True)
        if not self._containers:
            self._stop()

    def close(self) -> None:
        """The VM ends."""
        self._containers.clear()
        self._watched.clear()
        self._own.close()
        self._stop()

    def failed(self, name: str, number: int) -> None:
        """Nobody could be connected to the socket *number* of a container: its server may have gone."""
        container = self._containers.get(name)
        if container is not None:
            for (mount, path), found in list(container.found.items()):
                if found.number == number:
                    self._check(container, mount, path)

    def _search_all(self) -> None:
        for container in self._containers.values():
            for mount in container.mounts:
                self._search(container, mount, "")

    def _search(self, container: _Container, mount: int, top: str) -> None:
        """Look for sockets in the directory *top* of a *mount*, and below."""
        left = _MAX_ENTRIES
        level = [top]
        for _ in range(_DEPTH - (top.count("/") + 1 if top else 0)):
            below: list[str] = []
            for path in level:
                if container.watched.get(mount, 0) >= _MAX_DIRECTORIES or not left:
                    return
                for name, mode in self._entries(container, mount, path, left):
                    left -= 1
                    inner = f"{path}/{name}".lstrip("/")
                    if stat.S_ISDIR(mode):
                        # one whose server is gone would never answer
                        if f"{container.mounts[mount]}/{inner}" not in container.remote:
                            below.append(inner)
                    elif stat.S_ISSOCK(mode):
                        self._check(container, mount, inner)
            level = below

    def _entries(self, container: _Container, mount: int, path: str, limit: int) -> Iterator[tuple[str, int]]:
        """Names and kinds of the first *limit* entries of a directory, which is watched from now on."""
        try:
            directory = self._open(container, mount, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return
        try:
            self._watch(directory, container, _Directory(container.member.name, mount, path))
            with os.scandir(directory) as entries:
                for entry, _ in zip(entries, range(limit), strict=False):
                    if entry.is_dir(follow_symlinks=False):
                        yield entry.name, stat.S_IFDIR
                    elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                        yield entry.name, entry.stat(follow_symlinks=False).st_mode
                    else:
                        yield entry.name, 0
        except OSError as error:
            log.debug(f"sockets in {path!r} of mount {mount}: {error}")
        finally:
            os.close(directory)

    def _check(self, container: _Container, mount: int, path: str, tries: int = 0) -> None:
        """Have the guest know whether there is a server at *path*; where there is none yet, it is looked for again."""
        try:
            file = self._open(container, mount, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in _NO_DESCRIPTORS:
                return
            file = -1
        status = os.fstat(file) if file >= 0 else None
        if status is None or not stat.S_ISSOCK(status.st_mode):
            self._own.withdraw(container.member.name, mount, path)
            found = None
        else:
            try:
                file, kind = self._server(file, status)
            except OSError:  # no descriptors are left
                os.close(file)
                return
            found = _Found(kind, status.st_dev, status.st_ino, status.st_mode, status.st_uid, status.st_gid)
            if not kind:
                self._own_or_later(container, mount, path, file, tries)
        known = container.found.get((mount, path))
        if known is not None and (found is None or known.file != found):
            self._drop(container, mount, path)
            known = None
        if known is None and found is not None and found.kind and len(container.found) < _MAX_SOCKETS:
            self._tell(container, mount, path, file, found)
        elif file >= 0:
            os.close(file)

    def _server(self, file: int, status: os.stat_result) -> tuple[int, int]:
        """The socket to connect to instead of *file*, which is closed, if it is another one; its type, 0 where there is
        no server."""
        kind = server(file)
        key = (status.st_dev, status.st_ino)
        if kind or self._own.is_own(key):
            return file, kind
        other = own_servers.offered(self._sandbox, key)
        if other < 0:
            return file, 0
        try:
            kind = server(other)
        except OSError:
            os.close(other)
            raise
        os.close(file if kind else other)
        return (other, kind) if kind else (file, 0)

    def _own_or_later(self, container: _Container, mount: int, path: str, file: int, tries: int) -> None:
        """A socket without a server: of the guest's own, of another VM's that is about to offer it, or left over. Who
        can't write there has none there."""
        if not os.fstatvfs(file).f_flag & os.ST_RDONLY:
            place = (container.member.name, mount, path)
            self._own.consider(place, file, lambda held: self._is_at(container, mount, path, held))
            self._check_all_later()
        if tries < _TRIES:

            def again() -> None:
                if self._containers.get(container.member.name) is container:
                    self._check(container, mount, path, tries + 1)

            self._loop.call_later(_RETRY_SECONDS * 2**tries, again)

    def _is_at(self, container: _Container, mount: int, path: str, file: int) -> bool:
        """Whether *path* of a mount is the file with the descriptor *file*."""
        try:
            found = self._open(container, mount, path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            return error.errno in _NO_DESCRIPTORS  # it is looked for again soon
        try:
            return os.path.samestat(os.fstat(found), os.fstat(file))
        finally:
            os.close(found)

    def _tell(self, container: _Container, mount: int, path: str, file: int, found: _Found) -> None:
        """The guest, of a server whose socket *file* (owned) is."""
        self._number += 1
        container.found[mount, path] = _Known(self._number, found)
        sockets = _sockets(container)
        sockets.files[self._number], sockets.kinds[self._number] = file, found.kind
        owner = (stat.S_IMODE(found.mode), found.uid, found.gid)
        whole = found.kind == socket.SOCK_SEQPACKET
        request = AddSocket(container.member.name, self._number, mount, path, *owner, whole)
        self._guest.ask(request, lambda answer: _note(answer, path))
        self._check_all_later()

    def _check_all_later(self) -> None:
        if self._live is None:
            self._live = self._loop.call_later(_LIVE_SECONDS, self._check_all)

    def _check_all(self) -> None:
        """See which of the servers are still there."""
        self._live = None
        for container in list(self._containers.values()):
            for mount, path in list(container.found):
                self._check(container, mount, path)
        own = self._own.check()
        if own or any(container.found for container in self._containers.values()):
            self._check_all_later()

    def _drop(self, container: _Container, mount: int, path: str) -> None:
        found = container.found.pop((mount, path))
        sockets = _sockets(container)
        os.close(sockets.files.pop(found.number))
        del sockets.kinds[found.number]
        self._guest.ask(DropSocket(container.member.name, found.number), lambda answer: _note(answer, path))

    def _open(self, container: _Container, mount: int, path: str, flags: int) -> int:
        top = os.open(self._share, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return syscalls.open_beneath(top, f"{container.mounts[mount]}/{path}".rstrip("/"), flags)
        finally:
            os.close(top)

    def _watch(self, fd: int, container: _Container, directory: _Directory) -> None:
        try:
            if self._group is None:
                from runvm.linux import fanotify

                self._group = fanotify.Group()
                self._loop.watch(self._group.fd, IN, lambda events: self._read())
            key = self._group.add(fd, _events())
        except OSError as error:  # then those that are there now are all
            log.debug(f"sockets that appear in {directory.path!r} of mount {directory.mount}: {error}")
            return
        watched = self._watched.setdefault(key, set())
        if directory not in watched:
            watched.add(directory)
            container.watched[directory.mount] = container.watched.get(directory.mount, 0) + 1

    def _stop(self) -> None:
        if self._live is not None:
            self._loop.cancel(self._live)
            self._live = None
        self._close_group()

    def _close_group(self) -> None:
        if self._group is not None:
            self._loop.forget(self._group.fd)
            self._loop.cancel(self._timer)
            os.close(self._group.fd)
            self._group = None

    def _read(self) -> None:
        from runvm.linux import fanotify

        group = self._group
        if group is None:
            return
        self._loop.forget(group.fd)
        self._timer = self._loop.call_later(
            _PAUSE_SECONDS, lambda: self._loop.watch(group.fd, IN, lambda events: self._read())
        )
        changed: dict[tuple[_Directory, str], int] = {}
        for event in group.read():
            if event.mask & fanotify.OVERFLOW:
                self._search_all()
                return
            name = os.fsdecode(event.name)
            for directory in self._watched.get(event.directory, ()):
                changed[directory, name] = changed.get((directory, name), 0) | event.mask
        for (directory, name), mask in changed.items():
            self._look(directory, name, mask)

    def _look(self, directory: _Directory, name: str, mask: int) -> None:
        from runvm.linux import fanotify

        container = self._containers.get(directory.container)
        if container is None:
            return
        path = f"{directory.path}/{name}".lstrip("/")
        if not mask & fanotify.ON_DIRECTORY:
            self._check(container, directory.mount, path)
        elif mask & fanotify.NAMES:
            self._own.check()
            for mount, inner in list(container.found):
                if mount == directory.mount and inner.startswith(f"{path}/"):
                    self._check(container, mount, inner)
            self._forget(container, directory.mount, path)
            self._search(container, directory.mount, path)

    def _forget(self, container: _Container, mount: int, path: str) -> None:
        """The directory at *path* is another one, or none: those that were watched there and below count no more."""
        self._watch_no_more(container, lambda each: each.mount == mount and f"{each.path}/".startswith(f"{path}/"))

    def _watch_no_more(self, container: _Container, which: Callable[[_Directory], bool]) -> None:
        """Those directories of a container that *which* says."""
        for key, directories in list(self._watched.items()):
            gone = {each for each in directories if each.container == container.member.name and which(each)}
            directories -= gone
            for each in gone:
                container.watched[each.mount] -= 1
            if not directories:
                del self._watched[key]
                self._unmark(container, next(iter(gone)).mount, key)

    def _unmark(self, container: _Container, mount: int, key: fanotify.Directory) -> None:
        """Marks count for all of a user's processes (max_user_marks), and a guest may make as many directories as it
        likes: what can't be found any more is marked until there is too much of that."""
        from runvm.linux import fanotify

        if self._group is None:
            return
        try:
            top = self._open(container, mount, "", os.O_RDONLY | os.O_DIRECTORY)
            try:
                file = fanotify.open_marked(top, key)
            finally:
                os.close(top)
            try:
                self._group.remove(file, _events())
            finally:
                os.close(file)
        except OSError as error:
            self._lost += error.errno != errno.ESTALE
            if self._lost > _MAX_LOST:
                self._lost = 0
                self._loop.call_later(0, self._mark_anew)

    def _mark_anew(self) -> None:
        self._close_group()
        self._watched.clear()
        for container in self._containers.values():
            container.watched.clear()
        self._search_all()


def _events() -> int:
    """Of a watched directory."""
    from runvm.linux import fanotify

    return fanotify.NAMES | fanotify.ATTRIB | fanotify.ON_CHILD | fanotify.ON_DIRECTORY


def _sockets(container: _Container) -> Sockets:
    if container.member.sockets is None:
        container.member.sockets = Sockets.of({}, container.linux)
    return container.member.sockets


def _note(answer: Done | Failed, path: str) -> None:
    if isinstance(answer, Failed):
        log.debug(f"the host's socket {path!r} in the guest: {answer.error}")
