"""What a guest's agent does with the mounts below a container's sources."""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any

import pytest

from framework.apart import apart
from runvm.agent import submounts
from runvm.linux import mounts, syscalls
from runvm.protocol import names

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


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_tmpfs_is_there_as_long_as_a_container_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made for the first that names it, with its options, bound by each, and gone with what release() is told of."""
    monkeypatch.setattr(submounts, "_TMPFS", f"{tmp_path}/tmpfs")

    def spec() -> dict[str, Any]:
        options = ["rbind", "nosuid", "mode=1750", "size=1048576", "uid=5", "gid=6"]
        mount = {"destination": "/dev/shm", "type": names.SHM, "source": "name", "options": options}
        return {"root": {"path": f"{tmp_path}/containers/name/rootfs"}, "mounts": [mount]}

    def test() -> None:
        first, second = spec(), spec()
        place = f"{tmp_path}/tmpfs/name"
        assert submounts.hold(first, "/share") == submounts.hold(second, "/share") == {place}
        bind = {"destination": "/dev/shm", "type": "bind", "source": place, "options": ["rbind", "nosuid"]}
        assert first["mounts"] == second["mounts"] == [bind]
        assert len(mounts.table(place)) == 1
        status, size = os.stat(place), os.statvfs(place)
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o1750, 5, 6)
        assert size.f_blocks * size.f_frsize == 1 << 20
        submounts.release({place})
        assert not os.path.exists(place)

    apart(test)
