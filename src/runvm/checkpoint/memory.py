"""A VM's memory as a file of an image: its used pages alone, in runs that each say where they belong. Unlike a sparse
file it stays small wherever it is copied, put in an archive or sent."""

from __future__ import annotations

import hashlib
import os
import struct

from runvm.errors import CheckpointError
from runvm.hypervisor.ram import MAX_RUN, used
from runvm.linux import files

_RUN = struct.Struct(">QQ")


def pack(source: str, target: str) -> None:
    """Write what is used of the file *source* into the new file *target*. Raises OSError."""
    with open(source, "rb", buffering=0) as memory, open(target, "wb", buffering=0, opener=files.private) as out:
        for offset, data in used(memory.fileno()):
            os.writev(out.fileno(), [_RUN.pack(offset, len(data)), data])


def unpack(source: int, target: int) -> str:
    """Put the runs of the descriptor *source* into *target*, an empty file of the memory's length: the hash of what was
    read. Raises OSError, CheckpointError for what pack() never wrote."""
    size = os.fstat(target).st_size
    found = hashlib.sha256()
    end = 0
    with open(source, "rb", closefd=False) as file:
        while head := file.read(_RUN.size):
            found.update(head)
            offset, length = _RUN.unpack(head) if len(head) == _RUN.size else (0, 0)
            if not 0 < length <= MAX_RUN or offset < end or offset + length > size:
                raise CheckpointError("a run of memory that can't be")
            data = file.read(length)
            found.update(data)
            if len(data) != length:
                raise CheckpointError("a run of memory that ends too early")
            os.pwrite(target, data, offset)
            end = offset + length
    return found.hexdigest()


def digest(path: str) -> str:
    """The hash of a file. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
