"""Files by their handles instead of paths: open_by_handle_at(2), name_to_handle_at(2); and what the kernel remembers
of them."""

from __future__ import annotations

import ctypes
import os
import struct

_HANDLE = struct.Struct("=Ii")
_MAX = 128
_AT_EMPTY_PATH = 0x1000
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC_STATS = 0x7FF
_RENAME_NOREPLACE = 1

HERE = -100
"""For open_handle(): the file system of the working directory (AT_FDCWD)."""

_libc = ctypes.CDLL(None, use_errno=True)

Handle = bytes
"""Its type (int), then its bytes."""


def of(fd: int) -> Handle:
    """The handle of the file with the descriptor *fd*. Raises OSError."""
    buffer = ctypes.create_string_buffer(_HANDLE.pack(_MAX, 0), _HANDLE.size + _MAX)
    mount = ctypes.c_int()
    _check(_libc.name_to_handle_at(fd, b"", buffer, ctypes.byref(mount), _AT_EMPTY_PATH), "name_to_handle_at")
    size, kind = _HANDLE.unpack_from(buffer.raw)
    return struct.pack("=i", kind) + buffer.raw[_HANDLE.size : _HANDLE.size + size]


def open_handle(mount: int, handle: Handle) -> int:
    """A descriptor (O_PATH) of the file that *handle* is of, on the file system of *mount*, an open
    file or HERE. Raises
    OSError: the file may be gone."""
    raw = struct.pack("=I", len(handle) - 4) + handle
    return _check(_libc.open_by_handle_at(mount, raw, os.O_PATH | os.O_CLOEXEC), "open_by_handle_at")


def refresh(fd: int) -> None:
    """Have a network file system ask its server what the file *fd* is like now: statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    _libc.statx(fd, b"", _AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC, _STATX_BASIC_STATS, buffer)


def look_up(directory: int, name: bytes) -> None:
    """Have a network file system ask its server for *name* in *directory*, whatever it remembers of it.

    A rename to the same name that mustn't replace anything never does anything: the name is there, or it isn't. But
    before it fails, the kernel looks the new name up without its memory (LOOKUP_RENAME_TARGET).
    """
    _libc.renameat2(directory, name, directory, name, _RENAME_NOREPLACE)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
