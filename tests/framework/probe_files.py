"""What a file system can do, tried out in a container: run there by the host's Python, in the directory to be tried.

Prints a JSON object, a key a property: what it gave, or the name of the error.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
_RENAME_EXCHANGE, _RENAME_NOREPLACE = 2, 1
_FALLOC_PUNCH_HOLE_KEEP_SIZE = 3


def _write(name: str, text: str = "text") -> None:
    with open(name, "w", encoding="utf-8") as file:
        file.write(text)


def _read(name: str) -> str:
    with open(name, encoding="utf-8") as file:
        return file.read()


def _called(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def xattr() -> object:
    """A user attribute."""
    _write("xattr")
    os.setxattr("xattr", "user.key", b"value")
    return [os.getxattr("xattr", "user.key").decode(), os.listxattr("xattr")]


def capability() -> object:
    """File capabilities, as setcap(8) writes them."""
    _write("capability")
    os.setxattr("capability", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    return os.getxattr("capability", "security.capability").hex()


def trusted() -> object:
    """What overlayfs keeps its marks in."""
    _write("trusted")
    os.setxattr("trusted", "trusted.key", b"value")
    return os.getxattr("trusted", "trusted.key").decode()


def acl() -> object:
    """An ACL that lets the user 1000 write, enforced, and in the mode (acl(5), Correspondence)."""
    _write("acl")
    entries = ((1, 7, -1), (2, 6, 1000), (4, 4, -1), (16, 6, -1), (32, 0, -1))
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr("acl", "system.posix_acl_access", packed)
    tried = {user: _as_user(user, "open('acl', 'r+').write('x')") for user in (1000, 1001)}
    return [tried, oct(os.stat("acl").st_mode & 0o777)]


def _as_user(user: int, code: str) -> bool:
    program = f"import os; os.setgroups([]); os.setgid({user}); os.setuid({user}); {code}"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def hard_link() -> object:
    """Two names, one file."""
    _write("linked")
    os.link("linked", "linked-too")
    return [os.stat("linked").st_nlink, os.path.samefile("linked", "linked-too")]


def symlink() -> object:
    """A symbolic link, and one to nowhere."""
    _write("target")
    os.symlink("target", "symlink")
    os.symlink("nowhere", "dangling")
    return [os.readlink("symlink"), _read("symlink"), os.path.lexists("dangling"), os.path.exists("dangling")]


def fifo() -> object:
    """Between two processes of one container."""
    os.mkfifo("fifo")
    pid = os.fork()
    if pid == 0:
        _write("fifo", "through")
        os._exit(0)
    text = _read("fifo")
    os.waitpid(pid, 0)
    return text


def unix_socket() -> object:
    """Between two processes of one container."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind("socket")
        listener.listen()
        client.connect("socket")
        return True


def shared_mapping() -> object:
    """What is written to a shared, writable mapping is in the file."""
    fd = os.open("mapped", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8192)
    with mmap.mmap(fd, 8192, mmap.MAP_SHARED) as mapping:
        mapping[4096:4101] = b"hello"
        mapping.flush()
    return os.pread(fd, 5, 4096).decode()


def locks() -> object:
    """flock and POSIX locks, between processes of one container."""
    with open("locked", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code = "import fcntl; f = open('locked', 'w'); fcntl.{}(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        by_flock = _as_user(0, code.format("flock"))
        fcntl.flock(file, fcntl.LOCK_UN)
        fcntl.lockf(file, fcntl.LOCK_EX)
        return [by_flock, _as_user(0, code.format("lockf"))]


def direct() -> object:
    """O_DIRECT."""
    fd = os.open("direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        page[:5] = b"plain"
        os.write(fd, page)
    return _read("direct")[:5]


def nameless() -> object:
    """O_TMPFILE, then a name."""
    os.close(os.open(".", os.O_TMPFILE | os.O_RDWR))
    return True


def allocate() -> object:
    """Space allocated beforehand, and a hole punched."""
    fd = os.open("allocated", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 1 << 20)
    before = os.fstat(fd).st_blocks
    size = ctypes.c_long(1 << 19)
    _called(_LIBC.fallocate(fd, _FALLOC_PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(0), size))
    return [os.fstat(fd).st_size, os.fstat(fd).st_blocks < before]


def owner_and_mode() -> object:
    """chown takes set-user-ID away, chmod gives it."""
    _write("owned")
    os.chmod("owned", 0o4755)
    os.chown("owned", 123, 456)
    found = os.stat("owned")
    os.chmod("owned", 0o6751)
    return [found.st_uid, found.st_gid, oct(found.st_mode & 0o7777), oct(os.stat("owned").st_mode & 0o7777)]


def times() -> object:
    """Nanoseconds."""
    _write("timed")
    os.utime("timed", ns=(1234567890123456789, 1234567890987654321))
    return [os.stat("timed").st_atime_ns, os.stat("timed").st_mtime_ns]


def rename() -> object:
    """Over another, in exchange, and not over another."""
    _write("one", "1")
    _write("two", "2")
    _called(_LIBC.renameat2(-100, b"one", -100, b"two", _RENAME_EXCHANGE))
    swapped = _read("one")
    refused = _LIBC.renameat2(-100, b"one", -100, b"two", _RENAME_NOREPLACE)
    os.rename("one", "two")
    return [swapped, refused, errno.errorcode[ctypes.get_errno()], _read("two")]


def unlinked() -> object:
    """An open file without a name."""
    with open("unlinked", "w+", encoding="utf-8") as file:
        file.write("still")
        file.flush()
        os.unlink("unlinked")
        file.seek(0)
        return [file.read(), os.fstat(file.fileno()).st_nlink]


def sparse() -> object:
    """Five gigabytes with a few bytes in them, found again by SEEK_DATA."""
    fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", (5 << 30) - 3)
    return [os.fstat(fd).st_size, os.fstat(fd).st_blocks < 100, os.lseek(fd, 0, os.SEEK_DATA) > 4 << 30]


def inotify() -> object:
    """A change made in the same container."""
    fd = _called(_LIBC.inotify_init())
    _called(_LIBC.inotify_add_watch(fd, b".", 0xFFF))
    _write("watched")
    return bool(select.select([fd], [], [], 10)[0])


def flags() -> object:
    """lsattr(1)."""
    _write("flagged")
    with open("flagged", encoding="utf-8") as file:
        fcntl.ioctl(file, 0x80086601, bytes(8))
    return True


def names() -> object:
    """Of 200 bytes, not ASCII; listed among a thousand."""
    name = "ü" * 100
    os.mkdir("names")
    for number in range(1000):
        _write(f"names/{number}", "")
    _write(f"names/{name}", "")
    found = os.listdir("names")
    return [len(found), name in found]


def _probes() -> dict[str, Callable[[], object]]:
    return {key: value for key, value in globals().items() if callable(value) and value.__module__ == __name__}


def main() -> None:
    """Try each."""
    result: dict[str, object] = {}
    for name, probe in _probes().items():
        if name.startswith("_") or name == "main":
            continue
        try:
            result[name] = probe()
        except OSError as error:
            result[name] = errno.errorcode.get(error.errno or 0, str(error))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
