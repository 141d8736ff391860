"""What a bundle must have in common with the checkpoint that is restored with it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from runvm.container import shape
from runvm.errors import CheckpointError
from runvm.shares.tree import Share

MOUNTS: list[dict[str, Any]] = [
    {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
    {"destination": "/etc/hosts", "type": "bind", "source": "/a", "options": ["bind", "rprivate"]},
    {"destination": "/data", "source": "/b", "options": ["rbind", "ro"]},
    {"destination": "/merged", "type": "overlay", "source": "/m", "options": ["lowerdir=/l", "upperdir=/u", "private"]},
]
CONFIG: dict[str, Any] = {"mounts": MOUNTS, "linux": {"devices": [{"path": "/dev/x", "type": "c"}]}, "process": {}}


def kept(config: dict[str, Any]) -> dict[str, Any]:
    """As an image has it."""
    found: dict[str, Any] = json.loads(json.dumps(shape.of(config)))
    return found


def changed(number: int, **fields: Any) -> dict[str, Any]:
    """CONFIG with another mount."""
    mounts = [*MOUNTS]
    mounts[number] = {**mounts[number], **fields}
    return {**CONFIG, "mounts": mounts}


def test_sources_order_and_propagation_are_the_new_bundles() -> None:
    """Podman writes private for rprivate, and the mounts in another order, where it imports a checkpoint."""
    for other in (
        changed(1, source="/other", options=["private", "bind"]),
        changed(2, destination="data/", options=["ro", "rbind", "ro"], type="none"),
        changed(3, options=["upperdir=/u2", "lowerdir=/l2:/l3"]),
        {**CONFIG, "mounts": MOUNTS[::-1]},
    ):
        shape.check(kept(CONFIG), shape.of(other))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (changed(0, options=[]), "/proc"),
        (changed(0, type="tmpfs"), "/proc"),
        (changed(2, options=["rbind"]), "/data"),
        (changed(1, destination="/elsewhere"), "/elsewhere, /etc/hosts"),
        ({**CONFIG, "mounts": MOUNTS[:3]}, "/merged"),
        ({**CONFIG, "mounts": [*MOUNTS, MOUNTS[0]]}, "/proc"),
        ({**CONFIG, "linux": {}}, "/dev/x"),
        ({**CONFIG, "process": {"terminal": True}}, "no terminal"),
    ],
)
def test_the_rest_is_named(other: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        shape.check(kept(CONFIG), shape.of(other))


CONFINED: dict[str, Any] = {
    "root": {"path": "rootfs", "readonly": True},
    "process": {
        "user": {"uid": 5, "gid": 6, "additionalGids": [7, 8]},
        "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_CHOWN"], "ambient": []},
        "noNewPrivileges": True,
        "env": ["A=b"],
    },
    "linux": {
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
        "maskedPaths": ["/proc/kcore", "/proc/keys"],
        "readonlyPaths": ["/proc/sys"],
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
        "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
    },
}


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("root", "readonly", False),
        ("process", "user", {"uid": 0, "gid": 0}),
        ("process", "user", {"uid": 5, "gid": 6, "additionalGids": [7]}),
        ("process", "capabilities", {**CONFINED["process"]["capabilities"], "effective": []}),
        ("process", "noNewPrivileges", False),
        ("linux", "seccomp", {"defaultAction": "SCMP_ACT_ERRNO"}),
        ("linux", "seccomp", None),
        ("linux", "maskedPaths", []),
        ("linux", "readonlyPaths", None),
        ("linux", "uidMappings", []),
        ("linux", "gidMappings", [{"containerID": 0, "hostID": 0, "size": 10}]),
    ],
)
def test_processes_keep_what_confines_them(part: str, field: str, value: Any) -> None:
    """A bundle that says otherwise is refused, whether it promises more or less."""
    other = {**CONFINED, part: {**CONFINED[part], field: value}}
    for then, now in ((CONFINED, other), (other, CONFINED)):
        with pytest.raises(CheckpointError, match=rf"another {part}\.{field} than"):
            shape.check(kept(then), shape.of(now))


def test_the_order_of_what_confines_means_nothing() -> None:
    """Nor what the processes have changed for long: arguments, environment, working directory."""
    process = CONFINED["process"]
    other = {
        **CONFINED,
        "process": {
            **process,
            "user": {"uid": 5, "gid": 6, "additionalGids": [8, 7], "username": "x"},
            "capabilities": {"effective": ["CAP_CHOWN"], "bounding": ["CAP_CHOWN", "CAP_KILL"]},
            "args": ["other"],
            "env": ["B=c"],
            "cwd": "/tmp",
        },
        "linux": {**CONFINED["linux"], "maskedPaths": ["/proc/keys", "/proc/kcore"]},
    }
    shape.check(kept(CONFINED), shape.of(other))


@pytest.mark.parametrize("noise", [None, {}, 5, [5], [[]], [{}], [[5, "x", []]], "mounts"])
def test_noise_is_refused(noise: Any) -> None:
    for kind in ("mounts", "devices"):
        with pytest.raises(CheckpointError):
            shape.check({**kept(CONFIG), kind: noise}, shape.of(CONFIG))
    with pytest.raises(CheckpointError, match=r"process\.user"):
        shape.check({**kept(CONFIG), "confinement": noise}, shape.of(CONFIG))


def test_shares_keep_the_names_that_the_guest_knows() -> None:
    """By their destinations; of two at one place the first is the first."""
    mounts = [*MOUNTS, MOUNTS[2]]
    then = kept({"mounts": mounts})
    for seed in range(20):
        order = [*range(len(mounts))]
        random.Random(seed).shuffle(order)
        now = shape.of({"mounts": [mounts[number] for number in order]})
        shares = {f"m{place}": Share(str(number), False, False) for place, number in enumerate(order)}
        found = shape.renamed({"rootfs": Share("/", True, False), **shares}, then, now)
        assert list(found) == ["rootfs", *(f"m{number}" for number in range(len(mounts)))]
        for number in (0, 1, 3):
            assert found[f"m{number}"].source == str(number)
