"""The file that is a VM's memory: its used pages copied into a template, and from a template into a new VM's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from runvm.errors import VmmError
from runvm.linux import files

_PAGE = 4096
MAX_RUN = 1 << 20


def save(source: str, target: str) -> None:
    """Copy the pages of the file *source* that aren't zero into the new file *target*; the rest stay holes. Raises
    OSError."""
    with open(source, "rb", buffering=0) as ram, open(target, "wb", buffering=0) as out:
        out.truncate(os.fstat(ram.fileno()).st_size)
        for offset, data in used(ram.fileno(), files.data(ram.fileno())):
            files.write_at(out.fileno(), data, offset)
        os.fsync(out.fileno())


def used(fd: int, data: Iterable[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
    """The runs of pages of a file that aren't zero, MAX_RUN bytes at most, with their offsets, within its *data*, which
    begin and end at pages. Raises OSError."""
    zero = bytes(_PAGE)
    for begin, end in data:
        for offset in range(begin, end, MAX_RUN):
            chunk = os.pread(fd, min(MAX_RUN, end - offset), offset)
            start = -1
            for page in range(0, len(chunk) + _PAGE, _PAGE):
                # of bytes, not of a memoryview, whose comparison goes byte by byte
                is_used = page < len(chunk) and chunk[page : page + _PAGE] != zero
                if is_used and start < 0:
                    start = page
                elif not is_used and start >= 0:
                    yield offset + start, memoryview(chunk)[start:page]
                    start = -1


def copy_sparse(source: str, target: int) -> None:
    """Copy the data of a sparse file, not its holes, into *target*, an empty file of the same length (lseek(2),
    SEEK_DATA). Raises OSError, VmmError for a file that has become shorter."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, end in files.data(fd):
            os.lseek(target, offset, os.SEEK_SET)
            while offset < end:
                sent = os.sendfile(target, fd, offset, end - offset)
                if sent == 0:
                    raise VmmError(f"the template {source} is shorter than it was")
                offset += sent
    finally:
        os.close(fd)
