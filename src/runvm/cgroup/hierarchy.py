"""How this host has its cgroups: version 2 alone, or a hierarchy for each controller (version 1, and hybrid)."""

from __future__ import annotations

import os

ROOT = "/sys/fs/cgroup"


def unified() -> bool:
    """Whether version 2 is all there is (cgroups(7), Cgroups v2)."""
    return os.path.exists(f"{ROOT}/cgroup.controllers")


def roots() -> list[str]:
    """Where cgroups are mounted: a directory for each hierarchy, or where there is but one, that."""
    if unified():
        return [ROOT]
    try:
        names = sorted(os.listdir(ROOT))
    except OSError:
        return []
    return [
        f"{ROOT}/{name}"
        for name in names
        if not os.path.islink(f"{ROOT}/{name}") and os.path.exists(f"{ROOT}/{name}/cgroup.procs")
    ]


def root_of(directory: str) -> str:
    """The mount that the cgroup *directory* lies in."""
    return ROOT if unified() else f"{ROOT}/{_hierarchy(directory)}"


def controllers(directory: str) -> list[str]:
    """The controllers of the version 1 hierarchy in which *directory* lies, by its name."""
    return _hierarchy(directory).split(",")


def _hierarchy(directory: str) -> str:
    return directory[len(ROOT) + 1 :].partition("/")[0]
