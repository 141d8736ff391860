"""The copy of a VM's memory: made while its guest runs, and brought up to date once that stands still, which takes only
what has changed. The image's file is then written from the copy, while the guest may run again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from runvm.checkpoint import memory
from runvm.linux import files
from runvm.linux.mapping import Mapping
from runvm.log import log

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 256 << 10
"""What is compared at once: long enough that two threads don't wait for each other's Python in between."""
_PART = 32 << 10
"""What is copied at once, where a chunk isn't the same."""
_FEW = 4 << 20
"""As many bytes are copied in some milliseconds: no further round is worth it."""
_ROUNDS = 4
_THREADS = 2


class Copy:
    """Of the file *source*, a VM's memory, as an unnamed file in *directory*. A context manager. Raises OSError.

    The page cache itself is compared, mapped: that takes a third of the time that reading it would."""

    def __init__(self, source: str, directory: str) -> None:
        self._source = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        self._size = os.fstat(self._source).st_size
        path = f"{directory}/.copy-{os.path.basename(source)}"
        self._target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.unlink(path)
        os.ftruncate(self._target, self._size)
        self._data: list[tuple[int, int]] = []
        self._allocated: set[tuple[int, int]] = set()
        self._maps: tuple[Mapping, Mapping] | None = None
        self._threads = ThreadPoolExecutor(_THREADS)

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()
        for mapping in self._maps or ():
            mapping.close()
        os.close(self._source)
        os.close(self._target)

    def begin(self) -> None:
        """Copy all that there is, and then what has changed meanwhile until that is little, or doesn't get less. Raises
        OSError."""
        self._look()
        for offset, end in _parts(self._data, _CHUNK):
            data = os.pread(self._source, end - offset, offset)
            if data.count(0) != len(data):
                files.write_at(self._target, data, offset)
        if not self._data:
            return
        try:
            self._maps = Mapping(self._source, self._size), Mapping(self._target, self._size)
        except OSError as error:
            log.debug(f"checkpoint: all memory is copied while the container stands still: {error}")
            return
        last = self.catch_up()
        for _ in range(_ROUNDS):
            if last < _FEW:
                break
            changed = self.catch_up()
            if changed > last // 2:
                break
            last = changed

    def catch_up(self) -> int:
        """Copy what has changed; how many bytes that was. Raises OSError."""
        self._look()
        chunks = list(_parts(self._data, _CHUNK))
        half = -(-len(chunks) // _THREADS)
        return sum(self._threads.map(self._update, [chunks[:half], chunks[half:]]))

    def _look(self) -> None:
        """See where data are, and have room for them: to compare with a hole of the copy takes memory of a tmpfs, and
        where there is none left, that is SIGBUS and no error. Raises OSError."""
        self._data = list(files.data(self._source))
        for begin, end in self._data:
            if (begin, end) not in self._allocated:
                os.posix_fallocate(self._target, begin, end - begin)
                self._allocated.add((begin, end))

    def pack(self, target: str, *, compress: bool) -> str:
        """Write what the memory was at the last catch_up() into the new file *target*, as memory.pack() does: its hash.
        Raises OSError, HostError."""
        # what has become a hole since it was copied is no data any more
        return memory.pack(self._target, self._data, target, compress=compress)

    def _update(self, chunks: list[tuple[int, int]]) -> int:
        changed = 0
        for begin, end in chunks:
            if self._is_same(begin, end):
                continue
            for offset, after in _parts([(begin, end)], _PART):
                if not self._is_same(offset, after):
                    files.write_at(self._target, os.pread(self._source, after - offset, offset), offset)
                    changed += after - offset
        return changed

    def _is_same(self, begin: int, end: int) -> bool:
        return self._maps is not None and self._maps[0].is_like(self._maps[1], begin, end - begin)


def _parts(data: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Where the parts of *data* begin and end, each *size* bytes at most."""
    for begin, end in data:
        for offset in range(begin, end, size):
            yield offset, min(offset + size, end)
