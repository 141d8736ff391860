"""Zstandard by the C library's libzstd, which Debian's dpkg needs: the standard library has none before Python 3.14."""

from __future__ import annotations

import ctypes

from runvm.errors import HostError

_LIBRARY = "libzstd.so.1"
_LEVEL = 1


class Zstd:
    """The loaded library. Raises HostError where there is none."""

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise HostError(f"{_LIBRARY} can't be loaded: {error}", do="apt-get install libzstd1") from error
        size, pointer = ctypes.c_size_t, ctypes.c_void_p
        self._bound = library.ZSTD_compressBound
        self._bound.restype, self._bound.argtypes = size, (size,)
        self._compress = library.ZSTD_compress
        self._compress.restype, self._compress.argtypes = size, (pointer, size, ctypes.c_char_p, size, ctypes.c_int)
        self._decompress = library.ZSTD_decompress
        self._decompress.restype, self._decompress.argtypes = size, (pointer, size, ctypes.c_char_p, size)
        self._is_error = library.ZSTD_isError
        self._is_error.restype, self._is_error.argtypes = ctypes.c_uint, (size,)

    def compressed(self, data: bytes) -> bytes:
        """One frame with *data*. Raises ValueError where the library fails."""
        room = ctypes.create_string_buffer(self._bound(len(data)))
        size = self._checked(self._compress(room, len(room), data, len(data), _LEVEL))
        return ctypes.string_at(room, size)

    def plain(self, data: bytes, limit: int) -> bytes:
        """What the frames *data* hold, *limit* bytes at most. Raises ValueError for what isn't that."""
        room = ctypes.create_string_buffer(limit)
        size = self._checked(self._decompress(room, limit, data, len(data)))
        return ctypes.string_at(room, size)

    def _checked(self, size: int) -> int:
        if self._is_error(size):
            raise ValueError("not what zstd makes")
        return size
