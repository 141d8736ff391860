"""The file that is a VM's memory: its used pages copied into a template, and from a template into a new VM's."""

from __future__ import annotations

import os

from runvm.errors import VmmError

_PAGE = 4096


def save(source: str, target: str) -> None:
    """Copy the pages of the file *source* that aren't zero into the new file *target*; the rest stay holes. Raises
    OSError."""
    zero = bytes(_PAGE)
    with open(source, "rb", buffering=0) as ram, open(target, "wb", buffering=0) as out:
        size = os.fstat(ram.fileno()).st_size
        out.truncate(size)
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(ram.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: only a hole is left
            end = os.lseek(ram.fileno(), offset, os.SEEK_HOLE)
            while offset < end:
                chunk = os.pread(ram.fileno(), min(1 << 20, end - offset), offset)
                start = -1
                for page in range(0, len(chunk) + _PAGE, _PAGE):
                    used = page < len(chunk) and chunk[page : page + _PAGE] != zero
                    if used and start < 0:
                        start = page
                    elif not used and start >= 0:
                        os.pwrite(out.fileno(), chunk[start:page], offset + start)
                        start = -1
                offset += len(chunk)
        os.fsync(out.fileno())


def copy_sparse(source: str, target: int) -> None:
    """Copy the data of a sparse file, not its holes, into *target*, an empty file of the same length (lseek(2),
    SEEK_DATA). Raises OSError, VmmError for a file that has become shorter."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        offset = 0
        while offset < size:
            try:
                offset = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError:
                return  # ENXIO: only a hole is left
            end = os.lseek(fd, offset, os.SEEK_HOLE)
            os.lseek(target, offset, os.SEEK_SET)
            while offset < end:
                sent = os.sendfile(target, fd, offset, end - offset)
                if sent == 0:
                    raise VmmError(f"the template {source} is shorter than it was")
                offset += sent
    finally:
        os.close(fd)
