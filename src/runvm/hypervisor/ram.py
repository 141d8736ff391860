"""The file that is a VM's memory: its used pages copied into a template, and from a template into a new VM's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

from runvm.errors import VmmError
from runvm.linux import files

_PAGE = 4096
_HUGE_PAGE = 2 << 20
"""Of x86-64, and of arm64 with pages of 4 KiB."""
_NEARLY_FULL = _HUGE_PAGE * 3 // 4
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


def copy_sparse(source: str, target: int, allow_huge: Callable[[bool], bool]) -> None:
    """Copy the data of a sparse file, not its holes, into *target*, an empty file of the same length (lseek(2),
    SEEK_DATA). Raises OSError, VmmError for a file that has become shorter.

    *allow_huge* says whether the target's file system takes a huge page for what is written, and tells whether it can.
    It does for parts of the file that are nearly full: to get, map and free them as small pages takes three times as
    long as to copy them. The other parts would grow to whole huge pages.
    """
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = _by_huge_page(files.data(fd))
        if allow_huge(True):
            _send(fd, target, [piece for part in parts if _is_nearly_full(part) for piece in part])
            allow_huge(False)
            parts = [part for part in parts if not _is_nearly_full(part)]
        _send(fd, target, [piece for part in parts for piece in part])
    except EOFError:
        raise VmmError(f"the template {source} is shorter than it was") from None
    finally:
        os.close(fd)


def _send(source: int, target: int, pieces: list[tuple[int, int]]) -> None:
    """Copy *pieces* to the same place (sendfile(2)). Raises OSError, EOFError."""
    for offset, end in pieces:
        os.lseek(target, offset, os.SEEK_SET)
        while offset < end:
            sent = os.sendfile(target, source, offset, end - offset)
            if sent == 0:
                raise EOFError
            offset += sent


def _by_huge_page(data: Iterable[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """The beginnings and ends of a file's *data*, those within the same huge page together."""
    found: dict[int, list[tuple[int, int]]] = {}
    for begin, end in data:
        for part in range(begin // _HUGE_PAGE, -(-end // _HUGE_PAGE)):
            piece = max(begin, part * _HUGE_PAGE), min(end, (part + 1) * _HUGE_PAGE)
            found.setdefault(part, []).append(piece)
    return list(found.values())


def _is_nearly_full(part: list[tuple[int, int]]) -> bool:
    return sum(end - begin for begin, end in part) >= _NEARLY_FULL
