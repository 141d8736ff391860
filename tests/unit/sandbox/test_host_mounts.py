"""What a supervisor keeps of the host's mounts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from framework.apart import apart
from runvm.linux import mounts, syscalls
from runvm.sandbox import host_mounts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_private_mounts_that_nobody_needs_are_let_go(tmp_path: Path) -> None:
    """With what is mounted below; one on the way to a file that is needed stays, one that the host can unmount does,
    and one below a directory that is needed. A link counts as what it leads to."""
    names = ["usb", "usb/below", "covered", "covered", "way", "way/kept", "way/kept/inner", "way/not", "link", "shared"]
    names += ["shared/private", "with space"]

    def run() -> None:
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
            syscalls.mount("test", str(tmp_path / name), "tmpfs")
        (tmp_path / "way" / "link").symlink_to("../link")
        syscalls.mount("none", str(tmp_path / "shared"), "", syscalls.MS_SHARED)
        host = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_SLAVE)
        before = {mount.point for mount in mounts.table("/proc")}
        kept = [str(tmp_path / "way/kept"), str(tmp_path / "way/link"), "/proc", "relative", "/", ""]
        host_mounts.detach(kept, [str(tmp_path.parent)])
        assert {mount.point for mount in mounts.table("/proc")} == before
        left = [mount.point.removeprefix(f"{tmp_path}/") for mount in mounts.table(str(tmp_path))]
        assert left == ["way", "way/kept", "way/kept/inner", "link", "shared"]
        os.close(host)

    apart(run)
