"""What a container has written into its root: the upper directory of an overlay, saved with a checkpoint and applied to
the root of another container from the same image.

What is in it is the container's to choose: nothing is opened through a link, each name is taken below a descriptor of
its directory, and there are limits.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from runvm.errors import UnsupportedError
from runvm.linux import files, syscalls
from runvm.records import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection

NAME = "layer"
"""Its directory in a checkpoint's."""
MAX_BYTES = 512 << 20
"""What a layer may hold: each later container gets a copy."""
MAX_ENTRIES = 20_000
_MAX_DEPTH = 100
_CHUNK = 64 << 20
_OVERLAYS = ("trusted.overlay.", "user.overlay.")
_ELSEWHERE = ("redirect", "metacopy")
"""Attributes of overlayfs by which an entry is only a part of what it stands for (kernel's overlayfs.rst)."""
_MARK = "user.runvm.layer"
"""What overlayfs says by a device or an attribute of its own is said by this one, since a saved layer may lie on an
overlay, where those can't be made."""
_GONE, _OPAQUE = b"gone", b"opaque"
_SETTLED_NS = 1_000_000_000
"""A file that has changed within such a time may change again without its time of change telling."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Journal:
    """What apply() does to a root, each thing written down in the new file *path* before it is done: undo() reads it,
    also where who did it has been killed. A name's path, or an empty one before something that was there goes; each
    ends with a NUL. Of the paths *keep* nothing is told: they stay."""

    def __init__(self, path: str, keep: Collection[str]) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._keep = keep

    def make(self, path: str) -> None:
        """That comes next. Raises OSError."""
        if path not in self._keep:
            self._write(os.fsencode(path) + b"\0")

    def replace(self) -> None:
        """Something goes next. Raises OSError."""
        self._write(b"\0")

    def close(self) -> None:
        """All is done, or has failed."""
        os.close(self._fd)

    def _write(self, data: bytes) -> None:
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Early(NamedTuple):
    """A layer that was saved while its container ran: its *directory*, and of each file whose data are there when it
    was changed last, and its path below the directory, by device and inode."""

    directory: str
    files: dict[tuple[int, int], tuple[int, str]]


class _Count:
    """How much has been copied, the files with several names, and what has changed. What *early* has is taken from
    there."""

    def __init__(self, early: Early | None = None, journal: _Journal | None = None) -> None:
        self.early = early
        self.journal = journal
        """That of apply(); save() has none, and replaces nothing."""
        self.saved: dict[tuple[int, int], tuple[int, str]] = {}
        self.began_ns = time.time_ns()
        self.entries = 0
        self.bytes = 0
        self.linked: dict[tuple[int, int], str] = {}

    def add(self, size: int) -> None:
        """Raises UnsupportedError where it is too much."""
        self.entries += 1
        self.bytes += size
        if self.entries > MAX_ENTRIES or self.bytes > MAX_BYTES:
            raise UnsupportedError(
                f"it has written more than {MAX_ENTRIES} files or {MAX_BYTES >> 20} MiB into its root file system"
            )

    def take(self, found: os.stat_result, target: _Place, name: str) -> bool:
        """Make the file *found* of what was saved early; False where that isn't what it is now."""
        if self.early is None:
            return False
        changed_ns, path = self.early.files.get((found.st_dev, found.st_ino), (-1, ""))
        if changed_ns != found.st_ctime_ns:
            return False
        os.link(f"{self.early.directory}/{path}", name, dst_dir_fd=target.fd, follow_symlinks=False)
        return True

    def note(self, found: os.stat_result, target: _Place, name: str) -> None:
        """The data of the file *found* are saved; its time of change will tell of another, unless that is too new."""
        if found.st_ctime_ns < self.began_ns - _SETTLED_NS:
            self.saved[found.st_dev, found.st_ino] = (found.st_ctime_ns, f"{target.path}/{name}".lstrip("/"))


class _Place(NamedTuple):
    """A directory: its descriptor, and its path below the top for the names of hard links."""

    fd: int
    path: str
    depth: int

    def of(self, name: str) -> str:
        """A path of the entry *name* that no link but its own can redirect."""
        return f"/proc/self/fd/{self.fd}/{name}"

    def enter(self, name: str) -> _Place:
        """Raises UnsupportedError for a directory that lies too deep, OSError."""
        if self.depth >= _MAX_DEPTH:
            raise UnsupportedError(f"directories lie more than {_MAX_DEPTH} deep: {self.path[:100]}")
        return _Place(os.open(name, _DIRECTORY, dir_fd=self.fd), f"{self.path}/{name}", self.depth + 1)


def save(upper: str, target: str, early: Early | None = None) -> Early:
    """Copy the directory *upper*, an overlay's, as it is, into the new directory *target*. From *early*, which has to
    lie on the same file system, come the data of files that haven't changed since; it isn't a layer any more then.
    Raises OSError, UnsupportedError."""
    os.mkdir(target, 0o700)
    return Early(target, _walk(upper, target, _Count(early)).saved)


def apply(saved: str, root: str, journal: str, keep: Collection[str] = ()) -> None:
    """Make in *root*, a mounted overlay, the changes that save() has kept in *saved*; the new file *journal* is for
    undo(), which leaves the paths *keep*. Raises OSError, UnsupportedError."""
    written = _Journal(journal, keep)
    try:
        _walk(saved, root, _Count(journal=written))
    finally:
        written.close()


def undo(root: str, journal: str) -> None:
    """Take away what apply() has made in *root*, all of it or as far as it came, but for what others have put something
    into; and then *journal*. Raises OSError, UnsupportedError where that can't be."""
    with open(journal, "rb") as file:
        told = file.read().split(b"\0")[:-1]  # what isn't whole hasn't been done
    if b"" in told:
        raise UnsupportedError("what had been replaced in its root file system can't be brought back")
    top = os.open(root, _DIRECTORY)
    try:
        for path in reversed(told):
            _take_away(top, os.fsdecode(path))
    finally:
        os.close(top)
    os.unlink(journal)


def _take_away(top: int, path: str) -> None:
    directory, _, name = path.lstrip("/").rpartition("/")
    try:
        parent = syscalls.open_beneath(top, directory or ".", os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return  # an undo() that was killed came further
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise
    finally:
        os.close(parent)


def _walk(source: str, target: str, count: _Count) -> _Count:
    top_source, top_target = os.open(source, _DIRECTORY), os.open(target, _DIRECTORY)
    try:
        _copy_entries(_Place(top_source, "", 0), _Place(top_target, "", 0), count, top_target)
        return count
    finally:
        os.close(top_source)
        os.close(top_target)


def _copy_entries(source: _Place, target: _Place, count: _Count, top: int) -> None:
    for name in sorted(os.listdir(source.fd)):
        found = os.stat(name, dir_fd=source.fd, follow_symlinks=False)
        count.add(found.st_size if stat.S_ISREG(found.st_mode) else 0)
        path = source.of(name)
        attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in _keys(path)}
        if count.journal is not None:
            mark = attributes.pop(_MARK, b"")
            _make_room(target, name, count.journal, keep_directory=stat.S_ISDIR(found.st_mode) and mark != _OPAQUE)
            if mark == _GONE:
                continue
        else:
            attributes = _marked(found, attributes)
        if stat.S_ISDIR(found.st_mode):
            _copy_directory(source, target, name, found, count, top)
        else:
            _copy_file(source, target, name, found, count, top)
        _set_metadata(target.of(name), found, attributes)


def _copy_directory(source: _Place, target: _Place, name: str, found: os.stat_result, count: _Count, top: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=target.fd)
    except FileExistsError:
        pass  # apply(): _make_room() has seen to it that it is a directory
    inner = source.enter(name)
    try:
        outer = target.enter(name)
        try:
            _copy_entries(inner, outer, count, top)
        finally:
            os.close(outer.fd)
    finally:
        os.close(inner.fd)


def _copy_file(source: _Place, target: _Place, name: str, found: os.stat_result, count: _Count, top: int) -> None:
    identity = (found.st_dev, found.st_ino)
    if identity in count.linked:
        os.link(count.linked[identity], name, src_dir_fd=top, dst_dir_fd=target.fd, follow_symlinks=False)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source.fd), name, dir_fd=target.fd)
    elif is_whiteout(found):
        os.mknod(name, stat.S_IFREG | 0o600, dir_fd=target.fd)
        return
    elif stat.S_ISREG(found.st_mode):
        if not count.take(found, target, name):
            _copy_data(source, target, name, found)
            count.note(found, target, name)
    else:  # also a socket: who listens there is in the memory, and looks for its name
        os.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=target.fd)
    if found.st_nlink > 1:
        count.linked[identity] = f"{target.path}/{name}".lstrip("/")


def _copy_data(source: _Place, target: _Place, name: str, found: os.stat_result) -> None:
    """The data, not the holes; by reference where the file system can."""
    reader = _open_found(source, name, found)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        writer = os.open(name, flags, 0o600, dir_fd=target.fd)
        try:
            os.ftruncate(writer, os.fstat(reader).st_size)
            for offset, end in files.data(reader):
                while offset < end and (copied := _copy_range(reader, writer, offset, min(_CHUNK, end - offset))):
                    offset += copied
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _open_found(source: _Place, name: str, found: os.stat_result) -> int:
    """The regular file *found*. A container that runs may have put another one there, or a device of the host's, which
    must not even be opened. Raises OSError."""
    handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source.fd)
    try:
        there = os.fstat(handle)
        if not stat.S_ISREG(there.st_mode) or not os.path.samestat(there, found):  # numbers of inodes come again
            raise OSError(errno.ESTALE, f"another file has come meanwhile: {source.path}/{name}")
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _copy_range(reader: int, writer: int, offset: int, length: int) -> int:
    try:
        return os.copy_file_range(reader, writer, length, offset, offset)
    except OSError:  # between two file systems
        os.lseek(writer, offset, os.SEEK_SET)
        return os.sendfile(writer, reader, offset, length)


def _make_room(target: _Place, name: str, journal: _Journal, *, keep_directory: bool) -> None:
    """Take away what is called *name*, or only what isn't a directory there."""
    try:
        found = os.stat(name, dir_fd=target.fd, follow_symlinks=False)
    except FileNotFoundError:
        journal.make(f"{target.path}/{name}")
        return
    if stat.S_ISDIR(found.st_mode) and keep_directory:
        return
    journal.replace()
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=target.fd)
    else:
        import shutil

        shutil.rmtree(name, dir_fd=target.fd)


def _set_metadata(path: str, found: os.stat_result, attributes: dict[str, bytes]) -> None:
    os.chown(path, found.st_uid, found.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode) and not is_whiteout(found):
        os.chmod(path, stat.S_IMODE(found.st_mode))  # nothing but its own link could be followed, and it is none
    for key, value in attributes.items():  # after chown(2), which takes capabilities away
        os.setxattr(path, key, value, follow_symlinks=False)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def _keys(path: str) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def _marked(found: os.stat_result, attributes: dict[str, bytes]) -> dict[str, bytes]:
    """The attributes of an entry of an overlay's upper directory as save() keeps them. Raises UnsupportedError for one
    that isn't whole without another layer."""
    overlays = {key.rpartition(".")[2]: value for key, value in attributes.items() if key.startswith(_OVERLAYS)}
    if not overlays.keys().isdisjoint(_ELSEWHERE):
        raise UnsupportedError("the overlay of its root file system uses redirect_dir or metacopy")
    kept = {key: value for key, value in attributes.items() if not key.startswith(_OVERLAYS) and key != _MARK}
    if is_whiteout(found):
        return {_MARK: _GONE}
    return {**kept, _MARK: _OPAQUE} if overlays.get("opaque") == b"y" else kept


def is_whiteout(found: os.stat_result) -> bool:
    """Whether it says that the layers below have something that isn't there any more."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
