"""`runvm spec` writes what runc 1.1.5 writes (recorded), but for what `runvm run` couldn't take."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runvm.oci import spec
from runvm.oci.defaults import default_spec

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((DATA / name).read_text())
    return {**config, "ociVersion": "1.1.0", "hostname": "runvm"}


def test_it_is_runcs() -> None:
    ours = default_spec()
    assert ours == recorded("runc-spec.json")
    assert list(ours) == list(recorded("runc-spec.json")), "the order of the fields, for who compares files"


def test_the_rootless_one_keeps_a_network_and_a_sysfs_of_its_own() -> None:
    """runc's has neither network namespace (the host's is refused here) nor sysfs (a bind of the host's /sys)."""
    theirs = recorded("runc-spec-rootless.json")
    theirs["linux"]["namespaces"].insert(1, {"type": "network"})
    sys_mount = theirs["mounts"][5]
    assert sys_mount["destination"] == "/sys"
    sys_mount.update(type="sysfs", source="sysfs", options=["nosuid", "noexec", "nodev", "ro"])
    for kind, number in (("uidMappings", os.geteuid()), ("gidMappings", os.getegid())):
        theirs["linux"][kind][0]["hostID"] = number
    assert default_spec(rootless=True) == theirs


@pytest.mark.parametrize("rootless", [False, True])
def test_it_loads_without_a_warning(rootless: bool, load: Callable[[dict[str, Any]], spec.Spec]) -> None:
    loaded = load(default_spec(rootless=rootless))
    spec.unsupported(loaded)
    assert loaded.warnings == ()
    assert "network" in loaded.namespaces


def test_two_do_not_share_anything() -> None:
    default_spec()["process"]["args"].append("x")
    assert default_spec()["process"]["args"] == ["sh"]
