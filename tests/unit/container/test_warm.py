"""What makes two containers alike for a warm start."""

from __future__ import annotations

import copy
import json
import os
from typing import TYPE_CHECKING, Any

from runvm.container import warm
from runvm.oci import spec

if TYPE_CHECKING:
    from pathlib import Path


def config(tmp_path: Path, name: str) -> dict[str, Any]:
    """As an engine writes it for the container *name*."""
    (tmp_path / name / "merged").mkdir(parents=True)
    (tmp_path / "volume").mkdir(exist_ok=True)
    (tmp_path / name / "hosts").touch()
    return {
        "ociVersion": "1.0.2",
        "hostname": name,
        "process": {
            "args": ["serve"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "env": ["A=1", f"HOSTNAME={name}"],
            "selinuxLabel": f"label-{name}",
        },
        "root": {"path": str(tmp_path / name / "merged")},
        "annotations": {"io.runvm.warm": "/ready", "org.example.id": name},
        "hooks": {"prestart": [{"path": "/bin/true", "args": ["set", name]}]},
        "mounts": [
            {
                "destination": "/etc/hosts",
                "type": "bind",
                "source": str(tmp_path / name / "hosts"),
                "options": ["bind"],
            },
            {"destination": "/data", "type": "bind", "source": str(tmp_path / "volume"), "options": ["rbind", "ro"]},
        ],
        "linux": {
            "cgroupsPath": f"/engine/{name}",
            "namespaces": [
                *({"type": kind} for kind in ("pid", "mount", "uts", "ipc")),
                {"type": "network", "path": f"/run/netns/{name}"},
            ],
        },
    }


def alike(tmp_path: Path, found: dict[str, Any]) -> dict[str, Any]:
    return warm.alike(spec.parse(json.dumps(found).encode(), bundle=os.fspath(tmp_path)))


def test_what_each_container_has_of_its_own_makes_no_difference(tmp_path: Path) -> None:
    """Names, roots, cgroups, the engine's hooks and files, new namespaces that are joined by another path."""
    assert alike(tmp_path, config(tmp_path, "one")) == alike(tmp_path, config(tmp_path, "two"))


def test_the_order_of_mounts_and_environment_makes_no_difference(tmp_path: Path) -> None:
    """Podman writes them in another one each time. Of two entries of one name, the last counts."""
    first, other = config(tmp_path, "one"), config(tmp_path, "two")
    first["process"]["env"] += ["B=2", "A=3"]
    other["process"]["env"] = ["B=2", "HOSTNAME=two", "A=1", "A=3"]
    other["mounts"].reverse()
    assert alike(tmp_path, first) == alike(tmp_path, other)
    other["process"]["env"].reverse()
    assert alike(tmp_path, first) != alike(tmp_path, other)


def test_everything_else_does(tmp_path: Path) -> None:
    first = config(tmp_path, "one")
    (tmp_path / "volume2").mkdir()
    changes: list[dict[str, Any]] = [
        {"process": {**first["process"], "args": ["serve", "more"]}},
        {"process": {**first["process"], "env": ["A=2"]}},
        {"process": {**first["process"], "env": ["A=1", "HOSTNAME=chosen"]}},
        {"process": {**first["process"], "user": {"uid": 1, "gid": 0}}},
        {"root": {**first["root"], "readonly": True}},
        {"annotations": {"io.runvm.warm": "/other"}},
        {"annotations": {**first["annotations"], "io.runvm.vcpus": "2"}},
        {"hooks": {"startContainer": first["hooks"]["prestart"]}},
        {"mounts": first["mounts"][:1]},
        {"mounts": [first["mounts"][0], {**first["mounts"][1], "source": str(tmp_path / "volume2")}]},
        {"linux": {**first["linux"], "namespaces": first["linux"]["namespaces"][:-1]}},
        {"linux": {**first["linux"], "resources": {"pids": {"limit": 5}}}},
        {"linux": {**first["linux"], "sysctl": {"net.ipv4.ip_forward": "1"}}},
        {"linux": {**first["linux"], "maskedPaths": ["/proc/kcore"]}},
    ]
    found = [alike(tmp_path, copy.deepcopy({**first, **change})) for change in [{}, *changes]]
    assert len({json.dumps(each, sort_keys=True) for each in found}) == len(found)
