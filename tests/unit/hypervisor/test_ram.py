"""A template's memory copied into a VM's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runvm.errors import VmmError
from runvm.hypervisor import ram

if TYPE_CHECKING:
    from pathlib import Path

HUGE = 2 << 20


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """Of four parts as large as a huge page: one full, one with a page, one of holes, one full but for a hole."""
    path = tmp_path / "template"
    with path.open("wb") as file:
        file.truncate(4 * HUGE)
        for offset, size in ((0, HUGE), (HUGE + 8192, 4096), (3 * HUGE + 65536, HUGE - 65536)):
            file.seek(offset)
            file.write(os.urandom(size))
    return path


@pytest.mark.parametrize("able", [True, False])
def test_parts_that_are_nearly_full_are_copied_first(template: Path, tmp_path: Path, able: bool) -> None:
    """While huge pages are allowed, where the kernel has them; the rest afterwards, so that it doesn't grow."""
    asked = []
    fd = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4 * HUGE)

    def allow(allowed: bool) -> bool:
        asked.append((allowed, os.fstat(fd).st_blocks * 512))
        return able and allowed

    try:
        ram.copy_sparse(str(template), fd, allow)
        assert os.pread(fd, 4 * HUGE, 0) == template.read_bytes()
        assert os.fstat(fd).st_blocks * 512 < 2 * HUGE + 65536
    finally:
        os.close(fd)
    nearly_full = 2 * HUGE - 65536
    assert asked == ([(True, 0), (False, nearly_full)] if able else [(True, 0)])


def test_a_template_that_has_been_cut_short_is_named(template: Path, tmp_path: Path) -> None:
    """While it is copied: a start boots instead."""
    fd = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT)

    def cut(allowed: bool) -> bool:
        os.truncate(template, 4096)
        return False

    try:
        with pytest.raises(VmmError, match=r"template is shorter than it was$"):
            ram.copy_sparse(str(template), fd, cut)
    finally:
        os.close(fd)
