"""Files mapped to be compared where they lie in the page cache: mmap(2). Python's own module tells no address of a file
that is only read."""

from __future__ import annotations

import ctypes
import mmap
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.memcmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


class Mapping:
    """The file of *fd*, *size* bytes. Nobody may make it shorter meanwhile: who looks behind its end gets SIGBUS."""

    def __init__(self, fd: int, size: int) -> None:
        """Raises OSError: not every file system can."""
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"map a file: {os.strerror(number)}")
        self.address: int = address
        self.size = size

    def is_like(self, other: Mapping, offset: int, length: int) -> bool:
        """Whether both have the same bytes there: memcmp(3)."""
        assert offset + length <= min(self.size, other.size)
        return bool(_libc.memcmp(self.address + offset, other.address + offset, length) == 0)

    def close(self) -> None:
        """Give the addresses back."""
        _libc.munmap(self.address, self.size)
