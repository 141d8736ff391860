"""A VM's memory as a file of an image: its used pages alone, in runs that each say where they belong, compressed if
that is wanted. Unlike a sparse file it stays small wherever it is copied, put in an archive or sent."""

from __future__ import annotations

import hashlib
import os
import struct

from runvm.errors import CheckpointError
from runvm.hypervisor.ram import MAX_RUN, used
from runvm.linux import files
from runvm.linux.zstd import Zstd

_RUN = struct.Struct(">QII")
"""Where it belongs, how long it is there, and how long here: as long, or shorter where it is compressed."""


def pack(source: str, target: str, *, compress: bool = False) -> None:
    """Write what is used of the file *source* into the new file *target*. Raises OSError, HostError."""
    zstd = Zstd() if compress else None
    with open(source, "rb", buffering=0) as memory, open(target, "wb", buffering=0, opener=files.private) as out:
        for offset, data in used(memory.fileno()):
            stored: bytes | memoryview = data
            if zstd is not None and len(shorter := zstd.compressed(bytes(data))) < len(data):
                stored = shorter
            os.writev(out.fileno(), [_RUN.pack(offset, len(data), len(stored)), stored])


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
            os.pwrite(target, data, offset)
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
