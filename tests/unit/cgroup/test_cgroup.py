"""Processes of one host cgroup that another one takes over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runvm.cgroup import cgroup, hierarchy
from runvm.cgroup.cgroup import Cgroup


class Host:
    """Two cgroups whose processes are kept here; each of *forks* is born in the old one while others are moved."""

    def __init__(self, forks: list[int]) -> None:
        self.where = {1: "/old", 2: "/old"}
        self.forks = forks

    def processes(self, group: Cgroup) -> list[int]:
        """As Cgroup.processes()."""
        return [pid for pid, directory in self.where.items() if (directory,) == group.directories]

    def take(self, group: Cgroup, pids: list[int]) -> None:
        """As Cgroup.take()."""
        self.where.update(dict.fromkeys(pids, group.directories[0]))
        if self.forks:
            self.where[self.forks.pop()] = "/old"


def test_what_is_forked_while_others_are_handed_over_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the programs of a guest on User Mode Linux are, each of which is a process of the host."""
    host = Host([5, 4, 3])
    monkeypatch.setattr(Cgroup, "processes", lambda self: host.processes(self))
    monkeypatch.setattr(Cgroup, "take", lambda self, pids: host.take(self, pids))
    monkeypatch.setattr(hierarchy, "root_of", lambda directory: "/")
    Cgroup(("/old",)).hand_over(("/new",))
    assert host.where == dict.fromkeys((1, 2, 3, 4, 5), "/new")


def test_processes_that_fork_for_ever_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(list(range(3, 10_000)))
    monkeypatch.setattr(Cgroup, "processes", lambda self: host.processes(self))
    monkeypatch.setattr(Cgroup, "take", lambda self, pids: host.take(self, pids))
    monkeypatch.setattr(hierarchy, "root_of", lambda directory: "/")
    Cgroup(("/old",)).hand_over(("/new",))
    assert len(host.forks) > 9_000


@pytest.mark.parametrize(
    ("unified", "files"),
    [
        (True, {"memory.max": "max", "cpu.max": "max 100000"}),
        (False, {"memory.limit_in_bytes": "-1", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"}),
    ],
)
@pytest.mark.parametrize("none", [-1, 1 << 62])
def test_a_limit_that_is_taken_away_is_taken_away_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unified: bool, files: dict[str, str], none: int
) -> None:
    """Else the host's kernel would kill the virtual machine at the limit that there was."""
    monkeypatch.setattr(hierarchy, "unified", lambda: unified)
    monkeypatch.setattr(hierarchy, "controllers", lambda directory: ("memory", "cpu"))
    group = Cgroup((str(tmp_path),))
    group.limit({"memory": {"limit": none}}, overhead_mib=100)
    group.limit_cpu({"quota": -1})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_what_is_not_given_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 is not given, as with runc."""
    monkeypatch.setattr(hierarchy, "unified", lambda: True)
    group = Cgroup((str(tmp_path),))
    group.limit({"memory": {"limit": 0}}, overhead_mib=100)
    group.limit({}, overhead_mib=100)
    group.limit_cpu({"quota": 0, "period": 0})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("unified", "file"), [(True, "cpu.max"), (False, "cpu.cfs_period_us")])
def test_a_period_without_a_quota_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unified: bool, file: str
) -> None:
    """As by runc, for the quota that may come."""
    monkeypatch.setattr(hierarchy, "unified", lambda: unified)
    monkeypatch.setattr(hierarchy, "controllers", lambda directory: ("cpu",))
    Cgroup((str(tmp_path),)).limit_cpu({"period": 50_000})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {file: "max 50000" if unified else "50000"}


@pytest.mark.skipif(hierarchy.unified() or os.geteuid() != 0, reason="needs root, and cgroups of version 1")
def test_cpusets_above_that_are_empty_are_filled() -> None:
    """An engine or a test may have made a pod's without giving it processors; runc fills it, too."""
    pod = f"/runvm-test-{os.getpid()}"
    root = f"{hierarchy.ROOT}/cpuset"
    os.mkdir(root + pod)
    made = cgroup.make(cgroup.planned(f"{pod}/one", "one"))
    try:
        for name in ("cpuset.cpus", "cpuset.mems"):
            values = {Path(f"{root}{path}/{name}").read_text() for path in ("", pod, f"{pod}/one")}
            assert len(values) == 1
    finally:
        made.remove()
        for directory in made.directories:
            os.rmdir(os.path.dirname(directory))
