"""A VM's memory as a file of an image: its used pages alone, in runs that each say where they belong, compressed if
that is wanted. Unlike a sparse file it stays small wherever it is copied, put in an archive or sent."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING

from runvm.errors import CheckpointError
from runvm.hypervisor.ram import MAX_RUN, used
from runvm.linux import files
from runvm.linux.zstd import Zstd

if TYPE_CHECKING:
    from collections.abc import Iterable

_RUN = struct.Struct(">QII")
"""Where it belongs, how long it is there, and how long here: as long, or shorter where it is compressed."""


def pack(source: int, data: Iterable[tuple[int, int]], target: str, *, compress: bool = False) -> str:
    """Write what is used of the descriptor *source*, within its *data*, into the new file *target*. The hash of what
    was written. Raises OSError, HostError."""
    zstd = Zstd() if compress else None
    told = hashlib.sha256()
    with open(target, "wb", opener=files.private) as out:
        for offset, plain in used(source, data):
            stored: bytes | memoryview = plain
            if zstd is not None and len(shorter := zstd.compressed(bytes(plain))) < len(plain):
                stored = shorter
            for part in (_RUN.pack(offset, len(plain), len(stored)), stored):
                told.update(part)
                out.write(part)
    return told.hexdigest()


def unpack(source: int, target: int) -> str:
    """Put the runs of the descriptor *source* into *target*, an empty file of the memory's length: the hash of what was
    read. Raises OSError, HostError, CheckpointError for what pack() never wrote."""
    size = os.fstat(target).st_size
    found = hashlib.sha256()
    zstd = None
    end = 0
    with open(source, "rb", closefd=False) as file:
        while head := file.read(_RUN.size):
            found.update(head)
            offset, length, stored = _RUN.unpack(head) if len(head) == _RUN.size else (0, 0, 0)
            if not 0 < stored <= length <= MAX_RUN or offset < end or offset + length > size:
                raise CheckpointError("a run of memory that can't be")
            data = file.read(stored)
            found.update(data)
            if len(data) != stored:
                raise CheckpointError("a run of memory that ends too early")
            if stored < length:
                zstd = zstd or Zstd()
                data = _plain(zstd, data, length)
            files.write_at(target, data, offset)
            end = offset + length
    return found.hexdigest()


def _plain(zstd: Zstd, data: bytes, length: int) -> bytes:
    try:
        plain = zstd.plain(data, length)
    except ValueError:
        plain = b""
    if len(plain) != length:
        raise CheckpointError("a run of memory that was compressed otherwise")
    return plain


def digest(path: str) -> str:
    """The hash of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
