"""Which binds over /dev/shm are an engine's tmpfs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from framework.apart import apart
from runvm.container import shm
from runvm.linux import syscalls
from runvm.oci.spec import Mount

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


def found(source: Path, destination: str = "/dev/shm") -> shm.Shm | None:
    """For a bind of *source*."""
    return shm.of_engine(Mount(destination, "bind", os.fspath(source), ("rbind", "nosuid")))


def test_an_engines_tmpfs_is_one_of_the_guests(tmp_path: Path) -> None:
    """With its size, mode and owner, by a name that two binds of it have in common, and another one hasn't."""
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "link"

    def test() -> None:
        for path in (one, two):
            path.mkdir()
            syscalls.mount("shm", os.fspath(path), "tmpfs", 0, "size=3m,mode=1770")
        os.chown(one, 5, 6)
        link.symlink_to(one)
        first, other = found(one), found(two, "/dev//shm/")
        assert first is not None
        assert other is not None
        assert sorted(first.options) == ["gid=6", "mode=1770", f"size={3 << 20}", "uid=5"]
        assert first == found(link)
        assert first.name != other.name
        assert found(one, "/other") is None

    apart(test)


def test_others_stay_the_hosts(tmp_path: Path) -> None:
    """A directory, one in such a tmpfs, a tmpfs that isn't named so, what isn't there, and the host's own /dev/shm."""
    plain, tmpfs, own = tmp_path / "plain", tmp_path / "tmpfs", tmp_path / "own"

    def test() -> None:
        for path in (plain, tmpfs, own):
            path.mkdir()
        syscalls.mount("tmpfs", os.fspath(tmpfs), "tmpfs")
        syscalls.mount("shm", os.fspath(own), "tmpfs")
        (own / "below").mkdir()
        for path in (plain, tmpfs, own / "below", tmp_path / "none"):
            assert found(path) is None
        syscalls.mount(os.fspath(own), "/dev/shm", "", syscalls.MS_BIND)
        assert found(own) is None

    apart(test)
