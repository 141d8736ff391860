"""What the host does in directories that a container watches by inotify: told to the guest, which tells the watchers.

The guest says which directories these are (agent.watches), so that nothing is watched for a container that watches
nothing, and no tree is searched. Of what happens there all is told but what the VM's own virtiofsd does: the guest did
that itself, and its kernel has told.

The guest is the enemy: what it names has to lie in a mounted directory, and to be reached by no symlink.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from runvm.linux import syscalls
from runvm.linux.loop import IN, Loop
from runvm.log import log
from runvm.protocol.messages import Changed, Done, Failed

if TYPE_CHECKING:
    from runvm.linux import fanotify
    from runvm.protocol.messages import Json
    from runvm.sandbox.guest_link import GuestLink

_MAX_DIRECTORIES = 20_000
_MAX_PENDING = 16_384
"""Changes that wait for the guest; as many as a program may have waiting in the kernel (max_queued_events)."""
_MAX_LOST = 1000
"""Marks that nothing is watched by any more and that can't be removed by themselves, at least; else as many as are in
use."""
_READS = 16
"""Until nothing is left that was waiting; but others may add to it all the time."""
_BATCH = 200
_PAUSE_SECONDS = 0.02
"""How long changes are collected: who changes much is not to keep the supervisor busy with each by itself."""
_SHARED = "shared/"


class HostChanges:
    """Of one VM, whose files are shared in *share* by the process *daemon*."""

    def __init__(self, loop: Loop, guest: GuestLink, share: str, daemon: int) -> None:
        self._loop = loop
        self._guest = guest
        self._share = share
        self._daemon = daemon
        self._groups: dict[bool, fanotify.Group] = {}
        """By whether it is of files."""
        self._names: dict[int, fanotify.Directory] = {}
        self._numbers: dict[fanotify.Directory, list[int]] = {}
        self._paths: dict[int, str] = {}
        self._pending: deque[tuple[int, int, int, str]] = deque()
        self._asked = False
        self._lost = 0

    def watch(self, directories: Json) -> None:
        """Watch the *directories*, paths in the share by number; an empty path ends it for that number."""
        for number, path in directories.items():
            if not number.isdecimal() or len(number) > 10 or not isinstance(path, str):
                continue
            self._forget(int(number))
            if path and len(self._names) < _MAX_DIRECTORIES:
                try:
                    self._add(int(number), path)
                except (OSError, ValueError) as error:
                    log.debug(f"changes in {path!r} can't be told to the guest: {error}")
        if not self._names:
            self._stop()

    def close(self) -> None:
        """Nothing is told any more."""
        self._names.clear()
        self._numbers.clear()
        self._paths.clear()
        self._pending.clear()
        self._stop()

    def _add(self, number: int, path: str) -> None:
        """Raises OSError, ValueError."""
        if not path.startswith(_SHARED) or "\0" in path or ".." in path.split("/"):
            raise ValueError("not in a mounted directory")
        file = open_shared(self._share, path)
        try:
            single = not stat.S_ISDIR(os.fstat(file).st_mode)
            name = self._watching(single).add(file, _mask(single))
        finally:
            os.close(file)
        self._names[number] = name
        self._paths[number] = path
        self._numbers.setdefault(name, []).append(number)

    def _forget(self, number: int) -> None:
        name = self._names.pop(number, None)
        if name is None:
            return
        path = self._paths.pop(number)
        numbers = self._numbers[name]
        numbers.remove(number)
        if not numbers:
            del self._numbers[name]
            self._unmark(path, name)

    def _unmark(self, path: str, name: fanotify.Directory) -> None:
        """Marks count for all of a user's processes (max_user_marks), and a guest may move what it has had marked: what
        isn't found any more is marked until there is too much of that."""
        try:
            file = self._marked(path, name)
        except OSError as error:
            if error.errno != errno.ESTALE:
                self._lost += 1
                if self._lost > max(_MAX_LOST, len(self._numbers)):
                    self._mark_anew()
            return
        try:
            single = not stat.S_ISDIR(os.fstat(file).st_mode)
            if single in self._groups:
                self._groups[single].remove(file, _mask(single))
        except OSError as error:
            log.debug(f"changes in {path!r}: {error}")
        finally:
            os.close(file)

    def _marked(self, path: str, name: fanotify.Directory) -> int:
        """A descriptor of what was marked at *path*, which may be elsewhere by now. Raises OSError."""
        from runvm.linux import fanotify

        with suppress(OSError):
            file = open_shared(self._share, path)
            try:
                if fanotify.identify(file) == name:
                    return os.dup(file)
            finally:
                os.close(file)
        mount = open_shared(self._share, "/".join(path.split("/")[:2]), os.O_RDONLY | os.O_DIRECTORY)
        try:
            return fanotify.open_marked(mount, name)
        finally:
            os.close(mount)

    def _mark_anew(self) -> None:
        """Only what is watched by now; that which isn't at its path any more is watched no longer."""
        self._lost = 0
        old, self._groups = self._groups, {}
        paths = self._paths.copy()
        for each in (self._names, self._numbers, self._paths):
            each.clear()
        for number, path in paths.items():
            with suppress(OSError, ValueError):
                self._add(number, path)
        for group in old.values():  # after that, so that no change is missed
            for _ in range(_READS):
                if not self._collect_all(group):
                    break
            self._loop.forget(group.fd)
            os.close(group.fd)
        self._tell()

    def _watching(self, single: bool) -> fanotify.Group:
        group = self._groups.get(single)
        if group is None:
            from runvm.linux import fanotify

            group = self._groups[single] = fanotify.Group(files=single)
            self._wait(group)
        return group

    def _wait(self, group: fanotify.Group) -> None:
        if group in self._groups.values():
            self._loop.watch(group.fd, IN, lambda events: self._read(group))

    def _stop(self) -> None:
        for group in self._groups.values():
            self._loop.forget(group.fd)
            os.close(group.fd)
        self._groups.clear()

    def _read(self, group: fanotify.Group) -> None:
        self._loop.forget(group.fd)
        self._loop.call_later(_PAUSE_SECONDS, lambda: self._wait(group))
        self._collect_all(group)
        self._tell()

    def _collect_all(self, group: fanotify.Group) -> bool:
        """What can be read at once; False where there is nothing."""
        from runvm.linux import fanotify

        own: dict[int, bool] = {}
        events = group.read()
        for event in events:
            if event.mask & fanotify.OVERFLOW:
                log.warning("the host changes more in watched directories than can be told to the guest")
                continue
            if event.pid not in own:
                own[event.pid] = self._is_daemon(event.pid)
            if not own[event.pid]:
                self._collect(event)
        return bool(events)

    def _collect(self, event: fanotify.Event) -> None:
        for number in self._numbers.get(event.directory, ()):
            change = (number, event.mask, event.cookie, os.fsdecode(event.name))
            if len(self._pending) < _MAX_PENDING and (not self._pending or self._pending[-1] != change):
                self._pending.append(change)

    def _tell(self) -> None:
        """One request at a time: a guest that is slow has all else that is for it before the next changes."""
        if self._asked or not self._pending:
            return
        batch = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
        numbers, masks, cookies, names = (list(column) for column in zip(*batch, strict=True))
        self._asked = True
        self._guest.ask(Changed(numbers, masks, cookies, names), self._told)

    def _told(self, answer: Done | Failed) -> None:
        self._asked = False
        if isinstance(answer, Failed):
            log.debug(f"the guest can't tell of changes: {answer.error}")
            self._pending.clear()
        self._tell()

    def _is_daemon(self, pid: int) -> bool:
        """Whether *pid* is virtiofsd, which is a child of the process that was started."""
        if pid == self._daemon:
            return True
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                return int(file.read().rpartition(b")")[2].split()[1]) == self._daemon
        except (OSError, ValueError, IndexError):
            return False


def open_shared(share: str, path: str, flags: int = os.O_PATH) -> int:
    """A descriptor of the directory or file *path* in *share*, reached by no symlink. Raises OSError."""
    top = os.open(share, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return syscalls.open_beneath(top, path, flags)
    finally:
        os.close(top)


def _mask(single: bool) -> int:
    """For a *single* file, or a directory and all that is in it."""
    from runvm.linux import fanotify

    contents = fanotify.MODIFY | fanotify.ATTRIB | fanotify.CLOSE_WRITE
    itself = fanotify.DELETE_SELF | fanotify.MOVE_SELF
    if single:
        return contents | itself
    return contents | fanotify.NAMES | itself | fanotify.ON_CHILD | fanotify.ON_DIRECTORY
