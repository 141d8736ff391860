"""What a guest's agent does with the mounts below a container's sources."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

import pytest

from framework.apart import apart
from runvm.agent import submounts
from runvm.linux import mounts, syscalls

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_mounts_below_a_source_get_the_hosts_flags(tmp_path: Path) -> None:
    """Before the source is bound anywhere; what isn't a mount, or has gone, is left alone."""
    share = tmp_path / "share"

    def test() -> None:
        for path in ("shared/1/all", "shared/1/none", "shared/1/directory", "containers/name/rootfs"):
            (share / path).mkdir(parents=True)
        for path in ("all", "none"):
            syscalls.mount("test", str(share / "shared/1" / path), "tmpfs")
        (share / "containers/name/m1").symlink_to("../../shared/1")
        listed = {"all": ["nodev", "noexec", "nosuid", "ro"], "none": [], "directory": ["nosuid"], "gone": ["nodev"]}
        (share / "containers/name/submounts").write_text(json.dumps({f"shared/1/{k}": v for k, v in listed.items()}))
        spec = {
            "root": {"path": f"{share}/containers/name/rootfs"},
            "mounts": [{"source": f"{share}/containers/name/m1"}],
        }
        assert submounts.hold(spec, str(share)) >= {f"{share}/shared/1"}
        found = {os.path.basename(mount.point): mount.options for mount in mounts.table(str(share))}
        assert found["all"] >= {"ro", "nosuid", "nodev", "noexec"}
        assert not found["none"] & {"ro", "nosuid", "nodev", "noexec"}

    apart(test)


def test_a_file_system_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent serves all containers of the virtual machine. The others are visited, unless several hang."""
    (tmp_path / "containers/name/rootfs").mkdir(parents=True)
    paths = ["a", "hangs1", "b", "hangs2", "c", "hangs3", "d"]
    (tmp_path / "containers/name/submounts").write_text(json.dumps({path: [] for path in paths}))

    def visit(path: str, flags: list[str]) -> None:
        if "hangs" in path:
            time.sleep(8)
        os.mkdir(tmp_path / os.path.basename(os.path.dirname(path)))

    monkeypatch.setattr(submounts, "_restrict", visit)
    monkeypatch.setattr(submounts, "_SECONDS", 0.3)
    before = time.monotonic()
    submounts.hold({"root": {"path": f"{tmp_path}/containers/name/rootfs"}}, str(tmp_path))
    assert time.monotonic() - before < 6
    assert {*os.listdir(tmp_path)} == {"containers", "a", "b", "c"}
