"""A copy of memory that changes: in the end it is what the memory was at the last moment."""

from __future__ import annotations

import errno
import os
import random
import threading
from typing import TYPE_CHECKING

import pytest

from runvm.checkpoint import memory, precopy
from runvm.linux import syscalls

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096
SIZE = 16 << 20


class Memory:
    """A VM's, as a file; what it does with it is chance's."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = str(path)
        self._chance = random.Random(seed)
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115
        self._file.truncate(SIZE)

    def use(self, pages: int) -> None:
        """Write some pages, zero some, give some back."""
        for _ in range(pages):
            offset = self._chance.randrange(SIZE // PAGE) * PAGE
            match self._chance.randrange(8):
                case 0:
                    os.pwrite(self._file.fileno(), bytes(PAGE), offset)
                case 1:
                    length = min(self._chance.randrange(1, 100) * PAGE, SIZE - offset)
                    syscalls.punch_hole(self._file.fileno(), offset, length)
                case _:
                    # a bit of a page, too
                    data = self._chance.randbytes(self._chance.choice((1, 8, PAGE)))
                    os.pwrite(self._file.fileno(), data, offset)

    def now(self) -> bytes:
        """All of it."""
        return os.pread(self._file.fileno(), SIZE, 0)


def restored(packed: str, path: Path) -> bytes:
    """The memory that an image's file gives."""
    with open(packed, "rb") as file, open(path, "w+b") as target:
        target.truncate(SIZE)
        memory.unpack(file.fileno(), target.fileno())
        return target.read()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_the_memory_was_at_the_last_moment(tmp_path: Path, seed: int, compress: bool) -> None:
    source = Memory(tmp_path / "ram", seed)
    source.use(400)
    with precopy.Copy(source.path, str(tmp_path)) as copy:
        copy.begin()
        for pages in (300, 0, 20):
            source.use(pages)
            changed = copy.catch_up()
            assert pages or not changed
        last = source.now()
        source.use(200)  # it goes on
        told = copy.pack(str(tmp_path / "packed"), compress=compress)
    assert restored(str(tmp_path / "packed"), tmp_path / "again") == last
    assert told == memory.digest(str(tmp_path / "packed"))
    used = sum(last[at : at + PAGE] != bytes(PAGE) for at in range(0, SIZE, PAGE))
    assert os.path.getsize(tmp_path / "packed") <= used * (PAGE + 16)
    assert sorted(os.listdir(tmp_path)) == ["again", "packed", "ram"]


def test_it_ends_though_the_memory_never_comes_to_rest(tmp_path: Path) -> None:
    """A guest that writes faster than it is copied: what is left comes when it stands still."""
    source = Memory(tmp_path / "ram", 1)
    source.use(2000)
    still = threading.Event()

    def run() -> None:
        while not still.is_set():
            source.use(20)

    guest = threading.Thread(target=run)
    guest.start()
    try:
        with precopy.Copy(source.path, str(tmp_path)) as copy:
            copy.begin()
            still.set()
            guest.join()
            copy.catch_up()
            copy.pack(str(tmp_path / "packed"), compress=False)
    finally:
        still.set()
        guest.join()
    assert restored(str(tmp_path / "packed"), tmp_path / "again") == source.now()


def test_where_a_file_cant_be_mapped_all_is_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.ENODEV, "no such device")

    monkeypatch.setattr(precopy, "Mapping", refuse)
    source = Memory(tmp_path / "ram", 2)
    source.use(100)
    with precopy.Copy(source.path, str(tmp_path)) as copy:
        copy.begin()
        source.use(100)
        assert copy.catch_up() > 100 * PAGE
        copy.pack(str(tmp_path / "packed"), compress=False)
    assert restored(str(tmp_path / "packed"), tmp_path / "again") == source.now()


def test_memory_that_is_freed_meanwhile_ends_nobody(tmp_path: Path) -> None:
    """As when the VM is killed: boot.free_memory()."""
    from runvm.hypervisor import boot

    (tmp_path / "jail").mkdir()
    source = Memory(tmp_path / "jail" / "ram", 3)
    source.use(100)
    with precopy.Copy(source.path, str(tmp_path)) as copy:
        copy.begin()
        boot.free_memory(str(tmp_path))
        assert source.now() == bytes(SIZE)
        assert copy.catch_up() == 0
        copy.pack(str(tmp_path / "packed"), compress=False)
    assert os.path.getsize(tmp_path / "packed") == 0
