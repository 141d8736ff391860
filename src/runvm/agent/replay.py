"""Tells the watchers in the guest what the host has done, as the kernel would have, had it been done here.

The kernel module that does it (guest.event_module) takes no more than that it happened. What the guest remembers of the
file is asked anew of the host before: who is told looks at once.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from contextlib import suppress

from runvm.agent.errors import AgentError
from runvm.agent.watches import Mounts, Watches, shared_mounts
from runvm.linux import handles, syscalls
from runvm.protocol.messages import Changed, Json

MODULE = "/usr/lib/runvm/events.ko"
_PARAMETER = "/sys/module/runvm_events/parameters/event"
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}
_EVENT = struct.Struct("=IIIi32s32s")

# sys/inotify.h, linux/fsnotify_backend.h
ATTRIB, MODIFY, CLOSE_WRITE = 0x4, 0x2, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF = 0x400, 0x800
ON_CHILD, IS_DIRECTORY = 0x08000000, 0x40000000
_NAMES = MOVED_FROM | MOVED_TO | CREATE | DELETE
_CONTENTS = (ATTRIB, MODIFY, CLOSE_WRITE)

_libc = ctypes.CDLL(None, use_errno=True)


class Replay:
    """For those who watch *watches*."""

    def __init__(self, watches: Watches) -> None:
        self._watches = watches
        self._fd = -1
        self._from = (0, "")
        """Of the last directory that was moved away: the cookie, and the path that it had."""

    def changed(self, request: Changed) -> Json:
        """Tell of each change. Raises AgentError, OSError."""
        if self._fd < 0:
            self._fd = _load()
        columns = (request.directories, request.masks, request.cookies, request.names)
        with Mounts(shared_mounts()) as mounts:
            for number, mask, cookie, name in zip(*columns, strict=True):
                with suppress(OSError):  # it has gone meanwhile, and that will be told as well
                    self._tell(mounts, number, mask, cookie, name)
        return {}

    def _tell(self, mounts: Mounts, number: int, mask: int, cookie: int, name: str) -> None:
        watched = self._watches.directories.get(number)
        if watched is None:
            return
        directory = mounts.open_directory(watched)
        try:
            if name == ".":
                handles.refresh(directory)
                kind = IS_DIRECTORY if stat.S_ISDIR(os.fstat(directory).st_mode) else 0
                for bit in (*_CONTENTS, MOVE_SELF, DELETE_SELF):
                    if mask & bit:
                        self._event(bit | kind, child=directory)
                return
            if mask & _NAMES:
                if mask & IS_DIRECTORY:
                    self._follow(f"{watched.path}/{name}", mask, cookie)
                self._tell_watchers_of_old(mounts, number, mask, name)
                handles.look_up(directory, os.fsencode(name))
                handles.refresh(directory)
            self._tell_of_name(directory, mask, cookie, os.fsencode(name))
        finally:
            os.close(directory)

    def _follow(self, path: str, mask: int, cookie: int) -> None:
        """Keep in mind where directories are that are watched, or lie below."""
        if mask & MOVED_FROM:
            self._from = (cookie, path)
        if mask & MOVED_TO and cookie and cookie == self._from[0]:
            self._watches.moved(self._from[1], path)

    def _tell_of_name(self, directory: int, mask: int, cookie: int, name: bytes) -> None:
        try:
            child = syscalls.open_beneath(directory, os.fsdecode(name), os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            child = -1
        try:
            if child >= 0:
                handles.refresh(child)
            kind = mask & IS_DIRECTORY
            for bit in in_order(mask, there=child >= 0):
                if bit & _NAMES:
                    self._event(bit | kind, directory, name=name, cookie=cookie)
                elif child >= 0:
                    self._event(bit | kind | ON_CHILD, directory, child, name)
        finally:
            if child >= 0:
                os.close(child)

    def _tell_watchers_of_old(self, mounts: Mounts, number: int, mask: int, name: str) -> None:
        """Those who watch the file that had the *name* until now. That it is deleted the kernel says by itself, once it
        knows that the file has no name any more and nobody has it open."""
        file = self._watches.files.get((number, name))
        if file is None:
            return
        try:
            fd = mounts.open(file)
        except OSError:
            self._watches.forget(number, name)
            return
        try:
            handles.refresh(fd)
            if mask & MOVED_FROM:
                self._event(MOVE_SELF, child=fd)
            elif not os.fstat(fd).st_nlink:
                self._event(ATTRIB, child=fd)
        finally:
            os.close(fd)
        self._watches.forget(number, name)

    def _event(self, mask: int, directory: int = -1, child: int = -1, name: bytes = b"", cookie: int = 0) -> None:
        os.pwrite(self._fd, _EVENT.pack(mask, cookie, len(name), 0, _path(directory), _path(child)) + name, 0)


def in_order(mask: int, *, there: bool) -> list[int]:
    """The single events in *mask*, which the host tells of together, in the order in which they will have happened to
    a name that is *there* now or isn't."""
    found = [bit for bit in (MOVED_FROM, MOVED_TO, CREATE, *_CONTENTS) if mask & bit]
    if mask & DELETE:
        found.insert(0 if there else len(found), DELETE)
    return found


def _path(fd: int) -> bytes:
    return f"/proc/self/fd/{fd}".encode() if fd >= 0 else b""


def _load() -> int:
    """Load the module; the descriptor that events are written to. Raises AgentError, OSError."""
    try:
        module = os.open(MODULE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise AgentError("the guest's kernel isn't one that watchers can be told with") from None
    try:
        if _libc.syscall(syscalls.number(_FINIT_MODULE), module, b"", 0) < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"load the module for watchers: {os.strerror(number)}")
    finally:
        os.close(module)
    return os.open(_PARAMETER, os.O_WRONLY | os.O_CLOEXEC)
