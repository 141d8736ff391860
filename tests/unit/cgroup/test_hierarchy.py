"""Version 2 or version 1 of cgroups is told by the mount, not by how many hierarchies may be written."""

from __future__ import annotations

from pathlib import Path

import pytest

from runvm.cgroup import cgroup, hierarchy


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the place of /sys/fs/cgroup."""
    monkeypatch.setattr(hierarchy, "ROOT", str(tmp_path))
    return tmp_path


def version_1(mounts: Path, *names: str) -> None:
    """Hierarchies as systemd mounts them."""
    for name in names:
        (mounts / name).mkdir()
        (mounts / name / "cgroup.procs").write_text("")


def test_a_version_1_host_with_one_hierarchy_is_version_1(mounts: Path) -> None:
    """As in a container that has but its memory cgroup: there is no memory.max."""
    version_1(mounts, "memory")
    assert not hierarchy.unified()
    found = cgroup.planned("/a/b", "id")
    assert found.directories == (f"{mounts}/memory/a/b",)
    made = cgroup.make(found)
    for name in ("memory.limit_in_bytes", "memory.max"):
        (mounts / "memory/a/b" / name).write_text("")
    made.limit({"memory": {"limit": 64 << 20}}, overhead_mib=16)
    assert int((mounts / "memory/a/b/memory.limit_in_bytes").read_text()) > 64 << 20
    assert (mounts / "memory/a/b/memory.max").read_text() == ""


def test_links_and_what_is_no_hierarchy_are_left_out(mounts: Path) -> None:
    """cpu is a link to cpu,cpuacct; the controllers are told by the name."""
    version_1(mounts, "cpu,cpuacct", "memory", "unified")
    (mounts / "cpu").symlink_to("cpu,cpuacct")
    (mounts / "empty").mkdir()
    assert hierarchy.roots() == [f"{mounts}/cpu,cpuacct", f"{mounts}/memory", f"{mounts}/unified"]
    assert hierarchy.controllers(f"{mounts}/cpu,cpuacct/a/b") == ["cpu", "cpuacct"]
    assert hierarchy.root_of(f"{mounts}/memory/a/b") == f"{mounts}/memory"


def test_version_2_is_one_mount(mounts: Path) -> None:
    """Its directories are cgroups, not hierarchies."""
    (mounts / "cgroup.controllers").write_text("memory")
    version_1(mounts, "system.slice")
    assert hierarchy.unified()
    assert hierarchy.roots() == [str(mounts)]
    assert hierarchy.root_of(f"{mounts}/system.slice/a") == str(mounts)
    assert cgroup.planned("/a/b", "id").directories == (f"{mounts}/a/b",)


def test_a_host_without_cgroups_has_none(mounts: Path) -> None:
    """Nothing to hold, and no error."""
    mounts.rmdir()
    assert hierarchy.roots() == []
    assert cgroup.planned("", "id").directories == ()
