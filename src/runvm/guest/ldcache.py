"""Writes /etc/ld.so.cache, by which the guest's dynamic linker finds libraries without looking through directories.

ldconfig would do, but knows the files of its own architecture only. Source of the format: glibc's dl-cache.h, the
format "new" without extensions.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence

_MAGIC = b"glibc-ld.so.cache1.1"
_HEADER = struct.Struct("<20sIIB3xI12x")
_ENTRY = struct.Struct("<iIIIQ")
_LITTLE_ENDIAN = 2
_FLAGS = {"amd64": 0x0303, "arm64": 0x0A03}
"""FLAG_ELF_LIBC6 and the architecture's own flag."""
_DIGITS = re.compile(r"[0-9]+|.", re.DOTALL)


def render(libraries: Sequence[str], architecture: str) -> bytes:
    """The cache of *libraries*, paths in the guest whose last parts are the names that programs ask for."""
    paths = sorted(libraries, key=lambda path: order(os.path.basename(path)), reverse=True)
    strings = bytearray()
    entries = bytearray()
    start = _HEADER.size + _ENTRY.size * len(paths)
    for path in paths:
        value = start + len(strings)
        strings += path.encode() + b"\0"
        name = value + len(path.encode()) - len(os.path.basename(path).encode())
        entries += _ENTRY.pack(_FLAGS[architecture], name, value, 0, 0)
    return _HEADER.pack(_MAGIC, len(paths), len(strings), _LITTLE_ENDIAN, 0) + bytes(entries) + bytes(strings)


def order(name: str) -> list[tuple[int, int]]:
    """The key by which the dynamic linker takes names to be sorted, falling: numbers in them count as numbers, and come
    after all other characters (_dl_cache_libcmp())."""
    return [(1, int(part)) if part.isdigit() else (0, ord(part)) for part in _DIGITS.findall(name)]
