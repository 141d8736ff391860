"""Small files, and files and directories that nobody else may write, whatever the caller's umask is."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from runvm.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX = 64 << 10


def make_directories(path: str, mode: int, *, exist_ok: bool = False) -> None:
    """os.makedirs() with *mode* for the last and at most 0755 for those above. Raises OSError."""
    umask = os.umask(0o022)
    try:
        os.makedirs(path, mode=mode, exist_ok=exist_ok)
    finally:
        os.umask(umask)


def private(path: str, flags: int) -> int:
    """An opener for open(): a file that is made is root's alone to read."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def exclusive(path: str, flags: int) -> int:
    """An opener for open(): a new file, which no link that somebody has put there leads elsewhere."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def read(path: str, limit: int = _MAX) -> str:
    """The first *limit* bytes of a file, which may be one of the kernel's: those give a part at a time. Raises OSError.

    This and write() do without open()'s buffers and decoders: their first use takes 10 ms in an emulated guest.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while len(data) < limit and (part := os.read(fd, limit - len(data))):
            data += part
        return data.decode(errors="replace")
    finally:
        os.close(fd)


def open_regular(root: int, path: str) -> int:
    """A descriptor, to read from, of the regular file *path* as a process whose root is the directory *root* finds it.
    Raises OSError, also where it is something else: to open a device or a FIFO could do something, or wait, and a
    container can put one anywhere."""
    found = syscalls.open_in_root(root, path, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, f"{path} is no regular file")
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)


def tail(path: str, size: int = 2048) -> str:
    """The last *size* bytes of a file, from the beginning of a line; '' where it can't be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        start = max(0, os.fstat(fd).st_size - size)
        text = os.pread(fd, size, start).decode(errors="replace")
        return (text.partition("\n")[2] if start else text).strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def write(path: str, text: str, *, make: bool = False) -> None:
    """Make *text* all that is in a file, one of the kernel's or with *make* maybe a new one. Raises OSError."""
    data = text.encode()
    fd = os.open(path, os.O_WRONLY | (os.O_CREAT if make else 0) | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of *data*: pwrite(2) alone leaves some out where the disk gets full. Raises OSError."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        rest, offset = rest[written:], offset + written


def is_null(fd: int) -> bool:
    """Whether a descriptor is /dev/null (kernel's devices.txt)."""
    found = os.fstat(fd)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)


def data(fd: int) -> Iterator[tuple[int, int]]:
    """Where the data of a sparse file begin and end, without its holes (lseek(2), SEEK_DATA). Raises OSError."""
    size = os.fstat(fd).st_size
    offset = 0
    while offset < size:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: only a hole is left
        end = os.lseek(fd, offset, os.SEEK_HOLE)
        if end > offset:  # else they have gone meanwhile
            yield offset, end
        offset = end


def reopen(fd: int, flags: int) -> tuple[int, bool]:
    """A description of our own for an inherited descriptor, so that not blocking doesn't change the caller's;
    (descriptor, may block).

    What can't be opened anew (a socket) is used as it is, carefully. A closed one is as good as /dev/null.
    """
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return os.open(os.devnull, flags | os.O_CLOEXEC), False
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        # opened anew it would have an offset of its own
        return os.dup(fd), False
    try:
        return os.open(f"/proc/self/fd/{fd}", flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), False
    except OSError:
        return os.dup(fd), True


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it, as far as that goes; no symlink is followed. It is
    shutil.rmtree(ignore_errors=True), whose module takes longer to import than a command's end can spare."""
    with suppress(OSError):
        for _, directories, names, fd in os.fwalk(path, topdown=False):
            for name in (*directories, *names):
                with suppress(OSError):
                    if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        os.rmdir(name, dir_fd=fd)
                    else:
                        os.unlink(name, dir_fd=fd)
        os.rmdir(path)
