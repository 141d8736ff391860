"""fanotify(7): what happens in marked directories, and who does it, which inotify(7) doesn't tell."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from runvm.linux import handles
from runvm.records import NamedTuple

# linux/fanotify.h
MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
OVERFLOW = 0x4000
RENAME = 0x10000000
ON_CHILD = 0x08000000
ON_DIRECTORY = 0x40000000
NAMES = CREATE | DELETE | MOVED_FROM | MOVED_TO
"""What changes a directory's list of names."""
_CLASS_NOTIF = 0
_CLOEXEC, _NONBLOCK = 1, 2
_UNLIMITED_MARKS = 0x20
_REPORT_FID, _REPORT_DIR_FID, _REPORT_NAME = 0x200, 0x400, 0x800
_MARK_ADD, _MARK_REMOVE, _MARK_ONLYDIR = 0x1, 0x2, 0x8
_FID, _DFID_NAME, _OLD_DFID_NAME, _NEW_DFID_NAME = 1, 2, 10, 12
_AT_FDCWD = -100
_READ = 64 << 10
_FSID = 8

_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_INFO = struct.Struct("=BBH")

_libc = ctypes.CDLL(None, use_errno=True)

Directory = bytes
"""What names a directory in events: its file system, and its handle there."""


class Event(NamedTuple):
    """Something has happened to *name* ('.': the directory itself) in *directory*, by the process *pid* (0: one that
    can't be seen from here). The halves of a move have the same *cookie*; else it is 0."""

    mask: int
    pid: int
    directory: Directory
    name: bytes
    cookie: int


class Group:
    """Marked directories, and what is told of them at *fd*; or with *files* files, of which is told what happens to
    them as if they were directories."""

    def __init__(self, *, files: bool = False) -> None:
        """Raises OSError: PermissionError where this user may not, EINVAL where the kernel is before 5.9."""
        flags = _CLASS_NOTIF | _CLOEXEC | _NONBLOCK | (_REPORT_FID if files else _REPORT_DIR_FID | _REPORT_NAME)
        self._files = files
        # who bounds its marks itself doesn't use up those that all of root's processes have (max_user_marks)
        self.fd = int(_libc.fanotify_init(flags | _UNLIMITED_MARKS, os.O_RDONLY | os.O_CLOEXEC))
        if self.fd < 0:  # a user may not
            self.fd = _check(_libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC), "watch for changes")
        self._cookie = 0
        self._moves = RENAME

    def add(self, directory: int, mask: int) -> Directory:
        """Watch the directory with the descriptor *directory* for *mask*, in which MOVED_FROM | MOVED_TO stands for
        both; what events will call it. Raises OSError: its file system may be one that has no handles."""
        name = identify(directory)
        if mask & MOVED_TO and self._moves == RENAME:
            try:
                self._mark(directory, (mask & ~(MOVED_FROM | MOVED_TO)) | RENAME)
                return name
            except OSError:
                self._moves = 0  # Linux before 5.17, or another reason, which the next call gives
        self._mark(directory, mask)
        return name

    def remove(self, directory: int, mask: int) -> None:
        """Watch for it no more. Raises OSError."""
        self._change(_MARK_REMOVE, directory, mask if self._files else mask | RENAME)

    def read(self) -> list[Event]:
        """What has happened; [] where nothing has. Raises OSError."""
        try:
            data = os.read(self.fd, _READ)
        except BlockingIOError:
            return []
        events = []
        at = 0
        while at + _EVENT.size <= len(data):
            length, _, _, size, mask, fd, pid = _EVENT.unpack_from(data, at)
            if fd >= 0:
                os.close(fd)
            events += self._events(mask, pid, _records(data[at + size : at + length]))
            at += length
        return events

    def _events(self, mask: int, pid: int, records: list[tuple[int, Directory, bytes]]) -> list[Event]:
        if mask & OVERFLOW:
            return [Event(OVERFLOW, pid, b"", b"", 0)]
        events = []
        if mask & RENAME:
            self._cookie = self._cookie % 0x7FFFFFFF + 1
            kind = mask & ON_DIRECTORY
            for record, half in ((_OLD_DFID_NAME, MOVED_FROM), (_NEW_DFID_NAME, MOVED_TO)):
                for type_, directory, name in records:
                    if type_ == record:
                        events.append(Event(half | kind, pid, directory, name, self._cookie))
        rest = mask & ~RENAME
        if rest & ~ON_DIRECTORY:
            wanted = _FID if self._files else _DFID_NAME
            events += [Event(rest, pid, directory, name, 0) for type_, directory, name in records if type_ == wanted]
        return events

    def _mark(self, directory: int, mask: int) -> None:
        self._change(_MARK_ADD, directory, mask)

    def _change(self, action: int, directory: int, mask: int) -> None:
        flags = action if self._files else action | _MARK_ONLYDIR
        path = f"/proc/self/fd/{directory}".encode()
        _check(_libc.fanotify_mark(self.fd, flags, ctypes.c_uint64(mask), _AT_FDCWD, path), "watch for changes")


def identify(directory: int) -> Directory:
    """What events call the directory with that descriptor: name_to_handle_at(2), statfs(2). Raises OSError."""
    file_system = os.fstatvfs(directory).f_fsid & 0xFFFFFFFFFFFFFFFF
    return struct.pack("=Q", file_system) + handles.of(directory)


def open_marked(mount: int, name: Directory) -> int:
    """A descriptor (O_PATH) of the directory or file that identify() called *name*, wherever it is by now, on the file
    system of the open directory *mount*. Raises OSError: ESTALE where it is gone, and its mark with it."""
    if identify(mount)[:_FSID] != name[:_FSID]:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return handles.open_handle(mount, name[_FSID:])


def _records(data: bytes) -> list[tuple[int, Directory, bytes]]:
    """The records of an event that have a name: their type, the directory, the name."""
    found = []
    at = 0
    while at + _INFO.size <= len(data):
        kind, _, length = _INFO.unpack_from(data, at)
        if length < _INFO.size:
            break
        if kind in (_FID, _DFID_NAME, _OLD_DFID_NAME, _NEW_DFID_NAME):
            file_system, size, handle_kind = struct.unpack_from("=QIi", data, at + _INFO.size)
            start = at + _INFO.size + 16
            directory = struct.pack("=Qi", file_system, handle_kind) + data[start : start + size]
            name = b"." if kind == _FID else data[start + size : at + length].split(b"\0", 1)[0]
            found.append((kind, directory, name))
        at += length
    return found


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
