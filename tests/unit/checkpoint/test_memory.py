"""A VM's memory in an image: what was used comes back, and nothing that wasn't written is taken for it."""

from __future__ import annotations

import os
import random
import struct
from typing import TYPE_CHECKING

import pytest

from runvm.checkpoint import memory
from runvm.errors import CheckpointError
from runvm.linux import files
from runvm.linux.zstd import Zstd

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 8 << 20


def made(path: Path, pages: dict[int, bytes]) -> str:
    """A file of SIZE bytes, sparse but for *pages*."""
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for number, data in pages.items():
            file.seek(number * 4096)
            file.write(data)
    return str(path)


def pack(source: str, target: Path, *, compress: bool = False) -> str:
    """memory.pack() of a whole file."""
    with open(source, "rb") as file:
        return memory.pack(file.fileno(), files.data(file.fileno()), str(target), compress=compress)


def unpacked(source: str, target: Path, size: int = SIZE) -> tuple[str, bytes]:
    """(hash, memory) of what *source* gives."""
    with open(source, "rb") as packed, open(target, "w+b") as out:
        out.truncate(size)
        found = memory.unpack(packed.fileno(), out.fileno())
        return found, out.read()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_what_was_used_comes_back(tmp_path: Path, seed: int, compress: bool) -> None:
    chance = random.Random(seed)
    pages = {chance.randrange(SIZE // 4096): chance.randbytes(4096) for _ in range(chance.randrange(300))}
    pages |= {number: bytes(4096) for number in range(40)}
    pages |= {number: chance.randbytes(8) * 512 for number in range(100, 900, chance.randrange(1, 5))}
    source = made(tmp_path / "ram", pages)
    told = pack(source, tmp_path / "packed", compress=compress)
    found, data = unpacked(str(tmp_path / "packed"), tmp_path / "again")
    with open(source, "rb") as file:
        assert data == file.read()
    assert told == found == memory.digest(str(tmp_path / "packed"))
    assert os.path.getsize(tmp_path / "packed") <= len(pages) * (4096 + 16)
    assert os.stat(tmp_path / "packed").st_mode & 0o777 == 0o600


def test_compressed_it_is_smaller(tmp_path: Path) -> None:
    source = made(tmp_path / "ram", dict.fromkeys(range(100), b"word" * 1024))
    pack(source, tmp_path / "packed", compress=True)
    assert os.path.getsize(tmp_path / "packed") < 10_000


def test_an_empty_memory_takes_nothing(tmp_path: Path) -> None:
    pack(made(tmp_path / "ram", {}), tmp_path / "packed")
    assert os.path.getsize(tmp_path / "packed") == 0


RUN = struct.Struct(">QII")
BOMB = Zstd().compressed(bytes(2 << 20))


def run(offset: int, length: int, data: bytes) -> bytes:
    """A run as pack() writes it."""
    return RUN.pack(offset, length, len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 15,
        RUN.pack(0, 0, 0),
        RUN.pack(0, 4096, 4096) + bytes(4095),
        run(SIZE, 4096, bytes(4096)),
        run(SIZE - 1, 4096, bytes(4096)),
        RUN.pack(0, 1 << 31, 1 << 31) + bytes(4096),
        RUN.pack((1 << 64) - 1, (1 << 32) - 1, (1 << 32) - 1),
        run(4096, 4096, bytes(4096)) * 2,
        run(0, 4096, b"no zstd"),
        RUN.pack(0, 4096, 0),
        run(0, 4096, bytes(8192)),
        run(0, 8192, Zstd().compressed(bytes(4096))),
        run(0, 4096, Zstd().compressed(bytes(8192))),
        run(0, 1 << 20, BOMB),
        run(0, 4096, Zstd().compressed(bytes(4096))[:-1]),
    ],
)
def test_what_was_never_written_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "packed").write_bytes(data)
    with pytest.raises(CheckpointError):
        unpacked(str(tmp_path / "packed"), tmp_path / "again")


@pytest.mark.parametrize("compress", [False, True])
def test_any_change_shows(tmp_path: Path, compress: bool) -> None:
    """A bit that has changed, or an end that is missing: refused at once, or another hash."""
    pages = {3: b"x" * 4096, 900: b"y" * 2048 + random.Random(2).randbytes(2048)}
    pack(made(tmp_path / "ram", pages), tmp_path / "packed", compress=compress)
    whole = (tmp_path / "packed").read_bytes()
    right = memory.digest(str(tmp_path / "packed"))
    chance = random.Random(1)
    for _ in range(200):
        at = chance.randrange(len(whole))
        damaged = whole[:at] if chance.random() < 0.3 else whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
        (tmp_path / "packed").write_bytes(damaged)
        try:
            found, _ = unpacked(str(tmp_path / "packed"), tmp_path / "again")
        except CheckpointError:
            continue
        assert found != right
