"""A VM's memory in an image: what was used comes back, and nothing that wasn't written is taken for it."""

from __future__ import annotations

import os
import random
import struct
from typing import TYPE_CHECKING

import pytest

from runvm.checkpoint import memory
from runvm.errors import CheckpointError

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


def unpacked(source: str, target: Path, size: int = SIZE) -> tuple[str, bytes]:
    """(hash, memory) of what *source* gives."""
    with open(source, "rb") as packed, open(target, "w+b") as out:
        out.truncate(size)
        found = memory.unpack(packed.fileno(), out.fileno())
        return found, out.read()


@pytest.mark.parametrize("seed", range(8))
def test_what_was_used_comes_back(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    pages = {chance.randrange(SIZE // 4096): chance.randbytes(4096) for _ in range(chance.randrange(300))}
    pages |= {number: bytes(4096) for number in range(40)}
    source = made(tmp_path / "ram", pages)
    memory.pack(source, str(tmp_path / "packed"))
    found, data = unpacked(str(tmp_path / "packed"), tmp_path / "again")
    with open(source, "rb") as file:
        assert data == file.read()
    assert found == memory.digest(str(tmp_path / "packed"))
    assert os.path.getsize(tmp_path / "packed") <= len(pages) * (4096 + 16)
    assert os.stat(tmp_path / "packed").st_mode & 0o777 == 0o600


def test_an_empty_memory_takes_nothing(tmp_path: Path) -> None:
    memory.pack(made(tmp_path / "ram", {}), str(tmp_path / "packed"))
    assert os.path.getsize(tmp_path / "packed") == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\0" * 15,
        struct.pack(">QQ", 0, 0),
        struct.pack(">QQ", 0, 4096) + bytes(4095),
        struct.pack(">QQ", SIZE, 4096) + bytes(4096),
        struct.pack(">QQ", SIZE - 1, 4096) + bytes(4096),
        struct.pack(">QQ", 0, 1 << 40) + bytes(4096),
        struct.pack(">QQ", (1 << 64) - 1, (1 << 64) - 1),
        (struct.pack(">QQ", 4096, 4096) + bytes(4096)) * 2,
    ],
)
def test_what_was_never_written_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "packed").write_bytes(data)
    with pytest.raises(CheckpointError):
        unpacked(str(tmp_path / "packed"), tmp_path / "again")


def test_any_change_shows(tmp_path: Path) -> None:
    """A bit that has changed, or an end that is missing: refused at once, or another hash."""
    memory.pack(made(tmp_path / "ram", {3: b"x" * 4096, 900: b"y" * 4096}), str(tmp_path / "packed"))
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
